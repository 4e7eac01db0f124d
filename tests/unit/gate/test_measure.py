"""What an evaluation measures beside right and wrong, and what it does not ask twice."""

import asyncio
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from gate_bench import CANDIDATE, INCUMBENT, RUN, Bench, right, wrong
from prometheus_client import REGISTRY

from opsd.daemon.config.gate import BehaviourConfig, GateConfig
from opsd.daemon.config.margins import MarginsConfig
from opsd.daemon.gate.decision import decide
from opsd.daemon.gate.inputs import decode, digest
from opsd.daemon.gate.judge import rules_of
from opsd.daemon.gate.questions import NUM_TOP
from opsd.daemon.gate.suites import SuiteSet
from opsd.daemon.types.engine import EngineRequest, FinishReason, ScoreRequest, TokenScore
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.measured import Arm, SuiteMeasured

NEXT_RUN = replace(RUN, id="next-run")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class FakeScorer:
    """An adapter gives one half to each of two tokens, base one and three quarters."""

    def __init__(self) -> None:
        self.requests: list[ScoreRequest] = []

    async def score(self, request: ScoreRequest) -> tuple[TokenScore, ...]:
        self.requests.append(request)
        await asyncio.sleep(0)
        p = 0.25 if request.adapter is None else 0.5
        top = {1: math.log(p), 2: math.log(1.0 - p)}
        return tuple(TokenScore(token, top) for token in request.answer_ids)


async def measured(bench: Bench, *, incumbent: bool = True) -> tuple[SuiteMeasured, ...]:
    return await bench.evaluator().measure_candidate(
        RUN, CANDIDATE, INCUMBENT if incumbent else None, bench.on_progress
    )


def behaviour(**values: object) -> BehaviourConfig:
    return BehaviourConfig.model_validate({"num_literacy_items": 0, **values})


async def test_base_answers_too_and_is_asked_once(bench: Bench) -> None:
    bench.config = bench.config.model_copy(update={"measure_base": True})
    first, _ = await measured(bench)
    assert bench.progress[-1] == (72, 72)
    assert all(set(item.answers) == set(Arm) for item in first.items)
    # Where base is the incumbent, there is no third arm.
    again, _ = await measured(bench, incumbent=False)
    assert all(set(i.answers) == {Arm.INCUMBENT, Arm.CANDIDATE} for i in again.items)
    assert len(bench.engine.requests) == 72


async def test_a_later_gate_asks_the_same_incumbent_nothing(bench: Bench) -> None:
    await bench.evaluate(INCUMBENT)
    bench.engine.requests.clear()
    other = replace(CANDIDATE, name="opsd-" + "d" * 16, sha256="d" * 64, lora_id=8)
    bench.engine.behaviours[other.name] = right
    bench.routes.loaded.add(other.name)
    report = await bench.evaluator().evaluate(NEXT_RUN, other, INCUMBENT, bench.on_progress)
    assert {r.adapter.name for r in bench.engine.requests if r.adapter} == {other.name}
    assert len(bench.engine.requests) == 24
    assert report.suites[0].only_candidate == 12
    assert bench.store.trims == 2


async def test_an_adapter_is_known_by_its_digest_not_by_its_role(bench: Bench) -> None:
    await bench.evaluate(INCUMBENT)
    bench.engine.requests.clear()
    # The candidate was promoted: what it answered then counts now.
    newer = replace(CANDIDATE, name="opsd-" + "e" * 16, sha256="e" * 64, lora_id=9)
    bench.engine.behaviours[newer.name] = right
    bench.routes.loaded.add(newer.name)
    await bench.evaluator().evaluate(NEXT_RUN, newer, CANDIDATE.handle(), bench.on_progress)
    assert {r.adapter.name for r in bench.engine.requests if r.adapter} == {newer.name}


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 32},
        {"enable_thinking": True},
        {"temperature": 0.5},
        {"behaviour": behaviour(markers=("well",))},
    ],
)
async def test_an_answer_counts_only_under_its_conditions(
    bench: Bench, change: dict[str, object]
) -> None:
    await bench.evaluate(INCUMBENT)
    bench.config = bench.config.model_copy(update=change)
    await bench.evaluate(INCUMBENT)
    assert len(bench.engine.requests) == 96


async def test_samples_and_seeds(bench: Bench) -> None:
    bench.config = bench.config.model_copy(
        update={"temperature": 0.7, "samples": 3, "greedy": True, "top_p": 0.9}
    )
    first, second = bench.suites.suites
    bench.suites = SuiteSet((first, replace(second, samples=1)), bench.suites.held_out)
    medium, easy = await measured(bench)
    assert {len(item.answers[Arm.CANDIDATE]) for item in medium.items} == {4}
    assert {len(item.answers[Arm.CANDIDATE]) for item in easy.items} == {2}
    per_prompt: dict[str, Counter[tuple[float, int | None]]] = {}
    for request in bench.engine.requests:
        drawn = (request.sampling.temperature, request.sampling.seed)
        per_prompt.setdefault(request.messages[0].content, Counter())[drawn] += 1
        assert request.sampling.top_p == (0.9 if request.sampling.temperature else 1.0)
    # Both arms draw with the same seeds, each of which occurs once an arm.
    assert all(set(draws.values()) == {2} for draws in per_prompt.values())
    assert all((0.0, None) in draws for draws in per_prompt.values())
    assert len(per_prompt["say medium-0"]) == 4
    # More samples: those that are there are kept.
    before = len(bench.engine.requests)
    bench.config = bench.config.model_copy(update={"samples": 4})
    await measured(bench)
    assert len(bench.engine.requests) - before == 24


