"""The model, in the order data flows: pixels, latents, tokens, hidden states, velocity, logits."""
