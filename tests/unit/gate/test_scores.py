"""avg@k and pass@k."""

import itertools

import pytest

from opsd.daemon.gate.scores import arm_scores, pass_at_k
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (4, 3, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_answer(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_refuses_nonsense() -> None:
    for n, c, k in ((3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)):
        with pytest.raises(ValueError, match="need 0 <= c"):
            pass_at_k(n, c, k)


def suite(*outcomes: str) -> SuiteMeasured:
    """ "+" solved, "-" not, "?" cannot be told; one text an item."""
    kinds = {"+": True, "-": False, "?": None}
    items = tuple(
        ItemMeasured(
            id=str(number),
            answers={Arm.CANDIDATE: tuple(AnswerRecord(kinds[sign], 1) for sign in text)},
        )
        for number, text in enumerate(outcomes)
    )
    return SuiteMeasured("s", "1", "0" * 64, SuiteRole.TARGET, 0.0, items)


def test_scores_of_an_arm() -> None:
    scores = arm_scores(suite("++--", "----", "+?+-"), Arm.CANDIDATE)
    assert scores is not None
    assert (scores.num_items, scores.num_samples) == (3, 4)
    assert scores.avg_at_k == pytest.approx((0.5 + 0.0 + 2 / 3) / 3)
    assert list(scores.pass_at_k) == [1, 2, 4]
    assert scores.pass_at_k[1] == pytest.approx(scores.avg_at_k)
    assert scores.pass_at_k[4] == 0.5
    assert scores.greedy is None


def test_greedy_answers_are_kept_apart() -> None:
    scores = arm_scores(suite("+--", "-++"), Arm.CANDIDATE, num_greedy=1)
    assert scores is not None
    assert (scores.greedy, scores.avg_at_k, scores.num_samples) == (0.5, 0.5, 2)
    alone = arm_scores(suite("+", "-"), Arm.CANDIDATE, num_greedy=1)
    assert alone is not None
    assert (alone.greedy, alone.avg_at_k) == (0.5, 0.5)


def test_nothing_measured_has_no_score() -> None:
    assert arm_scores(suite("+"), Arm.BASE) is None
    assert arm_scores(suite("?"), Arm.CANDIDATE) is None
