"""Comparison with tensors of the official PyTorch model."""
