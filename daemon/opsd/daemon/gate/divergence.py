"""Entropy and KL divergence of next-token distributions of which only the top is known.

An engine tells the log-probabilities of the K likeliest tokens and of the one that stands there.
Everything else is put into one outcome, the rest. By the data-processing inequality both figures
are then lower bounds of the true ones; they are exact where the rest holds one token or nothing,
and 0 for two equal distributions. Source: Cover and Thomas, Elements of Information Theory, 2nd
edition, sections 2.5 and 2.8 (log-sum inequality).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from opsd.daemon.types.engine import TokenScore


def mean_entropy(scores: Sequence[TokenScore]) -> float:
    """Nats a token, the mean over an answer's positions; at least one is needed."""
    return _mean(_entropy(score.logprobs) for score in scores)


def mean_kl(ours: Sequence[TokenScore], theirs: Sequence[TokenScore]) -> float:
    """KL(ours ‖ theirs) in nats a token, the mean over an answer's positions.

    ValueError unless both are scores of the same tokens.
    """
    if [score.token_id for score in ours] != [score.token_id for score in theirs]:
        raise ValueError("the two scores are not of the same answer")
    return _mean(
        _kl(mine.logprobs, other.logprobs) for mine, other in zip(ours, theirs, strict=True)
    )


def _entropy(logprobs: Mapping[int, float]) -> float:
    terms = [-math.exp(value) * value for value in logprobs.values() if math.isfinite(value)]
    rest = _rest(logprobs.values())
    if rest > 0.0:
        terms.append(-rest * math.log(rest))
    return max(0.0, math.fsum(terms))


def _kl(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float:
    # Only tokens known to both: of the others one side knows nothing but that they are in its rest.
    known = [
        token
        for token in ours.keys() & theirs.keys()
        if math.isfinite(ours[token]) and math.isfinite(theirs[token])
    ]
    terms = [math.exp(ours[token]) * (ours[token] - theirs[token]) for token in known]
    our_rest = _rest(ours[token] for token in known)
    their_rest = _rest(theirs[token] for token in known)
    if our_rest > 0.0 and their_rest > 0.0:
        terms.append(our_rest * math.log(our_rest / their_rest))
    return max(0.0, math.fsum(terms))


_ROUNDING = 1e-6
"""Probabilities of 32-bit logits add up to 1 only to about this."""


def _rest(logprobs: Iterable[float]) -> float:
    rest = 1.0 - math.fsum(math.exp(logprob) for logprob in logprobs)
    return rest if rest > _ROUNDING else 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    if not found:
        raise ValueError("there is no position to average over")
    return math.fsum(found) / len(found)
