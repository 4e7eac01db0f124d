"""`opsd compare`: the same data through several methods, each through the gate, to one table."""
