"""Learning curves as a picture (SVG) and as characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from opsd.daemon.cli.compare.axes import Axis, linear_axis, log_axis
from opsd.daemon.cli.compare.results import Outcome, Point

# Told apart by the colour-blind too: Okabe and Ito, https://jfly.uni-koeln.de/color/
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c00")
_DASHES = ("", "6 3", "2 3")
_WIDTH, _HEIGHT = 1080, 440
_TOP, _PLOT_HEIGHT, _PLOT_WIDTH = 30, 340, 400
_LEFTS = (60, 520)
_LEGEND_LEFT = 940
_MARKS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _tokens(point: Point) -> float:
    return float(point.generated_tokens)


def _seconds(point: Point) -> float:
    return point.train_s


def svg(outcomes: Sequence[Outcome]) -> str:
    """Accuracy over generated tokens (logarithmic) and over seconds of training, a line a run."""
    curves = [outcome for outcome in outcomes if outcome.curve]
    names = list(dict.fromkeys(outcome.method for outcome in curves))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    panels: tuple[tuple[int, str, Callable[[Point], float], Axis], ...] = (
        (_LEFTS[0], "generated tokens", _tokens, log_axis(_all(curves, _tokens))),
        (_LEFTS[1], "seconds of training", _seconds, linear_axis(_all(curves, _seconds))),
    )
    for left, title, quantity, axis in panels:
        parts += _frame(left, title, axis)
        for outcome in curves:
            parts += _line(left, axis, quantity, outcome, names.index(outcome.method))
    for index, name in enumerate(names):
        y = _TOP + 10 + 20 * index
        parts.append(
            f'<line x1="{_LEGEND_LEFT}" x2="{_LEGEND_LEFT + 24}" y1="{y}" y2="{y}" {_pen(index)}/>'
        )
        parts.append(f'<text x="{_LEGEND_LEFT + 30}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def text(outcomes: Sequence[Outcome], *, width: int = 72, height: int = 16) -> str:
    """Accuracy over generated tokens in characters, a letter a method; "" without any curve."""
    curves = [outcome for outcome in outcomes if outcome.curve]
    if not curves:
        return ""
    names = list(dict.fromkeys(outcome.method for outcome in curves))
    axis = log_axis(_all(curves, _tokens))
    grid = [[" "] * width for _ in range(height)]
    for outcome in curves:
        mark = _MARKS[names.index(outcome.method) % len(_MARKS)]
        for point in outcome.curve:
            column = round(axis.place(_tokens(point)) * (width - 1))
            grid[round((1 - point.accuracy) * (height - 1))][column] = mark
    lines = []
    for index, cells in enumerate(grid):
        percent = 100 * (1 - index / (height - 1))
        label = f"{percent:5.0f} %" if index % 3 == 0 else " " * 7
        lines.append(f"{label} │{''.join(cells)}".rstrip())
    lines.append(" " * 8 + "└" + "─" * width)
    lines.append(" " * 9 + _tick_line(axis, width))
    lines.append(" " * 9 + "generated tokens")
    lines += [f"  {_MARKS[index % len(_MARKS)]}  {name}" for index, name in enumerate(names)]
    return "\n".join(lines)


def _tick_line(axis: Axis, width: int) -> str:
    line = [" "] * (width + 8)
    taken = 0
    for place, label in axis.ticks():
        start = max(0, round(place * (width - 1)) - len(label) // 2)
        if start >= taken:
            line[start : start + len(label)] = label
            taken = start + len(label) + 1
    return "".join(line).rstrip()


def _all(curves: Sequence[Outcome], quantity: Callable[[Point], float]) -> list[float]:
    return [quantity(point) for outcome in curves for point in outcome.curve]


def _frame(left: int, title: str, axis: Axis) -> list[str]:
    bottom, right = _TOP + _PLOT_HEIGHT, left + _PLOT_WIDTH
    middle = left + _PLOT_WIDTH / 2
    parts = [
        f'<text x="{middle}" y="{bottom + 45}" text-anchor="middle">{title}</text>',
        f'<text x="{left - 40}" y="{_TOP - 12}">accuracy</text>',
    ]
    for percent in range(0, 101, 20):
        y = bottom - _PLOT_HEIGHT * percent / 100
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{percent} %</text>')
    for place, label in axis.ticks():
        x = round(left + place * _PLOT_WIDTH, 1)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    return parts


def _line(
    left: int, axis: Axis, quantity: Callable[[Point], float], outcome: Outcome, index: int
) -> list[str]:
    places = [
        (
            round(left + axis.place(quantity(point)) * _PLOT_WIDTH, 1),
            round(_TOP + (1 - point.accuracy) * _PLOT_HEIGHT, 1),
        )
        for point in outcome.curve
    ]
    seed = "" if outcome.seed is None else f", seed {outcome.seed}"
    title = f"<title>{escape(outcome.method + seed)}</title>"
    path = " ".join(f"{x},{y}" for x, y in places)
    colour = _COLOURS[index % len(_COLOURS)]
    return [
        f'<polyline points="{path}" fill="none" {_pen(index)}>{title}</polyline>',
        *(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in places),
    ]


def _pen(index: int) -> str:
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_COLOURS[index % len(_COLOURS)]}" stroke-width="1.5"{dashes}'
