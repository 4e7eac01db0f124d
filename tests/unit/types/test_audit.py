"""The hash chain: what a hash covers, and that every kind of tampering is found and placed."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd.daemon.types.adapters import AuditEntry
from opsd.daemon.types.audit import (
    GENESIS,
    MAX_PROBLEMS,
    ChainVerifier,
    Head,
    canonical_json,
    entry_from_json,
    entry_sha256,
    entry_to_json,
    parse_head,
)

Log = list[AuditEntry]


def link(entries: Sequence[AuditEntry]) -> Log:
    """With hashes as a writer would have made them."""
    log: Log = []
    before = GENESIS
    for entry in entries:
        entry = replace(entry, prev_sha256=before)
        entry = replace(entry, entry_sha256=entry_sha256(entry))
        log.append(entry)
        before = entry.entry_sha256
    return log


def a_log(length: int = 6) -> Log:
    return link(
        [
            AuditEntry(n, 1000.5 + n, f"actor {n}", "adapter.promote", f"s{n}", "why", "{}")
            for n in range(1, length + 1)
        ]
    )


def verify(log: Sequence[AuditEntry], *anchors: Head) -> ChainVerifier:
    chain = ChainVerifier(anchors)
    for entry in log:
        chain.feed(entry)
    chain.finish()
    return chain


def head_of(entry: AuditEntry) -> Head:
    return Head(entry.id, entry.entry_sha256)


def test_the_encoding_is_the_documented_one() -> None:
    """The worked example of docs/reference/audit.md, computed without the code under test."""
    values = [
        b"opsd.audit.v1",
        b"1",
        struct.pack(">d", 1700000000.25),
        b"ana@ops",
        b"adapter.promote",
        b"opsd-0123456789abcdef",
        "größer".encode(),
        b'{"epoch":1}',
        b"0" * 64,
    ]
    expected = hashlib.sha256(b"".join(struct.pack(">Q", len(v)) + v for v in values)).hexdigest()
    entry = AuditEntry(
        id=1,
        time_unix_s=1700000000.25,
        actor="ana@ops",
        action="adapter.promote",
        subject="opsd-0123456789abcdef",
        reason="größer",
        detail_json='{"epoch":1}',
        prev_sha256=GENESIS,
    )
    assert entry_sha256(entry) == expected
    assert expected == "f950c329f98b0a37374015aa9705ce86f96346108b7c13a6f7ddd4bd79ad4f0f"


def test_the_page_computes_the_hash_that_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "reference" / "audit.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(program, {})
    assert f"# {capsys.readouterr().out.strip()}\n" in program


def test_an_untouched_log_verifies() -> None:
    log = a_log()
    chain = verify(log, head_of(log[2]), head_of(log[-1]))
    assert chain.problems == []
    assert (chain.checked, chain.head) == (6, head_of(log[-1]))
    assert verify([], Head(0, GENESIS)).problems == []


CONTENT = [field.name for field in fields(AuditEntry) if field.name != "entry_sha256"]


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("position", [0, 3, 5])
def test_an_edit_of_any_field_is_found_and_placed(name: str, position: int) -> None:
    log = a_log()
    old = getattr(log[position], name)
    edited = old + 1 if name in ("id", "time_unix_s") else old[:-1] + "x"
    log[position] = replace(log[position], **{name: edited})
    chain = verify(log)
    assert any(
        problem.entry_id == log[position].id and "was edited" in problem.message
        for problem in chain.problems
    )


def test_an_edit_whose_hash_was_made_anew_breaks_the_link_to_the_next() -> None:
    log = a_log()
    forged = replace(log[2], reason="other")
    log[2] = replace(forged, entry_sha256=entry_sha256(forged))
    chain = verify(log)
    assert [problem.entry_id for problem in chain.problems] == [4]
    assert "does not follow entry 3" in chain.problems[0].message


@pytest.mark.parametrize(
    ("tamper", "entry_id", "words"),
    [
        (lambda log: log[1:], 2, "the entries before it are missing"),
        (lambda log: log[:2] + log[3:], 4, "does not follow entry 2"),
        (lambda log: log[:2] + log[4:], 5, "entries 3 to 4 are missing"),
        (lambda log: [log[0], log[2], log[1], *log[3:]], 2, "out of order"),
        (lambda log: [*log[:3], log[2], *log[3:]], 3, "there twice"),
        (lambda log: [*log[:3], replace(log[2], reason="new"), *log[3:]], 3, "was edited"),
        (lambda log: log[::-1], 5, "out of order"),
    ],
)
def test_deletions_insertions_and_reorders_are_found(
    tamper: Callable[[Log], Log], entry_id: int, words: str
) -> None:
    chain = verify(tamper(a_log()))
    assert any(p.entry_id == entry_id and words in p.message for p in chain.problems), (
        chain.problems
    )


def test_a_forged_log_without_a_flaw_needs_an_anchor() -> None:
    real = a_log()
    forged = link([replace(entry, actor="mallory") for entry in real])
    assert verify(forged).problems == []
    chain = verify(forged, head_of(real[4]))
    assert [problem.entry_id for problem in chain.problems] == [5]
    assert "rewritten" in chain.problems[0].message


def test_the_newest_entries_deleted_need_an_anchor() -> None:
    log = a_log()
    assert verify(log[:4]).problems == []
    (problem,) = verify(log[:4], head_of(log[5])).problems
    assert problem.entry_id == 6
    assert "the log ends at 4, entries 5 to 6 are deleted" in problem.message
    assert verify([], head_of(log[0])).num_problems == 1


def test_a_number_that_skips_is_forgiven_before_the_log_was_chained_only() -> None:
    def entry(number: int, action: str = "x", detail: str = "{}") -> AuditEntry:
        return AuditEntry(number, 1.0, "a", action, "s", "r", detail)

    old = [entry(2), entry(5)]
    chained = entry(6, "audit.chain", '{"entries":2}')
    assert verify(link([*old, chained, entry(7)])).problems == []
    assert verify(link(old)).num_problems == 2
    assert verify(link([*old, chained, entry(9)])).num_problems == 1
    assert verify(link([*old, entry(6, "audit.chain", '{"entries":3}')])).num_problems == 2
    assert verify(link([*old, entry(6, "audit.chain", "[]")])).num_problems == 2


def test_problems_are_bounded() -> None:
    chain = verify([replace(entry, reason="x") for entry in a_log(300)])
    assert len(chain.problems) == MAX_PROBLEMS
    assert chain.num_problems >= 300


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
entries = st.lists(
    st.builds(
        AuditEntry,
        id=st.just(0),
        time_unix_s=st.floats(0, 4e9),
        actor=text,
        action=text,
        subject=text,
        reason=text,
        detail_json=text,
    ),
    min_size=1,
    max_size=12,
)


def numbered(some: Sequence[AuditEntry]) -> Log:
    return link([replace(entry, id=number) for number, entry in enumerate(some, start=1)])


@settings(max_examples=200, deadline=None)
@given(entries, st.data())
def test_no_change_passes_a_kept_head(some: Log, data: st.DataObject) -> None:
    """Any list of the log's entries but the log itself, even with the hashes made anew."""
    log = numbered(some)
    kept = head_of(log[-1])
    assert verify(log, kept).problems == []
    pieces = st.sampled_from(log)
    changed = data.draw(
        st.one_of(
            st.permutations(log),
            st.lists(pieces, max_size=14),
            pieces.map(lambda entry: [e for e in log if e != entry]),
        )
    )
    if data.draw(st.booleans()):
        changed = numbered(changed)
        # Whoever adds to the end has not tampered.
        expected = changed[: len(log)] == log
    else:
        expected = changed == log
    assert (verify(changed, kept).problems == []) == expected


