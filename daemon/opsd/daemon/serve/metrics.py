"""The door's own metrics, in prometheus_client's default registry, beside vLLM's."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "opsd_requests", "Completions asked for, by outcome.", ["method", "adapter", "code"]
)
REQUEST_SECONDS = Histogram(
    "opsd_request_duration_seconds",
    "From receipt to the last byte, completions that succeeded.",
    ["method"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250),
)
FIRST_TOKEN_SECONDS = Histogram(
    "opsd_time_to_first_token_seconds",
    "From receipt to the first token.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
PROMPT_TOKENS = Counter("opsd_prompt_tokens", "Tokens of prompts answered.", ["adapter"])
COMPLETION_TOKENS = Counter("opsd_completion_tokens", "Tokens generated.", ["adapter"])
IN_FLIGHT = Gauge("opsd_requests_in_flight", "Completions being made.")
ATTEMPTS = Counter(
    "opsd_attempts", "Attempts kept, looked through, dropped (queue full) or failed.", ["outcome"]
)
ENGINE_RESTARTS = Counter("opsd_engine_restarts", "Restarts of a dead engine.", ["outcome"])
MIRRORED = Counter(
    "opsd_canary_mirrored",
    "Requests that the canary was to answer unseen: compared, or why not.",
    ["outcome"],
)
READY = Gauge("opsd_ready", "1 while requests are taken.")
ADAPTER_INFO = Gauge(
    "opsd_adapter_info", "1 for every adapter that the engine holds.", ["adapter", "role"]
)


def publish_adapters(roles: dict[str, str]) -> None:
    """Replaces the adapter info by these: adapter name → role."""
    ADAPTER_INFO.clear()
    for name, role in roles.items():
        ADAPTER_INFO.labels(name, role).set(1)
