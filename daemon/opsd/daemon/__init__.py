"""The opsd service: serving, collecting, runs, the gate and the operator's doors."""

__version__ = "0.1.0"
