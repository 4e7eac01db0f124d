"""Pairs that come from the model's own samples and from answers that come later."""
