"""What the sources do, in prometheus_client's default registry."""

from __future__ import annotations

from prometheus_client import Counter

SAMPLES = Counter(
    "opsd_source_samples_total",
    "Samples of the incumbent drawn for pairs: done, interrupted (and drawn again) or failed.",
    ["source", "outcome"],
)
TOKENS = Counter("opsd_source_tokens_total", "Tokens of these samples.", ["source"])
ROUNDS = Counter(
    "opsd_source_rounds_total",
    "Rounds of samples on one problem, by how they ended.",
    ["source", "outcome"],
)
PAIRS = Counter(
    "opsd_source_pairs_total",
    "Pairs that came of it, by what became of them.",
    ["source", "status"],
)
PROPOSALS = Counter(
    "opsd_source_proposals_total", "Problems that the model proposed, by outcome.", ["outcome"]
)
ANSWERS = Counter(
    "opsd_source_answers_total", "Answers sent back for attempts, by the verdict.", ["verdict"]
)
OUTCOMES = Counter(
    "opsd_source_outcomes_total",
    "Outcomes of attempts, by what and who says so.",
    ["outcome", "by"],
)
ERRORS = Counter("opsd_source_errors_total", "Steps of a source that failed.", ["source"])
