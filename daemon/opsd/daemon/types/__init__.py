"""Plain data that the daemon's parts hand to each other; nothing here does input or output."""
