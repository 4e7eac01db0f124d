"""What a group of verified attempts gives the teacher to read."""

from typing import Any

from opsd.trainer.attempts import Attempt, Outcome
from opsd.trainer.contexts import NO_MATERIAL, Material
from opsd.trainer.data import Pair
from opsd.trainer.methods.materials import WRONG, Materials
from opsd.trainer.rollout import Rollout
from opsd.trainer.support import Verdict
from opsd.v1 import training_pb2

PAIR = Pair("p", "9-5-2", "4, 2", reference="2", verifier="numeric")


def materials(method: str = "SDPO", **prompt: Any) -> Materials:
    return Materials(
        training_pb2.RunSpec(
            objective=training_pb2.ObjectiveSpec(
                method=training_pb2.Method.Value(f"METHOD_{method}")
            ),
            rollout=training_pb2.RolloutSpec(rollouts_per_problem=3),
            prompt=training_pb2.PromptSpec(**prompt),
        )
    )


def group(
    *answers: tuple[str, Verdict], first: int = 3, truncated: bool = False
) -> tuple[list[Attempt], dict[int, Outcome]]:
    attempts = [
        Attempt(first + n, PAIR, (1,), Rollout((2,), truncated), text, verdict)
        for n, (text, verdict) in enumerate(answers)
    ]
    outcomes = {
        a.stream: Outcome(a.stream, "p", a.text, a.verdict, truncated)
        for a in attempts
        if a.verdict is not None
    }
    return attempts, outcomes


PASS, FAIL = Verdict(True), Verdict(False, evidence="line 3: division by zero")


def test_a_failed_attempt_reads_a_correct_one_and_its_own_feedback() -> None:
    attempts, outcomes = group((" 9-5=4, 4-2=2\n", PASS), ("9-5=3", FAIL), ("no", FAIL))
    made = [materials().of(attempt, outcomes) for attempt in attempts]
    assert made[1] == made[2] == Material("9-5=4, 4-2=2", "line 3: division by zero")
    assert made[0] == Material(), "the only correct attempt has nobody to learn from"


def test_a_correct_attempt_reads_another_correct_one_but_not_its_own_text() -> None:
    attempts, outcomes = group(("a", PASS), ("a ", PASS), ("b", PASS))
    made = [materials().of(attempt, outcomes).own_trace for attempt in attempts]
    assert made == ["b", "b", "a"]


def test_a_truncated_attempt_is_no_example() -> None:
    attempts, outcomes = group(("a", PASS), ("b", FAIL), truncated=True)
    assert materials().of(attempts[1], outcomes).own_trace == ""


def test_other_problems_attempts_are_not_read() -> None:
    _, others = group(("a", PASS), ("b", PASS), ("c", PASS), first=0)
    attempts, outcomes = group(("d", FAIL))
    assert materials().of(attempts[0], outcomes | others).own_trace == ""


def test_feedback_that_tells_the_reference_is_withheld() -> None:
    for evidence, told in (
        ("'27' ≠ '2'", WRONG),
        ("2", WRONG),
        ("", WRONG),
        ("'27' is not prime", "'27' is not prime"),
    ):
        attempts, outcomes = group(("27", Verdict(False, evidence=evidence)))
        assert materials().of(attempts[0], outcomes).feedback == told


def test_a_verdict_of_error_gives_no_feedback() -> None:
    attempts, outcomes = group(("27", Verdict(False, is_error=True, evidence="timed out")))
    assert materials().of(attempts[0], outcomes) == Material()


def test_a_trace_is_put_into_a_form_that_is_read() -> None:
    text = "<think>9-5=4? yes</think>\n9-5=4\n4-2=2\nAnswer: 2"
    assert materials().readable(text) == "9-5=4\n4-2=2\nAnswer: 2"
    assert materials(own_trace_pattern=r"=(\d+)").readable(text) == "4, 2"
    assert materials(own_trace_pattern=r"\d-\d").readable(text) == "9-5, 4-2"


def test_a_method_that_reads_no_attempts_gets_none() -> None:
    attempts, outcomes = group(("a", PASS), ("b", FAIL))
    assert materials("OPSD").of(attempts[1], outcomes) is NO_MATERIAL
