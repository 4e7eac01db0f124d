"""The majority among the model's samples, where nobody knows the answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from opsd.daemon.collect.sources.majority import (
    Agreement,
    AgreementRule,
    Judge,
    agree,
    answer_of,
    group,
)
from opsd.daemon.collect.sources.pairs import (
    PairMaker,
    drawn_with,
    round_after,
    round_in_vain,
    shortest,
)
from opsd.daemon.collect.sources.rounds import round_name
from opsd.daemon.collect.sources.sampling import OwnSampler, Trace
from opsd.daemon.config.sources import AgreementConfig
from opsd.daemon.types.problems import Problem, Round

_SHOWN_GROUPS = 8


class Consistency:
    """One round: samples of the incumbent, grouped by answer; where the largest group leads clearly
    (``majority.agree``) its shortest trace becomes the solution and its answer the reference.
    Else nothing is said."""

    def __init__(
        self,
        sampler: OwnSampler,
        verifier: Judge,
        maker: PairMaker,
        config: AgreementConfig,
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
        answers = [_vote(given.verifier, trace) for trace in drawn.traces]
        groups = await group(self._verifier, given.verifier, answers)
        rule = AgreementRule(config.confidence, config.margin)
        found = agree(config.samples, groups, rule)
        majority = found.majority
        if not found.accepted or majority is None:
            return round_in_vain(
                problem,
                config,
                attempts=config.samples,
                solves=0,
                why=found.why,
                now_unix_s=self._clock(),
            )
        outcome = await self._maker.submit(
            problem,
            shortest(drawn.traces, majority.members).text,
            majority.answer,
            adapter=drawn.adapter,
            detail={
                "adapter": drawn.adapter,
                "sampling": drawn_with(config, config.samples),
                "parent": problem.parent_id,
                **counts(found, rule),
            },
        )
        return round_after(
            outcome,
            problem,
            attempts=config.samples,
            solves=len(majority.members),
            now_unix_s=self._clock(),
        )


def counts(found: Agreement, rule: AgreementRule) -> dict[str, object]:
    """The agreement as provenance keeps it."""
    return {
        "samples": found.samples,
        "votes": found.votes,
        "answers": [[known.answer, len(known.members)] for known in found.groups[:_SHOWN_GROUPS]],
        "num_answers": len(found.groups),
        "lead": found.margin,
        "lower_bound": found.lower_bound,
        "confidence": rule.confidence,
        "margin": rule.margin,
    }


def _vote(verifier: str, trace: Trace) -> str | None:
    return None if trace.is_cut_off else answer_of(verifier, trace.text)
