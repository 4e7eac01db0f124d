"""The operators' door: status, runs, adapters, gate reports and the audit log over gRPC."""
