"""The model, in the order data flows: pixels, latents, visual tokens, hidden states, velocity and
logits.
"""
