"""What Prometheus sees of runs."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

runs_total: Final = Counter(
    "opsd_runs_total", "Runs that are over, by the state they ended in.", ["outcome"]
)
run_state: Final = Gauge("opsd_run_state", "Runs that are not over, by state.", ["state"])
run_step: Final = Gauge("opsd_run_step", "Optimiser steps done by the run in training.")
run_num_steps: Final = Gauge("opsd_run_num_steps", "Optimiser steps of the run in training.")
run_loss_nats: Final = Gauge("opsd_run_loss_nats", "Loss of the last step of the run in training.")
run_loss_implementation: Final = Gauge(
    "opsd_run_loss_implementation_info",
    "1 for what computed the loss of the last step: native-… (compiled) or torch (plain PyTorch).",
    ["implementation"],
)
generated_tokens_total: Final = Counter(
    "opsd_run_generated_tokens_total", "Tokens that trainers sampled."
)
launches_total: Final = Counter(
    "opsd_run_launches_total",
    "Trainers started (first, again) or found running after a restart (adopted).",
    ["kind"],
)
restarts_total: Final = Counter(
    "opsd_run_restarts_total",
    "Trainers started again from their checkpoint because they, or a rank of them, were lost.",
)
kills_total: Final = Counter(
    "opsd_run_kills_total", "Trainers killed for a stall or for taking too long.", ["cause"]
)
reconcile_errors_total: Final = Counter(
    "opsd_run_reconcile_errors_total", "Unexpected errors while moving a run on."
)
triggers_total: Final = Counter(
    "opsd_run_triggers_total",
    "Triggers that made a run (created) or found one at work or too few pairs (skipped).",
    ["kind", "result"],
)


def loss_implementation_is(name: str) -> None:
    """One series at a time: the implementation of the run in training."""
    run_loss_implementation.clear()
    run_loss_implementation.labels(name).set(1)
