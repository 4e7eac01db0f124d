"""The daemon's one configuration: a TOML file, overridden by the environment."""
