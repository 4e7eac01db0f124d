"""The arithmetic of comparisons."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.cli.compare.results import (
    NOT_REACHED,
    Outcome,
    Point,
    TeacherCheck,
    crossing,
    pool,
    summarise,
    tokens_to,
    weighted_mean,
)

accuracies = st.floats(0.0, 1.0)


@st.composite
def curves(draw: st.DrawFn) -> list[tuple[float, float]]:
    xs = draw(st.lists(st.floats(0.0, 1e9), min_size=1, max_size=12).map(sorted))
    return [(x, draw(accuracies)) for x in xs]


@pytest.mark.parametrize(
    ("points", "target", "expected"),
    [
        ([(0, 0.2), (100, 0.7), (200, 0.9)], 0.8, 150.0),
        ([(0, 0.2), (100, 0.8)], 0.8, 100.0),
        ([(0, 0.9), (100, 0.1)], 0.8, 0.0),
        ([(0, 0.2), (100, 0.9), (200, 0.1), (300, 1.0)], 0.55, 50.0),
        ([(0, 0.2), (0, 0.9)], 0.8, 0.0),  # nothing was generated
        ([(0, 0.2), (100, 0.79)], 0.8, NOT_REACHED),
        ([], 0.8, NOT_REACHED),
    ],
)
def test_crossings(points: list[tuple[float, float]], target: float, expected: float) -> None:
    assert crossing(points, target) == pytest.approx(expected)


@given(curves(), accuracies)
def test_a_crossing_lies_between_the_points_around_it(
    points: list[tuple[float, float]], target: float
) -> None:
    found = crossing(points, target)
    if max(y for _, y in points) < target:
        assert found == NOT_REACHED
        return
    first = next(index for index, (_, y) in enumerate(points) if y >= target)
    low = points[first - 1][0] if first else points[0][0]
    assert low <= found <= points[first][0]


@given(curves(), accuracies, accuracies)
def test_a_higher_target_is_never_reached_earlier(
    points: list[tuple[float, float]], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert crossing(points, low) <= crossing(points, high) * (1 + 1e-9)


@given(st.lists(st.tuples(accuracies, st.integers(0, 1000)), max_size=8))
def test_a_weighted_mean_is_among_its_values(values: list[tuple[float, int]]) -> None:
    found = weighted_mean(values)
    weighed = [value for value, weight in values if weight]
    if not weighed:
        assert found is None
    else:
        assert found is not None
        assert min(weighed) - 1e-9 <= found <= max(weighed) + 1e-9


def test_suites_are_pooled_by_their_items_in_the_order_of_steps() -> None:
    found = pool(
        [
            Point(20, 200, 2.0, 0.5, 100),
            Point(0, 0, 0.0, 0.0, 100),
            Point(0, 0, 0.0, 1.0, 300),
        ]
    )
    assert found == (Point(0, 0, 0.0, 0.75, 400), Point(20, 200, 2.0, 0.5, 100))
    assert all(one.step < other.step for one, other in pairwise(found))


def an_outcome(
    method: str = "opsd",
    seed: int | None = 1,
    *,
    after: float | None = 0.9,
    reached_at: int = 100,
    tokens: int = 1000,
    check: bool | None = None,
) -> Outcome:
    """From 0.4 to ``after``; the curve is at 0.8 after ``reached_at`` tokens."""
    points = (
        Point(0, 0, 0.0, 0.4, 10),
        Point(5, reached_at, 30.0, 0.8, 10),
        Point(10, tokens, 60.0, after or 0.0, 10),
    )
    return Outcome(
        method=method,
        seed=seed,
        run_id=f"{method}-{seed}",
        state="rejected" if after is not None else "failed",
        verdict="pass" if after is not None else "",
        error="" if after is not None else "the trainer died",
        before=0.4 if after is not None else None,
        after=after,
        guards={"easy": -0.01 * (seed or 0)} if after is not None else {},
        generated_tokens=tokens,
        train_s=60.0 if after is not None else None,
        curve=points if after is not None else (),
        teacher_check=None if check is None else TeacherCheck(0.9, 0.3, check),
    )


def test_a_summary_says_what_its_runs_have_in_common() -> None:
    runs = [an_outcome(seed=seed, reached_at=100 * seed, check=seed < 3) for seed in (1, 2, 3)]
    [found] = summarise(runs, 0.8)
    assert (found.method, found.seeds, found.outcomes) == ("opsd", (1, 2, 3), {"pass": 3})
    assert found.before == pytest.approx(0.4)
    assert found.after == pytest.approx(0.9)
    assert found.after_each == (0.9, 0.9, 0.9)
    assert found.guards == {"easy": pytest.approx(-0.02)}
    assert found.tokens_to_target == 200
    assert found.seconds_to_target == 30
    assert (found.num_reached, found.num_measured) == (3, 3)
    assert found.gain_per_million_tokens == pytest.approx(0.5 / 1e-3)
    assert found.gain_per_minute == pytest.approx(0.5)
    assert found.teacher_check is not None
    assert found.teacher_check.accuracy_with == pytest.approx(0.9)
    assert not found.teacher_check.passed


def test_methods_stay_in_order_and_apart() -> None:
    runs = [an_outcome("grpo"), an_outcome("opsd"), an_outcome("grpo", 2, tokens=4000)]
    found = summarise(runs, 0.8)
    assert [(s.method, s.generated_tokens) for s in found] == [("grpo", 2500.0), ("opsd", 1000.0)]


def test_a_failed_run_is_counted_and_takes_part_in_no_mean() -> None:
    [found] = summarise([an_outcome(), an_outcome(seed=2, after=None, tokens=9)], 0.8)
    assert found.outcomes == {"pass": 1, "failed": 1}
    assert found.after_each == (0.9, None)
    assert (found.after, found.generated_tokens, found.num_measured) == (0.9, 1000.0, 1)
    [nothing] = summarise([an_outcome(after=None)], 0.8)
    assert (nothing.after, nothing.tokens_to_target, nothing.gain_per_minute) == (None, None, None)


def test_the_median_run_may_not_reach_the_target() -> None:
    runs = [an_outcome(), *(an_outcome(seed=seed, reached_at=500) for seed in (2, 3))]
    [found] = summarise(runs, 0.95)
    assert (found.tokens_to_target, found.num_reached) == (math.inf, 0)
    mixed = [an_outcome(after=0.97), an_outcome(seed=2, after=0.97), an_outcome(seed=3)]
    [found] = summarise(mixed, 0.95)
    assert found.num_reached == 2
    assert found.tokens_to_target == tokens_to(mixed[0], 0.95) < math.inf


def test_what_generates_nothing_has_no_gain_per_token() -> None:
    [found] = summarise([an_outcome("sft", reached_at=0, tokens=0)], 0.8)
    assert found.gain_per_million_tokens is None
    assert found.tokens_to_target == 0.0
