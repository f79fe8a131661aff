"""Instruments around a run: plans for pods, FLOP counts, benchmarks, previews, recovery."""
