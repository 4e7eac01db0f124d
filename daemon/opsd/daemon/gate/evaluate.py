"""Paired held-out evaluation of two adapters through the engine that serves users."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter

from opsd.daemon.config.gate import GateConfig
from opsd.daemon.errors import StateError
from opsd.daemon.gate.answers import Answerer, Timing
from opsd.daemon.gate.literacy import KeyPrompt
from opsd.daemon.gate.ports import (
    AnswerVerifier,
    Decide,
    EvaluationStore,
    Routes,
)
from opsd.daemon.gate.questions import ModelIdentity, Question, Respondent, SuitePlan
from opsd.daemon.gate.rules import GateRules
from opsd.daemon.gate.scores import arm_scores
from opsd.daemon.gate.suites import Suite, SuiteSet, check_unchanged
from opsd.daemon.types.adapters import Adapter
from opsd.daemon.types.engine import BASE, AdapterHandle, AnswerScorer, Engine
from opsd.daemon.types.evaluation import GateContext
from opsd.daemon.types.gate import GateReport, Measurement, SuiteRole, SuiteUse
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.runs import Run
from opsd.daemon.types.suites import CachedAnswer

log = logging.getLogger(__name__)

_ITEMS = Counter("opsd_gate_answers_total", "Answers given in held-out evaluation.", ["outcome"])
_RECALLED = Counter(
    "opsd_gate_answers_recalled_total", "Answers of held-out evaluation that were kept from before."
)
_EVALUATIONS = Counter("opsd_gate_evaluations_total", "Evaluations finished.", ["verdict"])

Progress = Callable[[int, int], None]
"""Told (answers so far, answers in all), one for each adapter, item and sample."""

Arms = dict[Arm, Respondent]
Answers = dict[CachedAnswer, AnswerRecord]

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class _Task:
    """One answer to be had."""

    question: Question
    who: Respondent

    @property
    def key(self) -> CachedAnswer:
        return self.question.cached(self.who)


class GateEvaluator:
    """Has both adapters, and base, answer every item of every suite, and has it decided.

    The answers to an item are asked for side by side, in rotating order, so that whatever changes
    over time touches all. Each is stored as it comes, under the adapter and all that it depends
    on: an evaluation that is begun again goes on where it stopped, and the next one asks the same
    incumbent nothing.
    """

    def __init__(
        self,
        engine: Engine,
        verifier: AnswerVerifier,
        store: EvaluationStore,
        suites: Callable[[], SuiteSet],
        config: GateConfig,
        *,
        routes: Routes,
        decide: Decide,
        model: ModelIdentity,
        key_prompt: KeyPrompt,
        scorer: AnswerScorer | None = None,
        look_through: Callable[[str, str], None] | None = None,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``suites`` are looked at once at the beginning of each evaluation; without a ``scorer``
        entropy and KL are not measured. ``look_through`` is told each answer's text and
        who wrote it."""
        self._timing = timing or Timing()
        self._answerer = Answerer(
            engine, scorer, verifier, config.behaviour, self._timing, look_through
        )
        self._store = store
        self._suites = suites
        self._config = config
        self._routes = routes
        self._decide = decide
        self._model = model
        self._key_prompt = key_prompt
        self._clock = clock

    async def evaluate(
        self,
        run: Run,
        candidate: Adapter,
        incumbent: AdapterHandle | None,
        on_progress: Progress,
    ) -> GateReport:
        """The report on ``candidate`` against ``incumbent`` (None: base); the caller stores it.

        Raises what ``measure_candidate`` raises.
        """
        started = self._clock()
        measured = await self.measure_candidate(run, candidate, incumbent, on_progress)
        context = GateContext(
            run_id=run.id,
            candidate=candidate.name,
            incumbent=incumbent.name if incumbent else BASE,
            started_unix_s=started,
            finished_unix_s=self._clock(),
        )
        report = await asyncio.to_thread(self._decide, context, measured)
        self._tell(context, measured)
        _EVALUATIONS.labels(report.verdict.value).inc()
        log.info(
            "gate run=%s candidate=%s incumbent=%s verdict=%s",
            *(run.id, context.candidate, context.incumbent, report.verdict.value),
        )
        return report

    async def measure_candidate(
        self,
        run: Run,
        candidate: Adapter,
        incumbent: AdapterHandle | None,
        on_progress: Progress,
    ) -> tuple[SuiteMeasured, ...]:
        """Everything that the decision needs to know of the answers, suite by suite.

        Raises ConfigError when a suite's file changed, StateError when ``gate.timeout_s`` passes or
        both adapters are the same, NotFoundError when one is not loaded, and EngineError when the
        engine stays down: that may be tried again, and goes on where it stopped.
        """
        arms = self._arms(candidate, incumbent)
        suites = self._suites()
        await asyncio.to_thread(check_unchanged, suites)
        unusable = await self._count_use(run, suites)
        usable = [suite for suite in suites.suites if suite.name not in unusable]
        num_uses = await self._claim(run, usable)
        plans = [self._plan(suite, scoring=True) for suite in usable]
        tasks = list(_paired_tasks(plans, list(arms.values())))
        with ExitStack() as leases:
            # Held for the whole evaluation: whatever is promoted meanwhile, none may be unloaded.
            for who in arms.values():
                leases.enter_context(self._routes.route(f"gate-{run.id}", who.name))
            answers = await self._answers(run, tasks, on_progress, own_leases=len(arms))
        by_name = {plan.suite.name: plan for plan in plans}
        measured = tuple(
            SuiteMeasured(
                name=suite.name,
                version=suite.version,
                sha256=suite.sha256,
                role=suite.role,
                margin=suite.margin,
                items=_items(by_name.get(suite.name), arms, answers),
                stratum_margin=suite.stratum_margin,
                sealed=suite.sealed,
                num_uses=num_uses.get(suite.name, 0),
                unusable=unusable.get(suite.name, ""),
            )
            for suite in suites.suites
        )
        await asyncio.to_thread(
            self._store.trim_answers,
            max_rows=self._config.max_cached_answers,
            max_age_s=self._config.max_cached_days * _DAY_S,
        )
        return measured

    def num_items(self) -> int:
        """Of all suites; ``evaluate`` takes at least twice as many answers."""
        return self._suites().num_items()

    def num_target_items(self) -> int:
        """Answers that one call of ``measure`` takes."""
        return sum(
            len(plan.questions(item))
            for plan in self._target_plans(self._suites())
            for item in plan.suite.items
        )

    async def measure(
        self, run: Run, adapter: AdapterHandle | None, on_progress: Progress
    ) -> list[Measurement]:
        """One adapter (None: base) alone on every target suite that is not sealed, in their order.

        Under the conditions of ``evaluate`` and with its store: an answer that an evaluation had
        from this adapter already is not asked for again. Raises what ``measure_candidate`` raises,
        and StateError for a suite without any outcome.
        """
        who = Respondent.of(adapter, self._model)
        suites = self._suites()
        await asyncio.to_thread(check_unchanged, suites)
        plans = self._target_plans(suites)
        tasks = [
            _Task(question, who)
            for plan in plans
            for item in plan.suite.items
            for question in plan.questions(item)
        ]
        with self._routes.route(f"gate-{run.id}", who.name):
            answers = await self._answers(run, tasks, on_progress, own_leases=1)
        return [_summary(plan, who, answers) for plan in plans]

    def conditions(self, suite: Suite) -> tuple[str, str]:
        """Those under which the first answers to its items are stored: unscored, and scored."""
        return self._plan(suite, scoring=True).main_conditions

    def _arms(self, candidate: Adapter, incumbent: AdapterHandle | None) -> Arms:
        incumbent_name = incumbent.name if incumbent else BASE
        if candidate.name == incumbent_name:
            raise StateError(
                f"{candidate.name} serves already, there is nothing to compare it with: trigger a "
                "run that trains another"
            )
        arms = {
            Arm.INCUMBENT: Respondent.of(incumbent, self._model),
            Arm.CANDIDATE: Respondent.of(candidate.handle(), self._model),
        }
        if incumbent is not None and self._config.measure_base:
            arms[Arm.BASE] = Respondent.of(None, self._model)
        return arms

    async def _count_use(self, run: Run, suites: SuiteSet) -> dict[str, str]:
        """Counts this gate as a use of every suite, before anything is asked; what may not be used,
        with the reason."""
        unusable = {}
        for suite in suites.suites:
            use = await asyncio.to_thread(self._store.use_suite, suite.name, suite.version, run.id)
            if not use.allowed:
                unusable[suite.name] = (
                    f"its budget of {use.budget} gates is spent: add fresh items with `opsd suites "
                    f"add FILE --name {suite.name}`, or in the file that [[gate.suites]] names"
                )
        return unusable

    async def _claim(self, run: Run, suites: Sequence[Suite]) -> dict[str, int]:
        """Enters this gate into the ledger; how often other gates used each suite's items."""
        uses = [
            SuiteUse(suite.name, suite.sha256, suite.role, tuple(suite.prompt_keys()))
            for suite in suites
        ]
        alpha = GateRules(confidence=self._config.confidence).alpha
        return await asyncio.to_thread(self._store.claim_suite_uses, run.id, uses, alpha=alpha)

    def _plan(self, suite: Suite, *, scoring: bool) -> SuitePlan:
        return SuitePlan(suite, self._config, self._key_prompt, self._model, scoring=scoring)

    def _target_plans(self, suites: SuiteSet) -> list[SuitePlan]:
        return [
            self._plan(suite, scoring=False)
            for suite in suites.suites
            if suite.role is SuiteRole.TARGET and not suite.sealed
        ]

    async def _answers(
        self, run: Run, tasks: list[_Task], on_progress: Progress, *, own_leases: int
    ) -> Answers:
        answers = await self._recalled(run, tasks)
        pending = deque(task for task in tasks if task.key not in answers)
        _RECALLED.inc(len(answers))
        on_progress(len(answers), len(tasks))

        async def work(index: int) -> None:
            while pending:
                if index >= self._allowed(own_leases):
                    await asyncio.sleep(self._timing.poll_s)
                    continue
                task = pending.popleft()
                record = await self._answerer.answer(run.id, task.question, task.who)
                await asyncio.to_thread(self._store.save_answer, task.key, record, run_id=run.id)
                answers[task.key] = record
                _ITEMS.labels(_outcome_label(task.question.suite, record)).inc()
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

    async def _recalled(self, run: Run, tasks: Sequence[_Task]) -> Answers:
        """Those that were had before, in this run or another."""
        wanted = {
            (task.who.identity, conditions)
            for task in tasks
            for conditions in (task.question.conditions, task.question.richer)
            if conditions
        }
        kept = {
            place: await asyncio.to_thread(self._store.recall_answers, *place, run_id=run.id)
            for place in sorted(wanted)
        }
        answers: Answers = {}
        for task in tasks:
            for conditions in (task.question.conditions, task.question.richer):
                found = kept.get((task.who.identity, conditions), {})
                record = found.get((task.question.item.id, task.question.sample))
                if record is not None:
                    answers[task.key] = record
                    break
        return answers

    def _allowed(self, own_leases: int) -> int:
        """Answers that may be in the engine now: users' completions take places first, to a point.

        The engine's priorities alone would keep users first in the queue; fewer answers beside them
        keep its steps short. A quarter of the places stays, or busy days would never see a verdict.
        """
        concurrency = self._config.concurrency
        users = self._routes.total_in_flight() - own_leases
        return min(concurrency, max(1, concurrency // 4, concurrency - users))

    def _tell(self, context: GateContext, measured: Iterable[SuiteMeasured]) -> None:
        num_greedy = 1 if self._config.greedy and self._config.temperature > 0.0 else 0
        for suite in measured:
            for arm in Arm:
                scores = None if suite.sealed else arm_scores(suite, arm, num_greedy=num_greedy)
                if scores is not None:
                    passes = " ".join(f"pass@{k}={p:.4f}" for k, p in scores.pass_at_k.items())
                    log.info(
                        "gate_scores run=%s suite=%s arm=%s items=%d avg@%d=%.4f %s",
                        *(context.run_id, suite.name, arm.value, scores.num_items),
                        *(scores.num_samples, scores.avg_at_k, passes),
                    )


def _paired_tasks(plans: Sequence[SuitePlan], arms: list[Respondent]) -> Iterable[_Task]:
    """Item by item, all arms beside each other; then what is asked with the reference."""
    for plan in plans:
        for item in plan.suite.items:
            for question in plan.questions(item):
                yield from (_Task(question, who) for who in arms)
            arms = [*arms[1:], arms[0]]
    for plan in plans:
        for item in plan.suite.items:
            told = plan.key_question(item)
            if told is not None:
                yield from (_Task(told, who) for who in arms)


def _items(plan: SuitePlan | None, arms: Arms, answers: Answers) -> tuple[ItemMeasured, ...]:
    """None: the suite was not asked."""
    if plan is None:
        return ()
    return tuple(_item(plan, item, arms, answers) for item in plan.suite.items)


def _item(plan: SuitePlan, item: SuiteItem, arms: Arms, answers: Answers) -> ItemMeasured:
    questions = plan.questions(item)
    told = plan.key_question(item)
    return ItemMeasured(
        id=item.id,
        answers={
            arm: tuple(answers[question.cached(who)] for question in questions)
            for arm, who in arms.items()
        },
        stratum=item.stratum,
        cluster=item.cluster,
        with_reference={}
        if told is None
        else {arm: answers[told.cached(who)] for arm, who in arms.items()},
    )


def _summary(plan: SuitePlan, who: Respondent, answers: Answers) -> Measurement:
    per_item = [
        [answers[question.cached(who)] for question in plan.questions(item)]
        for item in plan.suite.items
    ]
    judged = [known for some in per_item if (known := [a for a in some if a.solved is not None])]
    if not judged:
        raise StateError(
            f"none of the {sum(map(len, per_item))} answers of {who.name} to suite "
            f"{plan.suite.name!r} could be judged: the daemon's log names the reason of each "
            "(gate_item_error)"
        )
    return Measurement(
        suite=plan.suite.name,
        n=len(judged),
        accuracy=_mean([_mean([a.solved is True for a in known]) for known in judged]),
        tokens_mean=_mean([_mean([a.tokens for a in known]) for known in judged]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _outcome_label(suite: Suite, answer: AnswerRecord) -> str:
    if suite.sealed:
        return "sealed"
    if answer.solved is None:
        return "error"
    return "solved" if answer.solved else "unsolved"


async def _run_all(workers: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Runs them side by side; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