async def test_text_is_measured(bench: Bench) -> None:
    answers = {
        "say medium-0": "Wait, maybe it is 4. Not sure!",
        "say medium-1": "I'm sorry, but I can’t help.",
        "say medium-2": "a b c d a b c d a b c d",
    }
    bench.engine.behaviours[CANDIDATE.name] = lambda request, attempt: answers.get(
        request.messages[0].content, "x"
    )
    bench.engine.finish = FinishReason.LENGTH
    suite, _ = await measured(bench)
    by_id = {item.id: item.answers[Arm.CANDIDATE][0] for item in suite.items}
    assert (by_id["0"].words, by_id["0"].markers, by_id["0"].refusal) == (7, 3, False)
    assert (by_id["1"].refusal, by_id["1"].markers) == (True, 0)
    assert by_id["2"].repetition == pytest.approx(5 / 9)
    assert all(record.truncated and record.formatted for record in by_id.values())


async def test_entropy_and_kl_of_a_part_of_the_items(bench: Bench) -> None:
    scorer = FakeScorer()
    bench.scorer = scorer
    bench.config = bench.config.model_copy(
        update={"measure_base": True, "behaviour": behaviour(num_kl_items=5)}
    )
    suites = await measured(bench)
    for suite in suites:
        scored = [i for i in suite.items if i.answers[Arm.CANDIDATE][0].entropy is not None]
        assert len(scored) == 5
        for item in scored:
            candidate, base = item.answers[Arm.CANDIDATE][0], item.answers[Arm.BASE][0]
            assert candidate.entropy == pytest.approx(math.log(2))
            kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
            assert candidate.kl_to_base == pytest.approx(kl)
            assert item.answers[Arm.INCUMBENT][0].kl_to_base == pytest.approx(kl)
            assert base.kl_to_base is None
            assert base.entropy == pytest.approx(0.5623, abs=1e-4)
    # Of each item: candidate and incumbent with base beside them, base alone.
    assert len(scorer.requests) == 2 * 5 * 5
    assert {request.num_top for request in scorer.requests} == {NUM_TOP}
    assert {request.answer_ids for request in scorer.requests} == {(1, 2)}
    assert min(request.priority for request in scorer.requests) > 0
    asked = len(bench.engine.requests)
    await measured(bench)
    assert len(bench.engine.requests) == asked
    # A curve's measurement needs no score and takes the answers that have one.
    await bench.measure(CANDIDATE.handle())
    assert len(bench.engine.requests) == asked
    assert len(scorer.requests) == 50
    # More items to score: only the added ones are asked again.
    bench.config = bench.config.model_copy(update={"behaviour": behaviour(num_kl_items=6)})
    bench.config = bench.config.model_copy(update={"measure_base": True})
    await measured(bench)
    assert len(bench.engine.requests) - asked == 2 * 3


async def test_literacy_is_asked_of_target_items_with_their_solution(bench: Bench) -> None:
    bench.config = bench.config.model_copy(
        update={"behaviour": BehaviourConfig(num_literacy_items=4)}
    )
    first, second = bench.suites.suites
    items = tuple(replace(item, solution=f"because {item.id}") for item in first.items)
    bench.suites = SuiteSet((replace(first, items=items), second), bench.suites.held_out)
    bench.engine.behaviours[INCUMBENT.name] = lambda request, attempt: (
        "medium-" + request.messages[0].content.rpartition("because ")[2].split("\n")[0]
    )
    medium, easy = await measured(bench)
    told = [item for item in medium.items if item.with_reference]
    assert len(told) == 4
    assert all(item.with_reference[Arm.INCUMBENT].solved for item in told)
    assert all(set(item.with_reference) == {Arm.INCUMBENT, Arm.CANDIDATE} for item in told)
    assert not any(item.with_reference for item in easy.items)
    asked = [r.messages[0].content for r in bench.engine.requests]
    keyed = [text for text in asked if "Reference solution: because" in text]
    assert len(keyed) == 8
    assert keyed[0].startswith("say medium-")
    assert keyed[0].endswith("Now solve it your own way.")