@settings(max_examples=200, deadline=None)
@given(entries, entries)
def test_equal_hashes_mean_equal_entries(first: Log, second: Log) -> None:
    """Length prefixes: text cannot move from one field into the next."""
    a, b = numbered(first), numbered(second)
    for one, other in zip(a, b, strict=False):
        assert (one.entry_sha256 == other.entry_sha256) == (one == other)
        moved = replace(one, actor=one.actor + one.action, action="")
        assert (entry_sha256(moved) == one.entry_sha256) == (one.action == "")


@settings(max_examples=200, deadline=None)
@given(entries)
def test_a_line_of_an_export_gives_the_entry_back(some: Log) -> None:
    for entry in numbered(some):
        back = entry_from_json(json.loads(json.dumps(entry_to_json(entry))))
        assert back == entry
        assert entry_sha256(back) == entry.entry_sha256


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"id": 0},
        {"id": True},
        {"id": 1 << 63},
        {"time_unix_s": "1"},
        {"time_unix_s": float("nan")},
        {"time_unix_s": True},
        {"reason": 5},
        {"more": ""},
    ],
)
def test_what_is_no_entry_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        entry_from_json({**entry_to_json(a_log(1)[0]), **change})


@pytest.mark.parametrize("wrong", ["", "1", "x:" + "0" * 64, "1:" + "0" * 63, "1:" + "g" * 64])
def test_what_is_no_head_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="head"):
        parse_head(wrong)
    head = head_of(a_log()[3])
    assert parse_head(f" {head}\n") == head


def test_canonical_json_has_one_text() -> None:
    assert canonical_json({"b": 1, "a": [1.5, "ü"]}) == '{"a":[1.5,"\\u00fc"],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
