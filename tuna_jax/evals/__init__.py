"""Scores: what a trained model answers, draws, edits and films, held against what was asked."""
