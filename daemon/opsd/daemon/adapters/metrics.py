"""Metrics of canaries, in prometheus_client's default registry."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

CANARY_STEP = Gauge("opsd_canary_step", "The canary's step, from 1; 0: there is no canary.")
CANARY_SHARE = Gauge("opsd_canary_share", "Share of the traffic that goes to the canary.")
CANARY_HARM = Gauge(
    "opsd_canary_harm_e_value", "Wealth of the bets that the canary is worse.", ["metric"]
)
CANARY_SAFE = Gauge(
    "opsd_canary_safe_e_value",
    "Wealth of the bets that the canary is within its margin.",
    ["metric"],
)
CANARY_OBSERVATIONS = Gauge(
    "opsd_canary_observations", "Compared so far.", ["metric", "arm"]
)  # arm: canary, incumbent or pair
CANARY_ENDS = Counter("opsd_canary_ends", "Canaries that ended.", ["end"])
CANARY_ADVANCES = Counter("opsd_canary_advances", "Steps that were taken.", ["by"])
VOTES = Counter("opsd_votes", "Votes on candidates.", ["decision"])
