"""Making a pair of the model's own trace, with its provenance, once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence

from opsd.daemon.collect.intake import Outcome
from opsd.daemon.collect.sources import metrics
from opsd.daemon.collect.sources.ports import PairIntake
from opsd.daemon.collect.sources.sampling import Trace
from opsd.daemon.config.sources import OwnSamplesConfig
from opsd.daemon.store.sources_api import SourceStore
from opsd.daemon.types.ids import pair_id
from opsd.daemon.types.pairs import Origin, PairInput
from opsd.daemon.types.problems import Problem, ProblemState, Provenance, Round

DAY_S = 86_400.0
QUOTA_PAUSE_S = 3600.0
"""Before a problem whose pair was over a quota of the store is tried again."""

_STATES = {
    "verified": ProblemState.SOLVED,
    "duplicate": ProblemState.SOLVED,
    "held_out": ProblemState.HELD_OUT,
    "refused_quota": ProblemState.OPEN,
}
"""By the label of the pair's outcome; any other one refuses it."""


class PairMaker:
    """Hands pairs to the intake for one source, which then decides like for any other pair."""

    def __init__(
        self,
        source: str,
        origin: Origin,
        store: SourceStore,
        intake: PairIntake,
        *,
        daily_quota: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.source = source
        self.origin = origin
        self.daily_quota = daily_quota
        self._store = store
        self._intake = intake
        self._clock = clock

    async def made_today(self) -> int:
        """Pairs in the last 24 hours."""
        since = self._clock() - DAY_S
        return await asyncio.to_thread(
            self._store.count_provenance, self.origin, since_unix_s=since
        )

    async def submit(
        self, problem: Problem, solution: str, reference: str, *, adapter: str, detail: object
    ) -> Outcome:
        """Provenance first: no pair of the model's own is ever without it."""
        given = problem.input
        pair = PairInput(
            id=pair_id(given.prompt, solution, given.verifier, reference),
            prompt=given.prompt,
            solution=solution,
            verifier=given.verifier,
            reference=reference,
            source=given.source,
            stratum=given.stratum,
        )
        await asyncio.to_thread(
            self._store.add_provenance,
            Provenance(
                pair_id=pair.id,
                origin=self.origin,
                problem_id=given.id,
                adapter=adapter,
                detail_json=json.dumps(detail, ensure_ascii=False, sort_keys=True),
                created_unix_s=self._clock(),
            ),
        )
        submitter = f"opsd:{self.source.replace('_', '-')}"
        outcome = await self._intake.submit(pair, submitter, origin=self.origin)
        metrics.PAIRS.labels(self.source, outcome.label).inc()
        return outcome


def round_after(
    outcome: Outcome, problem: Problem, *, attempts: int, solves: int, now_unix_s: float
) -> Round:
    """The round that ends with a pair of this outcome."""
    state = _STATES.get(outcome.label, ProblemState.REFUSED)
    is_solved = state is ProblemState.SOLVED
    return Round(
        problem_id=problem.input.id,
        attempts=attempts,
        solves=solves,
        state=state,
        note="" if is_solved else f"{outcome.label}: {outcome.message}",
        pair_id=outcome.duplicate_of or outcome.id if is_solved else "",
        next_try_unix_s=now_unix_s + QUOTA_PAUSE_S if state is ProblemState.OPEN else 0.0,
    )


def round_in_vain(
    problem: Problem,
    config: OwnSamplesConfig,
    *,
    attempts: int,
    solves: int,
    why: str,
    now_unix_s: float,
) -> Round:
    """The round after which the problem is tried again later, or given up."""
    is_last = problem.tries + 1 >= config.max_tries
    return Round(
        problem_id=problem.input.id,
        attempts=attempts,
        solves=solves,
        state=ProblemState.GIVEN_UP if is_last else ProblemState.OPEN,
        note=why,
        next_try_unix_s=0.0 if is_last else now_unix_s + config.retry_after_s * 2**problem.tries,
    )


def shortest(traces: Sequence[Trace], indices: Sequence[int]) -> Trace:
    """Of ``indices``, by tokens; the earlier one among equals."""
    return min((traces[index] for index in indices), key=lambda trace: trace.tokens)


def drawn_with(config: OwnSamplesConfig, samples: int) -> Mapping[str, object]:
    """Of the provenance."""
    return {
        "samples": samples,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "enable_thinking": config.enable_thinking,
    }
