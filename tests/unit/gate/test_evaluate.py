"""The evaluator against an engine, a verifier and a store made of plain Python."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gate_bench import CANDIDATE, INCUMBENT, Bench, right, wrong

from opsd.daemon.errors import (
    ConfigError,
    EngineError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from opsd.daemon.gate.answers import PRIORITY
from opsd.daemon.gate.suites import SuiteSet
from opsd.daemon.types.engine import EngineChunk, EngineRequest, FinishReason
from opsd.daemon.types.gate import GateVerdict, Measurement


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_both_adapters_answer_every_item(bench: Bench) -> None:
    report = await bench.evaluate(INCUMBENT)
    assert report.verdict is GateVerdict.PASS
    assert (report.run_id, report.candidate, report.incumbent) == (
        "run",
        CANDIDATE.name,
        INCUMBENT.name,
    )
    assert [(s.name, s.n, s.only_candidate, s.num_errors) for s in report.suites] == [
        ("medium", 12, 12, 0),
        ("easy", 12, 12, 0),
    ]
    assert set(bench.engine.asked.values()) == {1}
    assert len(bench.engine.requests) == bench.store.saves == 48
    assert bench.progress[0] == (0, 48)
    assert [done for done, _ in bench.progress] == list(range(49))
    assert report.suites[0].suite_sha256 == bench.suites.suites[0].sha256
    assert report.started_unix_s <= report.finished_unix_s


async def test_requests_are_greedy_low_priority_and_chat(bench: Bench) -> None:
    await bench.evaluate()
    assert len({request.request_id for request in bench.engine.requests}) == 48
    for request in bench.engine.requests:
        assert request.priority == PRIORITY > 0
        assert request.sampling.temperature == 0.0
        assert request.sampling.max_tokens == 64
        assert request.prompt is None
        assert [message.role for message in request.messages] == ["user"]
        assert request.adapter in (None, CANDIDATE.handle())
    assert bench.engine.peak == 4


async def test_sampling_seeds_are_shared_within_a_pair(bench: Bench) -> None:
    bench.config = bench.config.model_copy(update={"temperature": 0.7})
    await bench.evaluate()
    seeds: dict[str, set[int | None]] = {}
    for request in bench.engine.requests:
        seeds.setdefault(request.messages[0].content, set()).add(request.sampling.seed)
    assert all(len(values) == 1 and None not in values for values in seeds.values())
    assert len({values.pop() for values in seeds.values()}) == 24


async def test_answers_to_an_item_are_neighbours_in_alternating_order(bench: Bench) -> None:
    bench.config = bench.config.model_copy(update={"concurrency": 1})
    await bench.evaluate(INCUMBENT)
    asked = [
        (request.messages[0].content, request.adapter.name if request.adapter else "base")
        for request in bench.engine.requests
    ]
    couples = [asked[i : i + 2] for i in range(0, len(asked), 2)]
    assert all(first[0] == second[0] and first[1] != second[1] for first, second in couples)
    assert {couple[0][1] for couple in couples[::2]} == {INCUMBENT.name}
    assert {couple[0][1] for couple in couples[1::2]} == {CANDIDATE.name}


async def test_leases_are_held_throughout_and_given_back(bench: Bench) -> None:
    def check(request: EngineRequest, attempt: int) -> str:
        assert bench.routes.held[CANDIDATE.name] == bench.routes.held[INCUMBENT.name] == 1
        return right(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = check
    await bench.evaluate(INCUMBENT)
    assert bench.routes.held.total() == 0
    bench.routes.loaded.remove(CANDIDATE.name)
    with pytest.raises(NotFoundError, match="not loaded"):
        await bench.evaluate(INCUMBENT)


@pytest.mark.parametrize(("users", "peak"), [(0, 8), (3, 5), (100, 2)])
async def test_users_take_places_but_not_all(tmp_path: Path, users: int, peak: int) -> None:
    bench = Bench(tmp_path)
    bench.config = bench.config.model_copy(update={"concurrency": 8})
    bench.routes.users = users
    assert (await bench.evaluate()).verdict is GateVerdict.PASS
    assert bench.engine.peak == peak


async def test_an_interrupted_evaluation_goes_on(bench: Bench) -> None:
    stop = asyncio.Event()

    def interrupt(request: EngineRequest, attempt: int) -> str:
        if bench.store.saves >= 10:
            stop.set()
        return right(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = interrupt
    task = asyncio.create_task(bench.evaluate())
    await stop.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.engine.in_flight == 0
    assert bench.routes.held.total() == 0
    saved, asked = bench.store.saves, len(bench.engine.requests)
    assert 10 <= saved < 48
    bench.engine.behaviours[CANDIDATE.name] = right
    bench.progress.clear()
    report = await bench.evaluate()
    assert bench.progress[0] == (saved, 48)
    assert len(bench.engine.requests) - asked == 48 - saved
    assert report.verdict is GateVerdict.PASS
    assert report.suites[0].n == 12


async def test_outcomes_had_under_other_conditions_do_not_count(bench: Bench) -> None:
    await bench.evaluate()
    bench.config = bench.config.model_copy(update={"max_tokens": 32})
    bench.progress.clear()
    await bench.evaluate()
    assert bench.progress[0] == (0, 48)


async def test_an_engine_error_is_tried_once_more(bench: Bench) -> None:
    def fails_at_first(request: EngineRequest, attempt: int) -> str:
        if attempt == 0:
            raise EngineError("hiccup")
        return right(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = fails_at_first
    report = await bench.evaluate()
    assert report.verdict is GateVerdict.PASS
    assert all(suite.num_errors == 0 for suite in report.suites)


async def test_an_item_that_fails_twice_has_no_outcome(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fails_on_one(request: EngineRequest, attempt: int) -> str:
        if request.messages[0].content == "say medium-3":
            raise EngineError("broken")
        return right(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = fails_on_one
    report = await bench.evaluate()
    assert [suite.num_errors for suite in report.suites] == [1, 0]
    assert report.suites[0].n == 11
    assert bench.engine.asked[CANDIDATE.name, "say medium-3"] == 2
    assert [record.solved for record, _ in bench.store.records.values()].count(None) == 1
    assert "item=3" in caplog.text
    assert "broken" in caplog.text


async def test_a_refused_prompt_is_not_tried_again(bench: Bench) -> None:
    def refuse(request: EngineRequest, attempt: int) -> str:
        if request.messages[0].content == "say easy-0":
            raise InvalidInputError("prompt too long")
        return right(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = refuse
    report = await bench.evaluate()
    assert report.suites[1].num_errors == 1
    assert bench.engine.asked[CANDIDATE.name, "say easy-0"] == 1


async def test_an_answer_that_never_comes_is_an_item_error(bench: Bench) -> None:
    original = bench.engine.generate

    async def hang(request: EngineRequest) -> AsyncIterator[EngineChunk]:
        if request.messages[0].content == "say easy-0":
            await asyncio.sleep(3600)
        async for chunk in original(request):
            yield chunk

    bench.engine.generate = hang  # type: ignore[method-assign]
    bench.answer_timeout_s = 0.02
    report = await bench.evaluate()
    assert report.suites[1].num_errors == 1
    assert report.suites[1].n == 11


async def test_verifier_errors_are_tried_once_more_then_left_out(bench: Bench) -> None:
    def odd(request: EngineRequest, attempt: int) -> str:
        return {"say easy-1": "flaky", "say easy-2": "error"}.get(
            request.messages[0].content, right(request, attempt)
        )

    bench.engine.behaviours[CANDIDATE.name] = odd
    report = await bench.evaluate()
    assert report.suites[1].num_errors == 1
    assert bench.verifier.seen["flaky"] == bench.verifier.seen["error"] == 2
    assert report.suites[1].only_candidate == 10


async def test_many_errors_are_inconclusive(bench: Bench) -> None:
    def broken(request: EngineRequest, attempt: int) -> str:
        raise EngineError("broken")

    bench.engine.behaviours[CANDIDATE.name] = broken
    report = await bench.evaluate()
    assert report.verdict is GateVerdict.INCONCLUSIVE
    assert "12 of 12 items have no outcome" in report.explanation


async def test_an_engine_that_comes_back_costs_no_item(bench: Bench) -> None:
    def dies(request: EngineRequest, attempt: int) -> str:
        if attempt == 0 and bench.store.saves >= 5 and bench.engine.health_checks == 0:
            bench.engine.healthy = False
        if not bench.engine.healthy:
            raise EngineError("engine died")
        return right(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = dies
    report = await bench.evaluate()
    assert bench.engine.health_checks > 3
    assert report.verdict is GateVerdict.PASS
    assert all(suite.num_errors == 0 for suite in report.suites)


async def test_an_engine_that_stays_down_stops_the_evaluation(bench: Bench) -> None:
    def dead(request: EngineRequest, attempt: int) -> str:
        bench.engine.healthy = False
        bench.engine.health_checks = -1_000_000
        raise EngineError("engine died")

    bench.engine.behaviours[CANDIDATE.name] = dead
    bench.recovery_timeout_s = 0.02
    with pytest.raises(EngineError, match=r"stayed down.*engine died.*answers so far are kept"):
        await bench.evaluate()
    assert bench.routes.held.total() == 0


async def test_an_evaluation_that_takes_too_long_fails(bench: Bench) -> None:
    bench.engine.delay_s = 3600.0
    bench.config = bench.config.model_copy(update={"timeout_s": 0.02})
    with pytest.raises(StateError, match=r"gate.timeout_s \(0.02 s\) with 0 of 48 answers"):
        await bench.evaluate()
    assert bench.engine.in_flight == 0


async def test_a_suite_that_changed_is_refused(bench: Bench) -> None:
    bench.suites.suites[1].path.write_text("other")
    with pytest.raises(ConfigError, match="suite 'easy' changed"):
        await bench.evaluate()
    assert bench.engine.requests == []


async def test_the_incumbent_is_not_its_own_candidate(bench: Bench) -> None:
    with pytest.raises(StateError, match="serves already"):
        await bench.evaluate(CANDIDATE.handle())


async def test_truncated_answers_are_counted(bench: Bench) -> None:
    bench.engine.finish = FinishReason.LENGTH
    report = await bench.evaluate()
    assert "incumbent 12, candidate 12" in report.suites[0].explanation


async def test_without_suites_nothing_is_proven(bench: Bench) -> None:
    bench.suites = SuiteSet((), {})
    report = await bench.evaluate()
    assert report.verdict is GateVerdict.INCONCLUSIVE
    assert "add [[gate.suites]] entries" in report.explanation
    assert bench.progress == [(0, 0)]


async def test_one_adapter_alone_is_measured_on_the_target_suites(bench: Bench) -> None:
    def half(request: EngineRequest, attempt: int) -> str:
        assert bench.routes.held == {CANDIDATE.name: 1}
        number = int(request.messages[0].content.rpartition("-")[2])
        return right(request, attempt) if number % 2 else wrong(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = half
    found = await bench.measure(CANDIDATE.handle())
    assert found == [Measurement("medium", 12, 0.5, 2.0)]
    assert bench.evaluator().num_target_items() == len(bench.engine.requests) == 12
    assert {request.priority for request in bench.engine.requests} == {PRIORITY}
    assert bench.progress[-1] == (12, 12)
    assert bench.routes.held.total() == 0


async def test_what_the_evaluation_asked_is_not_asked_again(bench: Bench) -> None:
    await bench.evaluate()
    asked = len(bench.engine.requests)
    assert [m.accuracy for m in await bench.measure(CANDIDATE.handle())] == [1.0]
    assert [m.accuracy for m in await bench.measure(None)] == [0.0]
    assert len(bench.engine.requests) == asked


async def test_a_measurement_leaves_room_for_users(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.config = bench.config.model_copy(update={"concurrency": 8})
    bench.routes.users = 3
    await bench.measure(CANDIDATE.handle())
    assert bench.engine.peak == 5


async def test_items_without_an_outcome_are_left_out_of_a_measurement(bench: Bench) -> None:
    def refuse(request: EngineRequest, attempt: int) -> str:
        if request.messages[0].content == "say medium-0":
            raise InvalidInputError("prompt too long")
        return right(request, attempt)

    bench.engine.behaviours[CANDIDATE.name] = refuse
    assert await bench.measure(CANDIDATE.handle()) == [Measurement("medium", 11, 1.0, 2.0)]

    def refuse_all(request: EngineRequest, attempt: int) -> str:
        raise InvalidInputError("prompt too long")

    bench.engine.behaviours["base"] = refuse_all
    with pytest.raises(StateError, match="none of the 12 answers of base to suite 'medium'"):
        await bench.measure(None)
