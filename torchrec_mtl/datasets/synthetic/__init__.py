"""Synthetic funnels, whose probabilities are known."""
