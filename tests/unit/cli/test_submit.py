"""`opsd pairs submit`: local checks, ids, acknowledgements, lost connections."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.jsonl import (
    MAX_LINE_BYTES,
    LineError,
    pair_request,
    parse_pair,
    read_lines,
)
from opsd.daemon.cli.session import Session
from opsd.daemon.cli.submit import PAIRS, WINDOW, Submitter
from opsd.v1 import collection_pb2 as pb


def a_pair(number: int = 0, **fields: Any) -> dict[str, Any]:
    values = {
        "prompt": f"{number}+1",
        "solution": "count on",
        "verifier": "numeric",
        "reference": str(number + 1),
    }
    return values | fields


def write(path: Path, pairs: list[Any]) -> str:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(path)


def test_pairs_are_submitted_and_summed_up(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [a_pair(n) for n in range(1000)])
    result = opsd("--actor", "alice", "pairs", "submit", file, "--source", "tutors")
    assert result.code == 0
    assert result.out == "1000 acknowledged: 1000 verified\n"
    assert result.err == ""
    assert len(daemon.fake.stored) == 1000
    assert {pair.source for pair in daemon.fake.stored.values()} == {"tutors"}
    assert daemon.fake.actors == ["alice"]


def test_running_it_again_stores_nothing_twice(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [a_pair(n) for n in range(10)])
    opsd("pairs", "submit", file)
    result = opsd("pairs", "submit", file)
    assert result.out == "10 acknowledged: 10 verified, 10 of them stored before\n"
    assert len(daemon.fake.stored) == 10


def test_results_as_json_lines_name_their_line(opsd: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n" + json.dumps(a_pair(1)) + "\n\n" + json.dumps(a_pair(2)))
    result = opsd("pairs", "submit", str(file), "-o", "json")
    assert [found["line"] for found in result.lines] == [2, 4]
    assert result.lines[0]["status"] == "PAIR_STATUS_VERIFIED"
    assert "2 acknowledged" in result.err


@pytest.mark.parametrize("command", ["submit", "import"])
def test_the_fix_at_the_end_of_a_long_message_is_shown(
    opsd: Any, daemon: Any, tmp_path: Path, command: str
) -> None:
    daemon.fake.status_of = lambda pair: pb.PAIR_STATUS_INVALID
    daemon.fake.why = "evidence " * 50 + "mend argv"
    result = opsd("pairs", command, write(tmp_path / "p.jsonl", [a_pair()]))
    assert "mend argv\n" in result.err


@pytest.mark.parametrize(
    ("status", "code", "allowed_code"),
    [
        (pb.PAIR_STATUS_VERIFIED, Exit.OK, Exit.OK),
        (pb.PAIR_STATUS_DUPLICATE, Exit.OK, Exit.OK),
        (pb.PAIR_STATUS_UNVERIFIED, Exit.NEGATIVE_OUTCOME, Exit.OK),
        (pb.PAIR_STATUS_HELD_OUT, Exit.NEGATIVE_OUTCOME, Exit.NEGATIVE_OUTCOME),
        (pb.PAIR_STATUS_INVALID, Exit.NEGATIVE_OUTCOME, Exit.NEGATIVE_OUTCOME),
        (pb.PAIR_STATUS_UNSPECIFIED, Exit.NEGATIVE_OUTCOME, Exit.NEGATIVE_OUTCOME),
    ],
)
def test_the_exit_code_tells_what_became_of_the_pairs(
    opsd: Any, daemon: Any, tmp_path: Path, status: Any, code: Exit, allowed_code: Exit
) -> None:
    daemon.fake.status_of = lambda pair: status
    file = write(tmp_path / "p.jsonl", [a_pair()])
    result = opsd("pairs", "submit", file)
    assert result.code == code
    if code is not Exit.OK:
        assert result.err.startswith(f"{file}:1: ")
        assert result.err.endswith("because\n")
    assert opsd("pairs", "submit", file, "--allow-unverified").code == allowed_code


BAD_LINES = [
    (b"{", "not JSON"),
    (b"[]", "must be an object"),
    (b"null", "must be an object"),
    (b'{"prompt": "\xff"}', "byte 13 (0xff) is not UTF-8"),
    (b'{"prompt": "a", "prompt": "b"}', "prompt: given twice"),
    (json.dumps(a_pair(promt="x")).encode(), "promt: no such field; did you mean prompt?"),
    (json.dumps(a_pair(reference=42)).encode(), 'reference: must be a string, e.g. "42"'),
    (json.dumps(a_pair(reference=None)).encode(), "reference: must be a string"),
    (json.dumps(a_pair(solution=" ")).encode(), "solution: is empty"),
    (b'{"prompt": "x"}', "solution: is missing"),
    (json.dumps(a_pair(id="17")).encode(), "id: '17' is no UUID"),
    (json.dumps(a_pair(prompt="\ud800")).encode(), "prompt: holds half a surrogate pair"),
    (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    (b"x" * (MAX_LINE_BYTES + 10), "longer than 8 MiB"),
]


@pytest.mark.parametrize(("raw", "message"), BAD_LINES, ids=[m for _, m in BAD_LINES])
def test_a_bad_line_is_named_before_anything_is_sent(
    opsd: Any, daemon: Any, tmp_path: Path, raw: bytes, message: str
) -> None:
    file = tmp_path / "p.jsonl"
    good = json.dumps(a_pair()).encode()
    file.write_bytes(good + b"\n" + raw + b"\n" + good + b"\n")
    result = opsd("pairs", "submit", str(file))
    assert result.code == Exit.INVALID_INPUT
    assert result.err.startswith(f"{file}:2: {message}")
    assert "nothing was sent" in result.err
    assert daemon.fake.calls == []


def test_many_bad_lines_are_not_all_printed(opsd: Any, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("x\n" * 100)
    result = opsd("pairs", "submit", str(file))
    assert len(result.err.splitlines()) == 21
    assert "100 bad lines" in result.err


def test_from_stdin_good_lines_go_and_bad_ones_are_named(opsd: Any, daemon: Any) -> None:
    lines = b"\xef\xbb\xbf" + json.dumps(a_pair(1)).encode() + b"\r\nbad\r\n"
    lines += json.dumps(a_pair(2)).encode()
    result = opsd("pairs", "submit", "-", stdin=lines)
    assert result.code == Exit.INVALID_INPUT
    assert result.err.startswith("stdin:2: not sent: not JSON")
    assert result.out == "2 acknowledged: 2 verified, 1 malformed lines not sent\n"
    assert len(daemon.fake.stored) == 2


def test_a_missing_file(opsd: Any, tmp_path: Path) -> None:
    result = opsd("pairs", "submit", str(tmp_path / "none"))
    assert result.code == Exit.NOT_FOUND
    assert "no such file" in result.err


def test_a_lost_stream_is_taken_up_where_it_was(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    daemon.fake.break_after = [3, 0, 400]
    file = write(tmp_path / "p.jsonl", [a_pair(n) for n in range(1000)])
    result = opsd("pairs", "submit", file, "-o", "json")
    assert result.code == 0
    # Every line has exactly one result, and every pair arrived.
    assert sorted(found["line"] for found in result.lines) == list(range(1, 1001))
    assert len(daemon.fake.stored) == 1000
    assert "trying again" in result.err
    assert daemon.fake.break_after == []


def test_equal_lines_are_answered_one_by_one(opsd: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [a_pair(1), a_pair(1), a_pair(1)])
    assert sorted(r["line"] for r in opsd("pairs", "submit", file, "-o", "json").lines) == [1, 2, 3]


def test_it_gives_up_when_the_daemon_stays_away(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    daemon.fake.failure = (grpc.StatusCode.UNAVAILABLE, "draining")
    file = write(tmp_path / "p.jsonl", [a_pair()])
    result = opsd("pairs", "submit", file, "--retries", "2")
    assert result.code == Exit.UNREACHABLE
    assert len(daemon.fake.calls) == 3
    assert result.out == "0 acknowledged\n"


def test_other_errors_are_not_tried_again(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    daemon.fake.failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large")
    assert opsd("pairs", "submit", write(tmp_path / "p", [a_pair()])).code == Exit.OVERLOADED
    assert len(daemon.fake.calls) == 1


def test_an_error_while_reading_is_raised_after_what_was_sent(daemon: Any) -> None:
    def lines() -> Iterator[Any]:
        yield from read_lines(iter_file([a_pair(1), a_pair(2)]), pair_request)
        raise CliError("the disk is gone")

    seen: list[int] = []
    session = Session(daemon.address, None, "alice", None)
    with pytest.raises(CliError, match="the disk is gone"):
        Submitter(session, lines(), lambda line, result: seen.append(line.number), 0, PAIRS).run()
    assert seen == [1, 2]


def iter_file(pairs: list[Any]) -> Any:
    import io

    return io.BytesIO("".join(json.dumps(pair) + "\n" for pair in pairs).encode())


def test_no_more_than_a_window_is_in_flight(daemon: Any) -> None:
    read = 0
    acknowledged = 0
    most = 0

    def lines() -> Iterator[Any]:
        nonlocal read, most
        for line in read_lines(iter_file([a_pair(n) for n in range(3 * WINDOW)]), pair_request):
            read += 1
            most = max(most, read - acknowledged)
            yield line

    def on_result(line: Any, result: Any) -> None:
        nonlocal acknowledged
        acknowledged += 1

    held = threading.Event()

    def slow(pair: pb.PairInput) -> Any:
        # The first acknowledgement is held back for as long as an unbounded sender would need.
        if not held.is_set():
            held.wait(1.0)
            held.set()
        return pb.PAIR_STATUS_VERIFIED

    daemon.fake.status_of = slow
    Submitter(Session(daemon.address, None, "a", None), lines(), on_result, 0, PAIRS).run()
    assert acknowledged == 3 * WINDOW
    # One more may be read between an acknowledgement and its report.
    assert most <= WINDOW + 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    line = json.dumps(a_pair(solution="x" * 10_000)) + "\n"
    with file.open("w") as out:
        for _ in range(1000):
            out.write(line)
    tracemalloc.start()
    with file.open("rb") as opened:
        assert sum(1 for _ in read_lines(opened, pair_request)) == 1000
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


@settings(deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none(), st.lists).map(lambda v: repr(v).encode()))
def test_any_bytes_are_a_pair_or_a_named_fault(raw: bytes) -> None:
    with suppress(LineError):
        assert parse_pair(raw).prompt


@settings(deadline=None)
@given(st.fixed_dictionaries({key: st.text(min_size=1) for key in ("prompt", "solution")}))
def test_ids_follow_from_content(fields: dict[str, str]) -> None:
    pair = a_pair() | fields
    try:
        first = parse_pair(json.dumps(pair).encode())
    except LineError:
        return
    assert first.id == parse_pair(json.dumps(pair | {"source": "elsewhere"}).encode()).id
    other = parse_pair(json.dumps(pair | {"reference": "other"}).encode())
    assert first.id != other.id


def test_a_given_id_is_made_canonical() -> None:
    given_id = "{0B6C2C1E-0000-4000-8000-000000000001}"
    pair = parse_pair(json.dumps(a_pair(id=given_id)).encode())
    assert pair.id == "0b6c2c1e-0000-4000-8000-000000000001"
