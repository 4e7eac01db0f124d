"""The student's attempts of one step, with what the verifier said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opsd.trainer.data import Pair
from opsd.trainer.distributed import Ranks
from opsd.trainer.rollout import Rollout
from opsd.trainer.support import Support, Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """One completion of a problem by the student."""

    stream: int
    """Unique within the step over all ranks; a problem's attempts have consecutive numbers."""
    pair: Pair
    prompt: tuple[int, ...]
    rollout: Rollout
    text: str
    """The rollout without special tokens."""
    verdict: Verdict | None = None
    old_logprobs: tuple[float, ...] = ()
    """Of a stale attempt: log p of each token by the weights that sampled it, nats, at the
    temperature of the loss."""
    importance: tuple[float, ...] = ()
    """Of a stale attempt: the weight of each token that corrects for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What every rank knows of an attempt, whoever made it."""

    stream: int
    pair_id: str
    text: str
    verdict: Verdict
    truncated: bool


Outcomes = Mapping[int, Outcome]
"""By stream."""


def attempt_texts(tokenizer: Any, rollouts: Sequence[Rollout]) -> list[str]:
    """What a verifier reads of each."""
    return [tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in rollouts]


def verified(attempts: Sequence[Attempt], support: Support) -> list[Attempt]:
    """The same attempts with their verdicts."""
    verdicts = support.verify([(a.pair.verifier, a.pair.reference, a.text) for a in attempts])
    return [replace(a, verdict=verdict) for a, verdict in zip(attempts, verdicts, strict=True)]


def shared_outcomes(attempts: Sequence[Attempt], ranks: Ranks) -> dict[int, Outcome]:
    """The outcomes of all ranks' verified attempts, in the order of the streams."""
    mine = [
        Outcome(a.stream, a.pair.id, a.text, a.verdict, a.rollout.truncated)
        for a in attempts
        if a.verdict is not None
    ]
    everyone = [outcome for part in ranks.gather(mine) for outcome in part]
    return {outcome.stream: outcome for outcome in sorted(everyone, key=lambda o: o.stream)}


def group_of(stream: int, group_size: int, outcomes: Outcomes) -> list[Outcome]:
    """The outcomes of all attempts at the problem that this stream attempts."""
    first = stream - stream % group_size
    return [outcomes[s] for s in range(first, first + group_size) if s in outcomes]
