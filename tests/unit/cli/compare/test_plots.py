"""Pictures of learning curves."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.cli.compare.axes import LinearAxis, LogAxis, linear_axis, log_axis, short_number
from opsd.daemon.cli.compare.plots import svg, text
from opsd.daemon.cli.compare.results import Outcome, Point

costs = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e12)), max_size=10)


@given(costs)
def test_everything_has_its_place_in_order(xs: list[float]) -> None:
    for axis in (log_axis(xs), linear_axis(xs)):
        places = [axis.place(x) for x in sorted(xs)]
        assert places == sorted(places)
        assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
        ticks = axis.ticks()
        assert ticks
        assert all(-1e-9 <= place <= 1 + 1e-9 for place, _ in ticks)


def test_ticks_are_round_numbers() -> None:
    def log_labels(*xs: float) -> list[str]:
        return [label for _, label in log_axis(xs).ticks()]

    assert log_labels(0.0, 2300.0, 900_000.0) == [
        "0",
        *_words("2 k,5 k,10 k,20 k,50 k,100 k,200 k,500 k,1 M"),
    ]
    assert log_labels(700.0, 3e6) == ["1 k", "10 k", "100 k", "1 M"]
    assert [label for _, label in linear_axis([90.0]).ticks()] == [
        *("0", "10", "20", "30", "40", "50", "60", "70", "80", "90")
    ]
    assert [label for _, label in linear_axis([150.0]).ticks()] == [
        "0",
        "25",
        "50",
        "75",
        "100",
        "125",
        "150",
    ]
    assert log_axis([]) == LogAxis(1.0, 10.0, False)
    assert linear_axis([]) == LinearAxis(1.0)
    assert short_number(1500) == "1.5 k"


def _words(text: str) -> list[str]:
    return text.split(",")


def an_outcome(method: str, seed: int | None, costs: list[int]) -> Outcome:
    points = tuple(
        Point(step, cost, 2.0 * step, step / len(costs), 10) for step, cost in enumerate(costs)
    )
    return Outcome(
        *(method, seed, "run", "rejected", "pass", "", 0.0, 0.9, {}, costs[-1] if costs else 0),
        train_s=1.0,
        curve=points,
        teacher_check=None,
    )


OUTCOMES = [
    an_outcome("opsd <&>", 1, [0, 1000, 3000, 9000]),
    an_outcome("opsd <&>", 2, [0, 1500, 3000, 9500]),
    an_outcome("sft", None, [0, 0, 0, 0]),
    an_outcome("failed", 1, []),
]


def test_the_picture_is_xml_with_a_line_for_every_run_in_both_panels() -> None:
    root = ElementTree.fromstring(svg(OUTCOMES))
    space = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{space}polyline")
    assert len(lines) == 6
    titles = {line.findtext(f"{space}title") for line in lines}
    assert titles == {"opsd <&>, seed 1", "opsd <&>, seed 2", "sft"}
    assert len({line.get("stroke") for line in lines}) == 2
    for line in lines:
        for point in str(line.get("points")).split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 920
            assert 30 <= y <= 370
    shown = [element.text for element in root.iter(f"{space}text")]
    assert {"accuracy", "generated tokens", "seconds of training", "opsd <&>", "sft"} <= set(shown)
    assert "failed" not in shown


def test_more_methods_than_colours_are_told_apart() -> None:
    many = [an_outcome(f"m{n}", None, [0, 10]) for n in range(20)]
    root = ElementTree.fromstring(svg(many))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in lines}) == 20


def test_characters_show_it_too() -> None:
    found = text(OUTCOMES)
    lines = found.splitlines()
    assert lines[0].startswith("  100 % │")
    assert lines[-2:] == ["  A  opsd <&>", "  B  sft"]
    grid = [line[9:] for line in lines[:16]]
    assert [row.index("B") for row in grid if "B" in row] == [0] * 4
    columns = [row.rindex("A") for row in grid if "A" in row]
    assert columns == sorted(columns, reverse=True)
    assert "1 k" in lines[17]
    assert max(map(len, lines)) <= 90
    assert text([an_outcome("failed", 1, [])]) == ""
    assert not math.isnan(float(len(svg([]))))
