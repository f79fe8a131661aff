"""Your own data in minutes: one command from pictures and texts to a small model and its report."""
