"""The whole loop on one machine, seen from outside: everything here talks to the daemon over gRPC."""
