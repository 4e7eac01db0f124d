"""The serving door: the inference engine, its supervision, and gRPC in front of it."""
