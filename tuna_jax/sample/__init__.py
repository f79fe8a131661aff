"""Text, pictures and clips from a trained model. `generate.Generator` is the door most people use."""
