"""A model for others: an OpenAI-compatible server and a page to draw, edit, film and ask."""
