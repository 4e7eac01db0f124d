"""What is drawn follows the solve rates; what teaches nothing is set aside and comes back."""

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.conftest import OPTIM, PAIRS
from tests.unit.trainer.ranks import run_on_ranks
from tests.unit.trainer.support_server import serving

from opsd.trainer.curriculum import Curriculum
from opsd.trainer.data import Pair
from opsd.trainer.draws import Draws
from opsd.v1 import support_pb2, training_pb2

PROBLEMS = [Pair(f"p{n}", f"{n}?", "1") for n in range(8)]


def spec(**changes: Any) -> training_pb2.CurriculumSpec:
    fields = {
        "enabled": True,
        "min_attempts": 4,
        "too_easy": 1.0,
        "teacher_floor": 0.25,
        "revisit_epochs": 2,
    }
    return training_pb2.CurriculumSpec(**(fields | changes))


def drawn(curriculum: Curriculum, pairs: list[Pair], epochs: range) -> dict[int, set[str]]:
    return {e: {p.id for p in pairs if curriculum.accepts(p.id, e)} for e in epochs}


def test_an_easy_problem_is_set_aside_and_comes_back_with_a_clean_slate() -> None:
    curriculum = Curriculum(spec(), PROBLEMS, 0)
    for count in range(4):
        assert curriculum.accepts("p0", 0), f"after {count} attempts nothing is known yet"
        curriculum.record("p0", True, epoch=0)
    there = drawn(curriculum, PROBLEMS, range(5))
    assert ["p0" in there[epoch] for epoch in range(5)] == [False, False, False, True, True]
    assert all(there[epoch] >= {p.id for p in PROBLEMS[1:]} for epoch in range(5))
    assert curriculum.num_aside(0) == 1
    assert curriculum.num_aside(3) == 0


def test_one_failure_keeps_a_problem_below_too_easy() -> None:
    curriculum = Curriculum(spec(), PROBLEMS, 0)
    for solved in (True, True, False, True, True):
        curriculum.record("p0", solved, epoch=0)
    assert curriculum.num_aside(0) == 0
    lenient = Curriculum(spec(too_easy=0.75), PROBLEMS, 0)
    for solved in (True, True, False, True):
        lenient.record("p0", solved, epoch=0)
    assert lenient.num_aside(0) == 1


def test_a_problem_that_the_teacher_cannot_follow_is_set_aside() -> None:
    curriculum = Curriculum(spec(), PROBLEMS, 0)
    for _ in range(3):
        curriculum.record("p0", False, epoch=0)
        assert not curriculum.needs_teacher("p0")
    curriculum.record("p0", False, epoch=0)
    assert curriculum.needs_teacher("p0")
    for _ in range(3):
        curriculum.record_teacher("p0", False, epoch=0)
        assert curriculum.accepts("p0", 0) in (True, False)
    assert curriculum.num_aside(0) == 0
    curriculum.record_teacher("p0", False, epoch=0)
    assert curriculum.num_aside(0) == 1
    follows = Curriculum(spec(), PROBLEMS, 0)
    for _ in range(4):
        follows.record("p0", False, epoch=0)
    for solved in (True, False, False, False):
        follows.record_teacher("p0", solved, epoch=0)
    assert follows.num_aside(0) == 0
    assert not follows.needs_teacher("p0"), "it has shown that it can"


def test_the_band_that_teaches_is_drawn_most() -> None:
    pairs = [Pair(f"p{n}", f"{n}?", "1", attempts=20, solved=n) for n in (1, 10, 19)]
    curriculum = Curriculum(spec(), pairs, 0)
    counts = Counter(i for ids in drawn(curriculum, pairs, range(400)).values() for i in ids)
    assert counts["p10"] == 400
    for extreme in ("p1", "p19"):
        assert 80 < counts[extreme] < 160, "a quarter is the floor, 4 p (1 - p) a little more"


def test_earlier_runs_count_and_only_new_attempts_are_told() -> None:
    pairs = [Pair("old", "?", "1", attempts=3, solved=3)]
    curriculum = Curriculum(spec(), pairs, 0)
    assert curriculum.new_counts() == {}
    curriculum.record("old", True, epoch=5)
    assert curriculum.num_aside(5) == 1
    assert curriculum.new_counts() == {"old": (1, 1)}


