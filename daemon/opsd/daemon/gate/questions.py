"""What is asked of whom in an evaluation, and under which conditions an answer counts again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from opsd.daemon import __version__
from opsd.daemon.config.gate import GateConfig
from opsd.daemon.gate.literacy import KeyPrompt
from opsd.daemon.gate.suites import Suite
from opsd.daemon.types.engine import BASE, AdapterHandle, ChatMessage, Sampling
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.suites import CachedAnswer

NUM_TOP = 20
"""Most likely tokens that scoring asks for at each position: as many as vLLM tells by default."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The served model, as far as answers depend on it."""

    fingerprint: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Respondent:
    """Who answers; ``handle`` is None for base."""

    name: str
    handle: AdapterHandle | None
    identity: str  # SHA-256 of the adapter, or the model's fingerprint

    @classmethod
    def of(cls, handle: AdapterHandle | None, model: ModelIdentity) -> Respondent:
        if handle is None:
            return cls(BASE, None, f"base:{model.fingerprint}")
        # A name is made from the digest and never reused for other bytes.
        return cls(handle.name, handle, handle.sha256 or handle.name)


@dataclass(frozen=True, slots=True)
class Question:
    """One answer to be had, from whomever.

    ``conditions`` are those of ``CachedAnswer``; an answer under ``richer`` will do as well.
    """

    suite: Suite
    item: SuiteItem
    messages: tuple[ChatMessage, ...]
    enable_thinking: bool
    sampling: Sampling
    sample: int
    is_scored: bool
    conditions: str
    richer: str = ""

    def cached(self, respondent: Respondent) -> CachedAnswer:
        return CachedAnswer(respondent.identity, self.conditions, self.item.id, self.sample)


class SuitePlan:
    """The questions of one suite.

    ``scoring``: answers are scored for entropy and KL where the configuration says so. What is
    asked with the reference, or scored, is a part of the items that their digests choose: the same
    in every gate, whatever their order. A sealed suite is asked for correctness alone.
    """

    def __init__(
        self,
        suite: Suite,
        config: GateConfig,
        key_prompt: KeyPrompt,
        model: ModelIdentity,
        *,
        scoring: bool,
    ) -> None:
        self.suite = suite
        self._config = config
        self._key_prompt = key_prompt
        self._scoring = scoring
        behaviour = config.behaviour
        num_scored = 0 if suite.sealed else behaviour.num_kl_items
        self._scored = _chosen(suite, num_scored)
        is_told = suite.role is SuiteRole.TARGET and not suite.sealed
        self._told = _chosen(suite, behaviour.num_literacy_items if is_told else 0)
        samples = suite.samples or config.samples
        drawn = [config.temperature] * samples if config.temperature > 0.0 else [0.0]
        self._temperatures = [0.0, *drawn] if config.greedy and drawn[0] > 0.0 else drawn
        self._common: tuple[object, ...] = (
            *(__version__, model.fingerprint, model.dtype, suite.sha256, config.max_tokens),
            *(behaviour.markers, behaviour.refusals),
        )

    def questions(self, item: SuiteItem) -> list[Question]:
        """Greedy first, then the draws."""
        return [
            self._question(item, position, temperature)
            for position, temperature in enumerate(self._temperatures)
        ]

    def key_question(self, item: SuiteItem) -> Question | None:
        """The item with its reference in the prompt, greedily; None where it is not chosen."""
        if item.id not in self._told:
            return None
        return Question(
            suite=self.suite,
            item=item,
            messages=self._key_prompt.messages(item),
            enable_thinking=self._key_prompt.enable_thinking,
            sampling=self._sampling(0.0, None),
            sample=0,
            is_scored=False,
            conditions=_digest("key", *self._common, *self._key_prompt.conditions()),
        )

    @property
    def main_conditions(self) -> tuple[str, str]:
        """Of an item's first answer: without a score, with one."""
        temperature = self._temperatures[0]
        return self._conditions(temperature, scored=False), self._conditions(
            temperature, scored=True
        )

    def _question(self, item: SuiteItem, position: int, temperature: float) -> Question:
        # Greedy answers have conditions of their own, so each kind is counted from 0.
        sample = position - self._temperatures.count(0.0) if temperature > 0.0 else 0
        may_be_scored = position == 0 and item.id in self._scored
        is_scored = may_be_scored and self._scoring
        return Question(
            suite=self.suite,
            item=item,
            messages=(ChatMessage("user", item.prompt),),
            enable_thinking=self._config.enable_thinking,
            sampling=self._sampling(temperature, self._seed(item, sample)),
            sample=sample,
            is_scored=is_scored,
            conditions=self._conditions(temperature, scored=is_scored),
            richer=self._conditions(temperature, scored=True)
            if may_be_scored and not is_scored
            else "",
        )

    def _conditions(self, temperature: float, *, scored: bool) -> str:
        config = self._config
        parts: list[object] = [*self._common, temperature, config.enable_thinking]
        if temperature > 0.0:
            parts += [config.top_p, config.seed]
        if scored:
            parts += ["scored", NUM_TOP, config.behaviour.max_scored_tokens]
        return _digest("plain", *parts)

    def _sampling(self, temperature: float, seed: int | None) -> Sampling:
        drawn = temperature > 0.0
        return Sampling(
            max_tokens=self._config.max_tokens,
            temperature=temperature,
            top_p=self._config.top_p if drawn else 1.0,
            seed=seed if drawn else None,
        )

    def _seed(self, item: SuiteItem, sample: int) -> int:
        """The same for every adapter: at equal temperature they draw with equal luck."""
        text = f"{self._config.seed}\0{self.suite.sha256}\0{item.id}\0{sample}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def _chosen(suite: Suite, count: int) -> frozenset[str]:
    """Ids of ``count`` items, or of all when there are fewer."""
    ids = [item.id for item in suite.items]
    if count < len(ids):
        ids = sorted(ids, key=lambda id: hashlib.sha256(f"{suite.sha256}\0{id}".encode()).digest())
    return frozenset(ids[:count])


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
