"""The model poses variants of solved problems to itself, while nobody else wants the engine."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from opsd.daemon.collect.ports import HeldOut
from opsd.daemon.collect.sources import metrics
from opsd.daemon.collect.sources.pairs import PairMaker
from opsd.daemon.collect.sources.ports import UserActivity
from opsd.daemon.collect.sources.problems import make_problem
from opsd.daemon.collect.sources.rounds import Rounds
from opsd.daemon.collect.sources.sampling import OwnSampler
from opsd.daemon.config.sources import SelfPlayConfig
from opsd.daemon.store.sources_api import SourceStore
from opsd.daemon.types.ids import problem_id
from opsd.daemon.types.pairs import Origin, Pair
from opsd.daemon.types.problems import Problem, ProblemInput
from opsd.daemon.types.text import normalise_prompt, prompt_key

log = logging.getLogger(__name__)

SUBMITTER = "opsd:self-play"
TICK_S = 0.02
"""How often users are looked for while samples run."""

_PROBLEM = re.compile(r"<problem>(.*?)</problem>", re.DOTALL)
_TAG = re.compile(r"</?problem>")


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the model proposed, or why it is refused: ``malformed``, ``held_out``, ``copy``, or
    ``known``."""

    prompt: str
    refused: str = ""


def parse_proposal(text: str, *, max_chars: int) -> str | None:
    """The one problem between its tags; None for anything else."""
    spoken = text.rpartition("</think>")[2]
    if len(_TAG.findall(spoken)) != 2:
        return None
    match = _PROBLEM.search(spoken)
    if match is None:
        return None
    prompt = match[1].strip()
    storable = not any("\ud800" <= char <= "\udfff" or char == "\0" for char in prompt)
    return prompt if storable and 0 < len(prompt) <= max_chars else None


def similarity(one: str, other: str) -> float:
    """Jaccard index of the sets of words, of the normal forms; in [0, 1]."""
    words, others = set(normalise_prompt(one).split()), set(normalise_prompt(other).split())
    union = words | others
    return len(words & others) / len(union) if union else 1.0


class SelfPlay:
    """Implements ``Source``: first the open problems that it posed earlier, then new ones.

    It begins when users have been away for ``idle_after_s``, and everything of it leaves the engine
    as soon as one comes; what was under way counts for nothing and is drawn again later.
    """

    def __init__(
        self,
        rounds: Rounds,
        sampler: OwnSampler,
        *,
        store: SourceStore,
        held_out: HeldOut,
        maker: PairMaker,
        users: UserActivity,
        config: SelfPlayConfig,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """``draw``: a number in [0, 1), by which the next problem to vary is chosen."""
        self._rounds = rounds
        self._sampler = sampler
        self._store = store
        self._held_out = held_out
        self._maker = maker
        self._users = users
        self._config = config
        self._clock = clock
        self._draw = draw
        self._doing = "has not begun"

    @property
    def name(self) -> str:
        return self._maker.source

    @property
    def doing(self) -> str:
        return self._doing

    async def step(self) -> bool:
        if self._users.idle_s() < self._config.idle_after_s:
            self._doing = f"waits until no user has asked for {self._config.idle_after_s:g} s"
            return False
        work = asyncio.create_task(self._step())
        try:
            while not work.done():
                if self._users.in_flight:
                    self._doing = "makes room for users"
                    return False
                await asyncio.wait({work}, timeout=TICK_S)
            return work.result()
        finally:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(work, return_exceptions=True)

    async def _step(self) -> bool:
        if await self._maker.made_today() >= self._config.daily_quota:
            self._doing = f"waits: {self._config.daily_quota} pairs in 24 hours is its quota"
            return False
        if await self._rounds.step():
            self._doing = self._rounds.doing
            return True
        parent = await asyncio.to_thread(self._store.pair_to_vary, self._draw())
        if parent is None:
            self._doing = "waits: there is no verified pair to vary"
            return False
        self._doing = f"poses variants of pair {parent.input.id}"
        return await self._pose(parent)

    async def _pose(self, parent: Pair) -> bool:
        """Whether a new problem came of it."""
        given = parent.input
        if self._held_out.is_held_out(given.prompt) is not None:
            self._doing = f"waits: pair {given.id} belongs to a suite by now"
            return False
        drawn = await self._sampler.sample(
            self.name,
            self._config.template.replace("{problem}", given.prompt),
            self._config,
            num_samples=self._config.proposals,
            # New variants each time, also of the same parent.
            seed_of=f"{given.id}:{hashlib.sha256(repr(self._clock()).encode()).hexdigest()}",
        )
        posed = 0
        for trace in drawn.traces:
            text = "" if trace.is_cut_off else trace.text
            proposal = await self._judged(given.prompt, text)
            metrics.PROPOSALS.labels(proposal.refused or "posed").inc()
            if not proposal.refused:
                await asyncio.to_thread(
                    self._store.add_problem, self._problem(proposal.prompt, parent)
                )
                posed += 1
        self._doing = f"posed {posed} variants of pair {given.id}"
        return posed > 0

    async def _judged(self, original: str, text: str) -> Proposal:
        prompt = parse_proposal(text, max_chars=self._config.max_problem_chars)
        if prompt is None or not normalise_prompt(prompt):
            return Proposal("", "malformed")
        if self._held_out.is_held_out(prompt) is not None:
            return Proposal(prompt, "held_out")
        if similarity(prompt, original) > self._config.max_similarity:
            return Proposal(prompt, "copy")
        if await asyncio.to_thread(self._store.known_prompts, [prompt_key(prompt)]):
            return Proposal(prompt, "known")
        return Proposal(prompt)

    def _problem(self, prompt: str, parent: Pair) -> Problem:
        given = parent.input
        return make_problem(
            ProblemInput(
                id=problem_id(prompt, given.verifier, ""),
                prompt=prompt,
                verifier=given.verifier,
                source="self_play",
                stratum=given.stratum,
            ),
            SUBMITTER,
            origin=Origin.SELF_PLAY,
            parent_id=given.id,
            now_unix_s=self._clock(),
        )
