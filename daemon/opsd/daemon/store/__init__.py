"""Durable state: pairs, attempts, runs, adapters, the incumbent, gate reports and the audit log."""