class TestSealed:
    @pytest.fixture
    def sealed(self, bench: Bench) -> Bench:
        first, second = bench.suites.suites
        bench.suites = SuiteSet(
            (replace(first, sealed=True, budget=2), second), bench.suites.held_out
        )
        bench.store.budgets["medium"] = 2
        bench.config = bench.config.model_copy(update={"behaviour": BehaviourConfig()})
        bench.scorer = FakeScorer()
        return bench

    async def test_its_report_has_no_number(self, sealed: Bench) -> None:
        report = await sealed.evaluate(INCUMBENT)
        suite = report.suites[0]
        assert suite.verdict is GateVerdict.PASS
        assert (suite.n, suite.candidate_accuracy, suite.difference, suite.strata) == (0, 0, 0, ())
        assert "%" not in suite.explanation

    async def test_nothing_of_it_is_logged_or_counted(
        self, sealed: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        sealed.engine.behaviours[CANDIDATE.name] = lambda request, attempt: (
            "error" if "medium-3" in request.messages[0].content else right(request, attempt)
        )

        def counted(outcome: str) -> float:
            return REGISTRY.get_sample_value("opsd_gate_answers_total", {"outcome": outcome}) or 0.0

        names = ("solved", "unsolved", "error", "sealed")
        before = {name: counted(name) for name in names}
        caplog.set_level("DEBUG")
        await sealed.evaluate(INCUMBENT)
        assert "gate_item_error run=run suite=medium" in caplog.text
        for secret in ("medium-3", "item=3", "timed out", "suite=medium arm"):
            assert secret not in caplog.text
        assert {name: counted(name) - before[name] for name in names} == {
            "solved": 12,
            "unsolved": 12,
            "error": 0,
            "sealed": 24,
        }
        assert sealed.verifier.private == {True: 25, False: 24}

    async def test_it_is_asked_for_correctness_alone(self, sealed: Bench) -> None:
        medium, _ = await measured(sealed)
        assert not any(item.with_reference for item in medium.items)
        assert all(item.answers[Arm.CANDIDATE][0].entropy is None for item in medium.items)
        assert not await sealed.measure(CANDIDATE.handle())
        assert sealed.evaluator().num_target_items() == 0

    async def test_a_spent_budget_is_inconclusive_and_asks_nothing(self, sealed: Bench) -> None:
        await sealed.evaluate(INCUMBENT)
        sealed.store.uses["medium", sealed.suites.suites[0].version].add("another")
        # The run that paid may look again; a new one may not.
        assert (await sealed.evaluate(INCUMBENT)).suites[0].verdict is GateVerdict.PASS
        sealed.engine.requests.clear()
        sealed.store.records.clear()
        report = await sealed.evaluator().evaluate(
            NEXT_RUN, CANDIDATE, INCUMBENT, sealed.on_progress
        )
        assert report.verdict is GateVerdict.INCONCLUSIVE
        assert "budget of 2 gates is spent" in report.suites[0].explanation
        assert not any("medium" in r.messages[0].content for r in sealed.engine.requests)

    async def test_the_use_is_counted_before_anything_is_asked(self, sealed: Bench) -> None:
        def look(request: EngineRequest, attempt: int) -> str:
            assert len(sealed.store.uses) == 2
            return wrong(request, attempt)

        sealed.engine.behaviours[INCUMBENT.name] = look
        await sealed.evaluate(INCUMBENT)


async def test_the_ledger_tells_how_often_the_items_were_used(bench: Bench) -> None:
    bench.store.earlier_uses = 3
    bench.store.budgets["easy"] = 1
    bench.store.uses["easy", bench.suites.suites[1].version] = {"another"}
    medium, easy = await measured(bench)
    assert (medium.num_uses, easy.num_uses) == (3, 0)
    # What is not used is not entered.
    assert bench.store.claimed == ["medium"]
    report = await bench.evaluate(INCUMBENT)
    assert report.suites[0].gate_number == 4


async def test_the_report_comes_out_again_of_the_inputs_that_were_kept(bench: Bench) -> None:
    bench.config = bench.config.model_copy(update={"margins": MarginsConfig()})
    bench.scorer = FakeScorer()
    report = await bench.evaluate(INCUMBENT)
    kept = bench.store.inputs[RUN.id]
    assert digest(kept) == report.gate_inputs_sha256
    assert decide(decode(kept)) == report
    assert {check.name for check in report.checks} >= {"markers", "drift_kl", "literacy"}


@pytest.mark.parametrize(
    ("literacy", "teacher", "required"),
    [
        ("auto", "base", False),
        ("auto", "ema", True),
        ("require", "base", True),
        ("report", "incumbent", False),
    ],
)
def test_an_adapter_that_is_to_teach_must_read(literacy: str, teacher: str, required: bool) -> None:
    config = GateConfig.model_validate({"margins": {"literacy": literacy, "markers_loss": 0.3}})
    rules = rules_of(config, teacher=teacher).behaviour
    assert (rules.literacy_required, rules.markers_loss) == (required, 0.3)


async def test_what_had_no_outcome_is_asked_again_by_another_run(bench: Bench) -> None:
    bench.engine.behaviours[CANDIDATE.name] = lambda request, attempt: "error"
    await bench.evaluate(INCUMBENT)
    asked = len(bench.engine.requests)
    await bench.evaluate(INCUMBENT)
    assert len(bench.engine.requests) == asked
    await bench.evaluator().evaluate(NEXT_RUN, CANDIDATE, INCUMBENT, bench.on_progress)
    assert len(bench.engine.requests) - asked == 24
