"""The paper's benchmarks: answers for lmms-eval, samples for the official scorers, and the table
beside the paper's numbers (docs/benchmarks.md).
"""
