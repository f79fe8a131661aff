"""Instruments around a run: plans for pods, FLOP counts, benches, previews."""
