"""Data on stdout, messages on stderr."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from rich.console import Console


class Output(StrEnum):
    TABLE = "table"  # for people
    JSON = "json"  # for programs: proto3 JSON with snake_case names


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the data.")]


def to_dict(message: Message) -> dict[str, Any]:
    """Proto3 JSON with snake_case names; fields at their default are there."""
    from google.protobuf.json_format import MessageToDict

    result: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return result


def emit_json(value: Message | Mapping[str, Any] | Sequence[Any], *, line: bool = False) -> None:
    """One JSON document on stdout; ``line``: on one line, sent at once."""
    data = value if isinstance(value, Mapping | Sequence) else to_dict(value)
    print(json.dumps(data, ensure_ascii=False, indent=None if line else 2), flush=line)


def say(message: str) -> None:
    """A message for the person, on stderr."""
    print(message, file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether a person sees stderr, and can be asked on stdin."""
    return sys.stderr.isatty() and sys.stdin is not None and sys.stdin.isatty()


def console(*, stderr: bool = False) -> Console:
    """Of stdout by default. Where no person looks on, lines are as long as they need to be."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 100_000
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def clean(text: str, *, keep_lines: bool = False) -> str:
    """Without control characters: what others wrote must not drive the terminal."""
    allowed = "\n\t" if keep_lines else ""
    return "".join(
        char if char in allowed or not _drives_terminal(char) else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def _drives_terminal(char: str) -> bool:
    # The joiners make up emoji and scripts; the rest of Cf turns the direction of text or hides.
    return unicodedata.category(char) in ("Cc", "Cf") and char not in "\u200c\u200d"


MESSAGE_CHARS = 600
"""Of what the daemon says of one line: the fix is at its end, behind 400 of evidence."""


def brief(text: str, limit: int = 60) -> str:
    """In one line, cut to a length."""
    line = clean(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()
) -> None:
    """Columns, aligned, with a header."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    numeric = set(right)
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    _print_trimmed(table)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        if value:
            table.add_row(name, Text(clean(value, keep_lines=True)))
    _print_trimmed(table)


def _print_trimmed(table: Any) -> None:
    out = console()
    if out.is_terminal:
        out.print(table)
        return
    # rich fills every line up to the table's width.
    with out.capture() as capture:
        out.print(table)
    for line in capture.get().splitlines():
        print(line.rstrip())


def enum_word(name: str, prefix: str) -> str:
    """``RUN_STATE_AWAITING_APPROVAL`` as ``awaiting_approval``; unspecified is ""."""
    word = name.removeprefix(prefix).lower()
    return "" if word == "unspecified" else word


def when(unix_s: float) -> str:
    """A time in UTC, to the second; "" for none."""
    if not unix_s:
        return ""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def points(fraction: float) -> str:
    """A difference of two fractions in percentage points, without the unit."""
    return f"{100 * fraction:+.1f}"


def duration(seconds: float) -> str:
    """``3 d 04 h``, ``2 h 05 min``, ``3 min 20 s`` or ``4.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(int(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days} d {hours_left:02} h"
    if hours:
        return f"{hours} h {minutes_left:02} min"
    return f"{minutes} min {rest_s:02} s"


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
