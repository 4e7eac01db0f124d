"""What runs take from the engine that serves, in prometheus_client's default registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

ALLOWED = Gauge("opsd_run_sampler_allowed", "Samples of runs that users' load leaves room for.")
RUNNING = Gauge("opsd_run_sampler_running", "Samples of runs in the engine.")
WAITING = Gauge("opsd_run_sampler_waiting", "Samples of runs that wait for room.")
ATTEMPTS = Counter(
    "opsd_run_sampler_attempts",
    "Samples of runs: done, interrupted (and gone on with later), cancelled or failed.",
    ["outcome"],
)
TOKENS = Counter("opsd_run_sampler_tokens", "Tokens sampled for runs.")
STUDENT_LOADS = Counter("opsd_run_sampler_student_loads", "Students loaded, by outcome.", ["code"])
STUDENT_LOAD_SECONDS = Counter(
    "opsd_run_sampler_student_load_seconds", "Time spent on checking and loading students."
)
VERIFIED = Counter(
    "opsd_run_verified_attempts", "Attempts of runs that were verified, by verdict.", ["kind"]
)
