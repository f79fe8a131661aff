"""Stages, mixtures and the tiny size."""
