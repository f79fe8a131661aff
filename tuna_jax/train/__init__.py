"""Training: state, optimizer, step, checkpoint, loop."""
