"""Adapter files, which adapters the engine holds, routing between them, and promotion."""
