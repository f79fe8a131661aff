"""Records to packed batches, in numpy: sources -> tasks -> segments -> pipeline."""
