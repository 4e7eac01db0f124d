"""Inference on the ratio of two arms' rates over the same clusters, as its logarithm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opsd.daemon.gate.paired import Estimate


@dataclass(frozen=True, slots=True)
class Amounts:
    """One cluster: what was counted in each arm (markers, tokens) and over how much (words,
    answers)."""

    reference: float
    reference_size: float
    candidate: float
    candidate_size: float


@dataclass(frozen=True, slots=True)
class RateRatio:
    """Both arms' rates and the logarithm of candidate / reference."""

    reference: float
    candidate: float
    log_ratio: Estimate


_HALF = 0.5


def rate_ratio(clusters: Sequence[Amounts], *, counts: bool) -> RateRatio | None:
    """None where an arm has no size, or fewer than two clusters are there.

    With ``counts``, half an event is added to each arm, so that none at all has a logarithm, and
    its own variance with it. The variance is that of the linearised ratio, cluster by cluster
    (Woodruff, Journal of the American Statistical Association 66 (1971) 411-414).
    """
    table_G4 = np.array(
        [(c.reference, c.reference_size, c.candidate, c.candidate_size) for c in clusters]
    )
    if len(table_G4) < 2:
        return None
    reference, reference_size, candidate, candidate_size = (float(x) for x in table_G4.sum(axis=0))
    if reference_size <= 0.0 or candidate_size <= 0.0:
        return None
    extra = _HALF if counts else 0.0
    if reference + extra <= 0.0 or candidate + extra <= 0.0:
        return None
    log_ratio = math.log((candidate + extra) / candidate_size) - math.log(
        (reference + extra) / reference_size
    )
    influence_G = (table_G4[:, 2] / (candidate + extra) - table_G4[:, 3] / candidate_size) - (
        table_G4[:, 0] / (reference + extra) - table_G4[:, 1] / reference_size
    )
    num = len(table_G4)
    variance = num / (num - 1) * float(influence_G @ influence_G)
    if counts:
        # An arm without a single event shows no spread; Poisson's is the least there can be.
        variance = max(variance, 1.0 / (candidate + extra) if candidate == 0.0 else 0.0)
    return RateRatio(
        reference / reference_size,
        candidate / candidate_size,
        Estimate(log_ratio, math.sqrt(variance), num - 1),
    )
