"""Trains day after day: each day is scored by the model of the day before, then trained on, and published."""
