"""Held-out evaluation of a candidate against the incumbent, and the verdict on it."""
