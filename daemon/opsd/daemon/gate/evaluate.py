"""Paired held-out evaluation of two adapters through the engine that serves users."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter

from opsd.daemon.config.schema import GateConfig
from opsd.daemon.errors import EngineError, InvalidInputError, StateError
from opsd.daemon.gate.decision import (
    Answer,
    GateRule,
    PairedItem,
    SuiteRule,
    judge_gate,
    judge_suite,
)
from opsd.daemon.gate.ports import AnswerVerifier, Routes
from opsd.daemon.gate.suites import Suite, SuiteSet, check_unchanged
from opsd.daemon.store.api import GateStore
from opsd.daemon.types.adapters import Adapter
from opsd.daemon.types.engine import (
    BASE,
    AdapterHandle,
    ChatMessage,
    Engine,
    EngineRequest,
    FinishReason,
    Sampling,
)
from opsd.daemon.types.gate import GateReport, Measurement, SuiteRole
from opsd.daemon.types.pairs import SuiteItem, Verdict, VerdictKind
from opsd.daemon.types.runs import Run

log = logging.getLogger(__name__)

PRIORITY = 10
"""Below users, who are 0: the engine's scheduler serves lower numbers first."""

_ITEMS = Counter("opsd_gate_answers_total", "Answers given in held-out evaluation.", ["outcome"])
_EVALUATIONS = Counter("opsd_gate_evaluations_total", "Evaluations finished.", ["verdict"])

Progress = Callable[[int, int], None]
"""Told (answers so far, answers in all), one for each adapter and item."""

AnswerKey = tuple[str, str, str]
"""Adapter, suite key, item."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One answer to be had."""

    suite_key: str
    suite: str
    item: SuiteItem
    adapter: str
    handle: AdapterHandle | None

    @property
    def key(self) -> AnswerKey:
        return (self.adapter, self.suite_key, self.item.id)


