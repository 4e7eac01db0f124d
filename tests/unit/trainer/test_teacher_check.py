"""The check before a run: who may teach, and who may not."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.support_server import Verifiers, serving

from opsd.trainer.errors import TeacherCheckError
from opsd.trainer.teacher_check import judge, require_passed
from opsd.v1 import support_pb2, training_pb2

MakeRun = Callable[..., Path]
Train = Callable[[Path], Any]


def report(**changes: Any) -> training_pb2.TeacherCheckReport:
    fields: dict[str, Any] = {
        "accuracy_with": 0.9,
        "accuracy_without": 0.4,
        "divergence_true": 0.2,
        "divergence_other": 0.5,
        "content_divergence": 0.2,
    }
    made = training_pb2.TeacherCheckReport(num_problems=64, **(fields | changes))
    judge(made, training_pb2.TeacherCheckSpec(min_gain=0.02, min_content_share=0.1), 64)
    return made


def test_a_teacher_that_reads_and_says_something_passes() -> None:
    assert report().passed
    require_passed(report())
    assert "accuracy 90.0% with the context and 40.0% without" in report().explanation


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"accuracy_with": 0.41}, "cannot make use of its context: it gains +1.0%"),
        ({"accuracy_with": 0.1}, "cannot make use of its context: it gains -30.0%"),
        ({"content_divergence": 0.019}, "style only: what the context says makes up 9.5%"),
    ],
)
def test_who_cannot_is_stopped_with_the_numbers(changes: dict[str, float], reason: str) -> None:
    made = report(**changes)
    assert not made.passed
    assert reason in made.explanation
    assert "on 64 problems" in made.explanation
    with pytest.raises(TeacherCheckError, match=r"style only|cannot make use"):
        require_passed(made)


def test_where_nothing_is_left_to_gain_no_gain_is_asked_for() -> None:
    assert report(accuracy_with=0.99, accuracy_without=0.99).passed
    assert not report(accuracy_with=0.97, accuracy_without=0.97).passed


def test_a_teacher_without_anything_to_read_is_stopped() -> None:
    made = report()
    judge(made, training_pb2.TeacherCheckSpec(), 0)
    assert not made.passed
    assert "nothing to read" in made.explanation


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[dict[str, str], Verifiers]]:
    def all_pass(attempt: Any) -> Any:
        return support_pb2.AttemptVerdict(passed=True)

    with serving(tmp_path, all_pass) as (address, verifiers):
        yield {"address": address}, verifiers


def checked(make_run: MakeRun, train: Train, name: str, **changes: Any) -> Any:
    check = {"num_problems": 6, "min_gain": 0.02, "min_content_share": 0.05}
    return train(make_run(name, teacher_check=check, **changes))


def test_a_run_is_checked_once_and_trains_as_if_it_were_not(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers]
) -> None:
    support, verifiers = daemon
    outcome = checked(make_run, train, "checked", support=support)
    assert outcome.status == 0, outcome.result.error
    [event] = [event for event in outcome.events if event.kind == "teacher_check"]
    assert event.teacher_check == outcome.result.teacher_check
    found = event.teacher_check
    assert (found.num_problems, found.accuracy_with, found.accuracy_without) == (6, 1, 1)
    assert min(found.divergence_true, found.divergence_other, found.content_divergence) > 0
    assert len(verifiers.asked) == 12
    assert train(make_run("plain", support=support)).adapter == outcome.adapter


def test_a_teacher_that_fails_stops_the_run_before_its_first_step(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers]
) -> None:
    support, verifiers = daemon
    verifiers.rule = lambda attempt: support_pb2.AttemptVerdict(passed=False)
    outcome = checked(make_run, train, "fails", support=support)
    assert outcome.status == 1
    assert outcome.result.error.startswith("TeacherCheckError: the teacher cannot make use")
    assert not outcome.result.teacher_check.passed
    assert not [event for event in outcome.events if event.kind == "step"]


def test_contexts_that_are_all_the_same_are_style_only(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers]
) -> None:
    from tests.unit.trainer.conftest import PAIRS

    support, _ = daemon
    pairs = [pair | {"solution": "be brief"} for pair in PAIRS]
    outcome = checked(make_run, train, "style", support=support, pairs=pairs)
    assert "style only: what the context says makes up 0.0%" in outcome.result.error


def test_the_check_needs_a_daemon_and_a_teacher(make_run: MakeRun, train: Train) -> None:
    error = checked(make_run, train, "alone").result.error
    assert "support.address" in error
    assert "teacher_check.num_problems needs verdicts" in error
    outcome = checked(make_run, train, "sft", objective={"method": "METHOD_SFT"})
    assert outcome.status == 0, "nobody teaches there"
