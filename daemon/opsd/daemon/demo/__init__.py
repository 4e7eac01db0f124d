"""The whole loop on one machine, seen from outside: all of it talks to the daemon over gRPC."""
