"""Synthetic funnels with known probabilities."""
