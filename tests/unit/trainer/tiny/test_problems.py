import random

import pytest

from opsd.trainer.tiny.problems import (
    EASY,
    HARD,
    LONG,
    MEDIUM,
    Operands,
    Phrasing,
    Problem,
    Split,
    Stratum,
    draw,
    draw_distinct,
    phrase,
)

EXAMPLE = Problem(61, (-40, -19))


def draw_many(seed: int, count: int = 300) -> list[Problem]:
    rng = random.Random(seed)
    return [draw(rng, rng.randint(1, 5), Operands.ANY) for _ in range(count)]


def test_the_example_of_the_study() -> None:
    assert EXAMPLE.expression == "61-40-19"
    assert EXAMPLE.totals == (21, 2)
    assert EXAMPLE.reference_solution() == "21, 2"
    assert EXAMPLE.worked_solution() == "61-40=21\n21-10=11\n11-9=2\nAnswer: 2"


def test_answers_agree_with_the_expression() -> None:
    for problem in draw_many(0):
        assert problem.answer == eval(problem.expression)
        assert all(1 <= total <= 99 for total in (problem.start, *problem.totals))


def test_each_worked_line_is_right_and_follows_from_the_last() -> None:
    for problem in draw_many(1):
        *lines, last = problem.worked_solution().split("\n")
        total = str(problem.start)
        for line in lines:
            left, right = line.split("=")
            assert left.startswith(total)
            assert eval(left) == int(right)
            total = right
        assert last == f"Answer: {total}" == f"Answer: {problem.answer}"


def test_a_story_tells_the_same_numbers_in_order() -> None:
    rng = random.Random(2)
    for problem in draw_many(2):
        words = phrase(problem, Phrasing.WORD, rng).replace(",", "").replace(".", "").split()
        numbers = [int(word) for word in words if word.isdigit()]
        assert numbers == [problem.start, *(abs(delta) for delta in problem.deltas)]


@pytest.mark.parametrize("stratum", [EASY, MEDIUM, HARD, LONG], ids=lambda s: s.name)
@pytest.mark.parametrize("split", list(Split))
def test_a_draw_keeps_to_its_stratum_and_split(stratum: Stratum, split: Split) -> None:
    for problem in draw_distinct(random.Random(3), stratum, split, 50, set()):
        has_two_digits = {abs(delta) >= 10 for delta in problem.deltas}
        expected = {
            Operands.ONE_DIGIT: {False},
            Operands.TWO_DIGIT: {True},
            Operands.MIXED: {False, True},
        }
        assert has_two_digits == expected[stratum.operands]
        assert len(problem.deltas) in stratum.num_operations
        assert problem.split is split


def test_splits_have_their_shares() -> None:
    problems = list(set(draw_many(4, 5000)))
    shares = {s: sum(p.split is s for p in problems) / len(problems) for s in Split}
    assert shares[Split.PRETRAIN] == pytest.approx(0.6, abs=0.03)
    assert shares[Split.OPSD] == pytest.approx(0.2, abs=0.03)
    assert shares[Split.HELDOUT] == pytest.approx(0.2, abs=0.03)


def test_drawn_problems_are_distinct_and_remembered() -> None:
    taken: set[Problem] = set()
    first = draw_distinct(random.Random(5), EASY, Split.HELDOUT, 100, taken)
    second = draw_distinct(random.Random(5), EASY, Split.HELDOUT, 100, taken)
    assert len({*first, *second}) == len(taken) == 200


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 operations"):
        draw(random.Random(6), 1, Operands.MIXED)
    with pytest.raises(ValueError, match="at least 1 operations"):
        draw(random.Random(6), 0, Operands.ANY)
