"""What the gate asks for, as plain data: part of its stored inputs."""

from __future__ import annotations

from dataclasses import dataclass

VERSION = 2
"""Of the deciding code: grows whenever the same inputs could be decided differently."""


@dataclass(frozen=True, slots=True)
class BehaviourRules:
    """How far the candidate's answers may move; fractions of the reference unless said.

    0 of a ``*_loss``, ``*_growth`` or budget means that this is not judged. The ``drift_*`` limits
    are against base, over all promotions since; the others against the incumbent.
    """

    markers_loss: float = 0.25
    length_loss: float = 0.5
    length_growth: float = 1.0
    truncated_gain: float = 0.02  # points, as a fraction
    repetition_gain: float = 0.02
    unformatted_gain: float = 0.02
    refusal_gain: float = 0.02
    entropy_loss: float = 0.5
    drift_markers_loss: float = 0.5
    drift_length_loss: float = 0.75
    drift_entropy_loss: float = 0.75
    drift_kl_nats: float = 0.5  # mean over tokens
    literacy_loss: float = 0.1
    literacy_required: bool = False
    min_markers: int = 20
    min_marker_density: float = 0.001  # of words; rarer than that is nothing to lose
    min_entropy_nats: float = 0.05  # less is certainty already


NOTHING_JUDGED = BehaviourRules(
    markers_loss=0.0,
    length_loss=0.0,
    length_growth=0.0,
    truncated_gain=0.0,
    repetition_gain=0.0,
    unformatted_gain=0.0,
    refusal_gain=0.0,
    entropy_loss=0.0,
    drift_markers_loss=0.0,
    drift_length_loss=0.0,
    drift_entropy_loss=0.0,
    drift_kl_nats=0.0,
    literacy_loss=0.0,
)
"""Correctness alone decides."""


@dataclass(frozen=True, slots=True)
class GateRules:
    """``confidence`` is that of the intervals; 1 - it is what all gates on the same items may spend
    on promoting without a gain, and twice what a guard may err by."""

    confidence: float = 0.95
    max_error_fraction: float = 0.02
    max_tokens: int = 1024
    min_clusters: int = 10
    behaviour: BehaviourRules = BehaviourRules()

    @property
    def alpha(self) -> float:
        # Rounded: 1 - 0.95 is 0.050000000000000044.
        return round(1.0 - self.confidence, 12)

    @property
    def one_sided(self) -> float:
        """Level of a one-sided statement of the intervals."""
        return self.alpha / 2.0