class GateEvaluator:
    """Has both adapters answer every item of every suite, and judges the pairs.

    The two answers to an item are asked for side by side, in alternating order, so that whatever
    changes over time touches both. Each outcome is stored as it comes: an evaluation that is begun
    again under the same run goes on where it stopped.
    """

    def __init__(
        self,
        engine: Engine,
        verifier: AnswerVerifier,
        store: GateStore,
        suites: SuiteSet,
        config: GateConfig,
        *,
        routes: Routes,
        answer_timeout_s: float = 600.0,
        recovery_timeout_s: float = 300.0,
        poll_interval_s: float = 0.05,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``recovery_timeout_s`` is how long a failed engine may take to come back."""
        self._engine = engine
        self._verifier = verifier
        self._store = store
        self._suites = suites
        self._config = config
        self._routes = routes
        self._answer_timeout_s = answer_timeout_s
        self._recovery_timeout_s = recovery_timeout_s
        self._poll_interval_s = poll_interval_s
        self._clock = clock

    async def evaluate(
        self,
        run: Run,
        candidate: Adapter,
        incumbent: AdapterHandle | None,
        on_progress: Progress,
    ) -> GateReport:
        """The report on ``candidate`` against ``incumbent`` (None: base); the caller stores it.

        Raises ConfigError when a suite's file changed, StateError when ``gate.timeout_s`` passes or
        both adapters are the same, NotFoundError when one is not loaded, and EngineError when the
        engine stays down: that may be tried again, and goes on where it stopped.
        """
        incumbent_name = incumbent.name if incumbent else BASE
        if candidate.name == incumbent_name:
            raise StateError(
                f"{candidate.name} serves already, there is nothing to compare it with: trigger a "
                "run that trains another"
            )
        started = self._clock()
        await asyncio.to_thread(check_unchanged, self._suites)
        tasks = self._tasks(candidate, incumbent)
        # Held for the whole evaluation: whatever is promoted meanwhile, neither may be unloaded.
        with (
            self._routes.route(f"gate-{run.id}", candidate.name),
            self._routes.route(f"gate-{run.id}", incumbent_name),
        ):
            answers = await self._answers(run, tasks, on_progress, own_leases=2)
        report = judge_gate(
            run_id=run.id,
            candidate=candidate.name,
            incumbent=incumbent_name,
            suites=[
                judge_suite(
                    _suite_rule(suite),
                    self._pairs(suite, candidate.name, incumbent_name, answers),
                    self._gate_rule(),
                )
                for suite in self._suites.suites
            ],
            started_unix_s=started,
            finished_unix_s=self._clock(),
        )
        _EVALUATIONS.labels(report.verdict.value).inc()
        log.info(
            "gate run=%s candidate=%s incumbent=%s verdict=%s",
            run.id,
            candidate.name,
            incumbent_name,
            report.verdict.value,
        )
        return report

    def num_items(self) -> int:
        """Of all suites; ``evaluate`` takes twice as many answers."""
        return self._suites.num_items()

    def num_target_items(self) -> int:
        """Answers that one call of ``measure`` takes."""
        return sum(len(suite.items) for suite in self._targets())

    async def measure(
        self, run: Run, adapter: AdapterHandle | None, on_progress: Progress
    ) -> list[Measurement]:
        """One adapter (None: base) alone on every target suite, in the order of the configuration.

        Under the conditions of ``evaluate`` and with its store: an answer that the run's evaluation
        had from this adapter already is not asked for again. Raises what ``evaluate`` raises, and
        StateError for a suite without any outcome.
        """
        name = adapter.name if adapter else BASE
        await asyncio.to_thread(check_unchanged, self._suites)
        tasks = [
            _Task(self._suite_key(suite), suite.name, item, name, adapter)
            for suite in self._targets()
            for item in suite.items
        ]
        with self._routes.route(f"gate-{run.id}", name):
            answers = await self._answers(run, tasks, on_progress, own_leases=1)
        return [self._summary(suite, name, answers) for suite in self._targets()]

    def _targets(self) -> list[Suite]:
        return [suite for suite in self._suites.suites if suite.role is SuiteRole.TARGET]

    def _summary(self, suite: Suite, name: str, answers: dict[AnswerKey, Answer]) -> Measurement:
        key = self._suite_key(suite)
        found = [answers[name, key, item.id] for item in suite.items]
        judged = [answer for answer in found if answer.solved is not None]
        if not judged:
            raise StateError(
                f"none of the {len(found)} answers of {name} to suite {suite.name!r} could be "
                "judged: the daemon's log names the reason of each (gate_item_error)"
            )
        return Measurement(
            suite=suite.name,
            n=len(judged),
            accuracy=sum(answer.solved is True for answer in judged) / len(judged),
            tokens_mean=sum(answer.tokens for answer in judged) / len(judged),
        )

    def _tasks(self, candidate: Adapter, incumbent: AdapterHandle | None) -> list[_Task]:
        sides = [
            (incumbent.name if incumbent else BASE, incumbent),
            (candidate.name, candidate.handle()),
        ]
        tasks = []
        for suite in self._suites.suites:
            for item in suite.items:
                tasks += [
                    _Task(self._suite_key(suite), suite.name, item, name, handle)
                    for name, handle in sides
                ]
                sides.reverse()
        return tasks

    async def _answers(
        self, run: Run, tasks: list[_Task], on_progress: Progress, *, own_leases: int
    ) -> dict[AnswerKey, Answer]:
        stored = await asyncio.to_thread(self._store.gate_outcomes, run.id)
        answers = {
            task.key: self._recalled(*stored[task.key]) for task in tasks if task.key in stored
        }
        pending = deque(task for task in tasks if task.key not in stored)
        on_progress(len(answers), len(tasks))

        async def work(index: int) -> None:
            while pending:
                if index >= self._allowed(own_leases):
                    await asyncio.sleep(self._poll_interval_s)
                    continue
                task = pending.popleft()
                answer = await self._answer(run, task)
                await asyncio.to_thread(
                    self._store.save_gate_outcome,
                    run.id,
                    task.adapter,
                    task.suite_key,
                    task.item.id,
                    answer.solved,
                    answer.tokens,
                )
                answers[task.key] = answer
                _ITEMS.labels(_outcome_label(answer)).inc()
                on_progress(len(answers), len(tasks))

        try:
            async with asyncio.timeout(self._config.timeout_s) as limit:
                await _run_all([work(index) for index in range(self._config.concurrency)])
        except TimeoutError:
            if not limit.expired():
                raise
            raise StateError(
                f"held-out evaluation ran out of gate.timeout_s ({self._config.timeout_s:g} s) "
                f"with {len(answers)} of {len(tasks)} answers: raise it, or make the suites smaller"
            ) from None
        return answers

    def _allowed(self, own_leases: int) -> int:
        """Answers that may be in the engine now: users' completions take places first, to a point.

        The engine's priorities alone would keep users first in the queue; fewer answers beside them
        keep its steps short. A quarter of the places stays, or busy days would never see a verdict.
        """
        concurrency = self._config.concurrency
        users = self._routes.total_in_flight() - own_leases
        return min(concurrency, max(1, concurrency // 4, concurrency - users))

    async def _answer(self, run: Run, task: _Task) -> Answer:
        """One answer, tried twice; what then still fails has no outcome."""
        reason = ""
        for _ in range(2):
            try:
                async with asyncio.timeout(self._answer_timeout_s):
                    text, tokens, finish = await self._complete(run, task)
            except TimeoutError:
                reason = f"no answer within {self._answer_timeout_s:g} s"
                continue
            except InvalidInputError as error:
                reason = str(error)
                break
            except EngineError as error:
                reason = str(error)
                await self._until_healthy(error)
                continue
            verdict = await self._verify(task.item, text)
            if verdict.kind is VerdictKind.ERROR:
                reason = f"verifier {verdict.verifier}: {verdict.evidence}"
                break
            return Answer(verdict.kind is VerdictKind.PASS, tokens, finish is FinishReason.LENGTH)
        log.warning(
            "gate_item_error run=%s suite=%s item=%s adapter=%s reason=%r",
            run.id,
            task.suite,
            task.item.id,
            task.adapter,
            reason,
        )
        return Answer(None, 0)

    async def _complete(self, run: Run, task: _Task) -> tuple[str, int, FinishReason]:
        request = EngineRequest(
            request_id=f"gate-{run.id}-{uuid.uuid4().hex}",
            sampling=Sampling(
                max_tokens=self._config.max_tokens,
                temperature=self._config.temperature,
                seed=_seed(task) if self._config.temperature > 0.0 else None,
            ),
            messages=(ChatMessage("user", task.item.prompt),),
            enable_thinking=self._config.enable_thinking,
            adapter=task.handle,
            priority=PRIORITY,
        )
        pieces: list[str] = []
        tokens = 0
        finish: FinishReason | None = None
        async for chunk in self._engine.generate(request):
            pieces.append(chunk.text)
            tokens = chunk.num_completion_tokens
            finish = chunk.finish_reason or finish
        if finish is None:
            raise EngineError("the engine ended a completion without saying why")
        return "".join(pieces), tokens, finish

    async def _verify(self, item: SuiteItem, text: str) -> Verdict:
        verdict = await self._verifier.verify(item.verifier, item.reference, text)
        if verdict.kind is VerdictKind.ERROR:
            # A busy machine can cost a verifier its time limit: once more, before the item is lost.
            verdict = await self._verifier.verify(item.verifier, item.reference, text)
        return verdict

    async def _until_healthy(self, cause: EngineError) -> None:
        """Waits for an engine that is down: its absence says nothing about an item."""
        try:
            async with asyncio.timeout(self._recovery_timeout_s):
                while not (await self._engine.health()).healthy:  # noqa: ASYNC110 - a port, no event
                    await asyncio.sleep(self._poll_interval_s)
        except TimeoutError:
            raise EngineError(
                f"held-out evaluation stopped: the engine stayed down for "
                f"{self._recovery_timeout_s:g} s ({cause}); the answers so far are kept"
            ) from cause

    def _suite_key(self, suite: Suite) -> str:
        """The name that outcomes are stored under: they count only under the same conditions."""
        config = self._config
        sampling = (config.max_tokens, config.temperature, config.enable_thinking)
        conditions = repr((suite.name, suite.sha256, *sampling))
        # At most 64 characters are stored; the digest tells long names apart.
        return f"{suite.name[:48]}@{hashlib.sha256(conditions.encode()).hexdigest()[:12]}"

    def _recalled(self, solved: bool | None, tokens: int) -> Answer:
        # The store keeps no finish reason; an answer of full length was almost surely cut off.
        return Answer(solved, tokens, solved is not None and tokens >= self._config.max_tokens)

    def _pairs(
        self,
        suite: Suite,
        candidate: str,
        incumbent: str,
        answers: dict[AnswerKey, Answer],
    ) -> list[PairedItem]:
        key = self._suite_key(suite)
        return [
            PairedItem(
                stratum=item.stratum,
                incumbent=answers[incumbent, key, item.id],
                candidate=answers[candidate, key, item.id],
            )
            for item in suite.items
        ]

    def _gate_rule(self) -> GateRule:
        return GateRule(
            confidence=self._config.confidence,
            max_error_fraction=self._config.max_error_fraction,
            max_tokens=self._config.max_tokens,
        )


def _suite_rule(suite: Suite) -> SuiteRule:
    return SuiteRule(name=suite.name, role=suite.role, margin=suite.margin, sha256=suite.sha256)


def _outcome_label(answer: Answer) -> str:
    if answer.solved is None:
        return "error"
    return "solved" if answer.solved else "unsolved"


def _seed(task: _Task) -> int:
    """The same for both adapters: at equal temperature they draw with equal luck."""
    digest = hashlib.sha256(f"{task.suite_key}\0{task.item.id}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


async def _run_all(workers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs them side by side; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