def test_without_it_everything_is_drawn_but_counted() -> None:
    curriculum = Curriculum(spec(enabled=False), PROBLEMS, 0)
    for _ in range(9):
        curriculum.record("p0", True, epoch=0)
    assert curriculum.accepts("p0", 0)
    assert not curriculum.needs_teacher("p1")
    assert curriculum.new_counts() == {"p0": (9, 9)}


def test_its_state_goes_through_a_checkpoint() -> None:
    one = Curriculum(spec(), PROBLEMS, 0)
    for n in range(6):
        one.record("p0", True, 0)
        one.record("p1", n % 2 == 0, 0)
        one.record_teacher("p2", False, 0)
    other = Curriculum(spec(), PROBLEMS, 0)
    other.restore(one.state())
    assert other.new_counts() == one.new_counts()
    assert drawn(other, PROBLEMS, range(9)) == drawn(one, PROBLEMS, range(9))


def test_draws_go_on_when_everything_is_set_aside() -> None:
    curriculum = Curriculum(spec(revisit_epochs=1000), PROBLEMS[:2], 0)
    for pair in PROBLEMS[:2]:
        for _ in range(4):
            curriculum.record(pair.id, True, 0)
    taken = Draws(PROBLEMS[:2], 0, curriculum, lambda pair: True).take(3)
    assert len(taken) == 3


def test_a_run_draws_by_it_and_resumes_by_it(
    make_run: Callable[..., Path],
    train: Callable[[Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rule(attempt: Any) -> Any:
        # A hard problem is solved now and then, so that it stays in the band that teaches.
        lucky = zlib.crc32(attempt.text.encode()) % 2 == 0
        return support_pb2.AttemptVerdict(passed=attempt.reference == "easy" or lucky)

    pairs = [
        pair | {"reference": "easy" if index < 5 else "hard"} for index, pair in enumerate(PAIRS)
    ]
    with serving(tmp_path, rule) as (address, verifiers):
        settings = {
            "pairs": pairs,
            "support": {"address": address},
            "curriculum": {"enabled": True, "min_attempts": 2, "revisit_epochs": 50},
            "optim": OPTIM | {"num_steps": 12, "problems_per_step": 5},
            "checkpoint_every_steps": 5,
        }
        whole = train(make_run("whole", **settings))
        assert whole.status == 0, whole.result.error
        students = [a for a in verifiers.asked if a.reference == "easy"]
        # Each easy problem twice and then never again, but for draws of one and the same step.
        assert 10 <= len(students) <= 12
        run_json = make_run("cut", **settings)
        monkeypatch.setenv("OPSD_TRAINER_FAILPOINT", "nan-at-step:7")
        assert train(run_json).status == 1
        monkeypatch.delenv("OPSD_TRAINER_FAILPOINT")
        assert train(run_json).adapter == whole.adapter
    rates = (whole.run_dir / "solve-rates.json").read_text()
    assert rates == (run_json.parent / "solve-rates.json").read_text()
    notes = [event.message for event in whole.events if event.kind == "step"]
    assert "problems are set aside" in notes[-1]


def test_ranks_share_the_teachers_attempts_and_learn_the_same(
    make_run: Callable[..., Path], train: Callable[[Path], Any], tmp_path: Path
) -> None:
    def rule(attempt: Any) -> Any:
        return support_pb2.AttemptVerdict(passed=zlib.crc32(attempt.text.encode()) % 4 == 0)

    settings: dict[str, Any] = {
        "curriculum": {"enabled": True, "min_attempts": 1, "revisit_epochs": 1},
        "optim": OPTIM | {"num_steps": 3, "problems_per_step": 4, "micro_batch_size": 1},
    }
    asked, rates = [], []
    for num_processes in (1, 2):
        (tmp_path / str(num_processes)).mkdir()
        with serving(tmp_path / str(num_processes), rule) as (address, verifiers):
            run_json = make_run(
                f"on-{num_processes}",
                support={"address": address},
                num_processes=num_processes,
                **settings,
            )
            if num_processes == 1:
                assert train(run_json).status == 0
            else:
                run_on_ranks(num_processes, [run_json])
        asked.append(sorted((attempt.reference, attempt.text) for attempt in verifiers.asked))
        rates.append((run_json.parent / "solve-rates.json").read_text())
    assert len(asked[0]) > 3 * 4, "no teacher was asked"
    assert asked[1] == asked[0]
    assert rates[1] == rates[0]
