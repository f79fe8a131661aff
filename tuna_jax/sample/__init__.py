"""Text, pictures and clips from a trained model; most people need `generate.Generator` alone."""
