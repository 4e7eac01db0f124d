"""The model's own correct attempts at problems whose answer is known."""

from __future__ import annotations

import time
from collections.abc import Callable

from opsd.daemon.collect.sources.majority import Judge
from opsd.daemon.collect.sources.pairs import (
    PairMaker,
    drawn_with,
    round_after,
    round_in_vain,
    shortest,
)
from opsd.daemon.collect.sources.rounds import round_name
from opsd.daemon.collect.sources.sampling import OwnSampler, Trace
from opsd.daemon.config.sources import HarvestConfig
from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.types.problems import Problem, Round


class Harvest:
    """One round: samples of the incumbent, each verified against the reference; one that passes
    becomes the pair's solution. A sample that was cut off does not count as an attempt that passed,
    whatever it says."""

    def __init__(
        self,
        sampler: OwnSampler,
        verifier: Judge,
        maker: PairMaker,
        config: HarvestConfig,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sampler = sampler
        self._verifier = verifier
        self._maker = maker
        self._config = config
        self._clock = clock

    async def attempt(self, problem: Problem) -> Round:
        """Raises what ``OwnSampler.sample`` and ``VerifierPool.verify`` raise."""
        config, given = self._config, problem.input
        drawn = await self._sampler.sample(
            self._maker.source,
            given.prompt,
            config,
            num_samples=config.samples,
            seed_of=round_name(problem),
        )
        passed = [
            index
            for index, trace in enumerate(drawn.traces)
            if await self._passes(given.verifier, given.reference, trace)
        ]
        if not passed:
            return round_in_vain(
                problem,
                config,
                attempts=config.samples,
                solves=0,
                why=f"none of {config.samples} attempts passed",
                now_unix_s=self._clock(),
            )
        chosen = (
            drawn.traces[passed[0]] if config.keep == "first" else shortest(drawn.traces, passed)
        )
        outcome = await self._maker.submit(
            problem,
            chosen.text,
            given.reference,
            adapter=drawn.adapter,
            detail={
                "adapter": drawn.adapter,
                "sampling": drawn_with(config, config.samples),
                "attempts": config.samples,
                "passed": len(passed),
                "kept": config.keep,
                "earlier_attempts": problem.attempts,
            },
        )
        return round_after(
            outcome, problem, attempts=config.samples, solves=len(passed), now_unix_s=self._clock()
        )

    async def _passes(self, verifier: str, reference: str, trace: Trace) -> bool:
        if trace.is_cut_off:
            return False
        verdict = await self._verifier.verify(verifier, reference, trace.text)
        return verdict.kind is VerdictKind.PASS
