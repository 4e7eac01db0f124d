"""Suites that come and go while the daemon runs."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from opsd.daemon.config.gate import SuiteConfig
from opsd.daemon.errors import (
    ConfigError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StateError,
    StoreError,
)
from opsd.daemon.gate.registry import HeldOutItems, SuiteRegistry, Upload
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.suites import OverlapReport, SuiteSettings, SuiteVersion
from opsd.daemon.types.text import prompt_key

VERIFIERS = ("exact", "numeric")


def held_out_keys(registry: SuiteRegistry, keys: Iterable[str]) -> set[str]:
    """Those of the keys (of prompts) that are held out now."""
    return set(registry._held_out.held_out) & set(keys)


def text(*prompts: str, header: dict[str, str] | None = None) -> bytes:
    records: list[object] = [] if header is None else [{"suite": header}]
    records += [
        {"id": f"i{n}", "prompt": prompt, "verifier": "numeric", "reference": "2"}
        for n, prompt in enumerate(prompts)
    ]
    return "\n".join(map(json.dumps, records)).encode()


def upload(data: bytes, name: str = "sums", *, version: str = "", sealed: bool = False) -> Upload:
    settings = SuiteSettings(name, SuiteRole.TARGET, 0.0, sealed=sealed, budget=3 if sealed else 0)
    return Upload(settings, data, "sent.jsonl", version)


class Trained:
    """A store in which some problems were trained on."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.keys: set[str] = set()
        self.fail = False
        self.seen_held_out: list[set[str]] = []
        self.registry: SuiteRegistry | None = None

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]:
        if self.registry is not None:
            self.seen_held_out.append(held_out_keys(self.registry, keys))
        return self.keys & set(keys)

    def put_suite(
        self, suite: SuiteVersion, prompt_keys: Sequence[str], *, fresh_share: float
    ) -> SuiteVersion:
        if self.fail:
            raise StoreError("the disk is full")
        return self._store.put_suite(suite, prompt_keys, fresh_share=fresh_share)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


class Overlap:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str]] = []

    def find_overlaps(self, suite: str, items: Sequence[SuiteItem]) -> OverlapReport:
        return OverlapReport(1, 2, 1, ("a",))

    def quarantine_overlaps(
        self, suite: str, items: Sequence[SuiteItem], actor: str
    ) -> OverlapReport:
        self.calls.append((suite, len(items), actor))
        return OverlapReport(1, 2, 1, ("a",))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = open_store(sqlite_url(tmp_path))
    yield store
    store.close()


@pytest.fixture
def trained(store: SqlStore) -> Trained:
    return Trained(store)


@pytest.fixture
def overlap() -> Overlap:
    return Overlap()


@pytest.fixture
def registry(trained: Trained, overlap: Overlap, tmp_path: Path) -> SuiteRegistry:
    return made(trained, tmp_path, overlap)


def made(
    trained: Trained,
    directory: Path,
    overlap: Overlap | None = None,
    configs: Sequence[SuiteConfig] = (),
) -> SuiteRegistry:
    registry = SuiteRegistry(
        trained,  # type: ignore[arg-type]  # what it does not define is the real store's
        state_dir=directory,
        verifiers=VERIFIERS,
        overlap=overlap,
    )
    registry.load(configs)
    trained.registry = registry
    return registry


def configured(directory: Path, data: bytes, name: str = "conf", **more: object) -> SuiteConfig:
    path = directory / f"{name}.jsonl"
    path.write_bytes(data)
    return SuiteConfig.model_validate({"name": name, "path": str(path), "role": "guard", **more})


def names(registry: SuiteRegistry) -> list[tuple[str, str, int]]:
    return [(s.name, s.version, len(s.items)) for s in registry.active().suites]


def test_a_suite_is_kept_and_held_out_at_once(
    registry: SuiteRegistry, trained: Trained, overlap: Overlap, tmp_path: Path
) -> None:
    told: list[HeldOutItems] = []
    registry.subscribe(told.append)
    added = registry.add(upload(text("1+1", "3-1")), actor="ana", reason="new")
    assert names(registry) == [("sums", "1", 2)]
    assert held_out_keys(registry, [prompt_key("1+1"), "x"]) == {prompt_key("1+1")}
    assert [len(items.get("sums", ())) for items in told] == [0, 2, 2]
    # It was held out before anybody looked whether a run had it.
    assert trained.seen_held_out[-1] == {prompt_key("1+1"), prompt_key("3-1")}
    assert added.overlap.num_near == 2
    assert overlap.calls == [("sums", 2, "ana")]
    path = tmp_path / "suites" / "sums" / "1.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    # Another daemon on the same state goes on with it.
    again = made(trained, tmp_path)
    assert names(again) == [("sums", "1", 2)]
    assert again.active().suites[0].sha256 == added.suite.sha256
    assert again.items(again.get("sums"))[0].prompt == "1+1"


def test_a_new_version_replaces_the_one_before(registry: SuiteRegistry) -> None:
    registry.add(upload(text("1+1", "3-1")), actor="ana", reason="r")
    registry.add(upload(text("4-2", "1+1")), actor="ana", reason="r")
    assert names(registry) == [("sums", "2", 2)]
    assert held_out_keys(registry, [prompt_key("3-1")]) == set()
    assert registry.get("sums").fresh_share == 0.5
    third = registry.add(upload(text("8-6"), version="2026-08"), actor="ana", reason="r")
    assert third.suite.version == "2026-08"
    assert [v.version for v in registry.versions(retired=True)] == ["2026-08", "2", "1"]


def test_the_same_again_changes_nothing(registry: SuiteRegistry, store: SqlStore) -> None:
    first = registry.add(upload(text("1+1", "3-1")), actor="ana", reason="r")
    spaced = text("1+1", "3-1").replace(b'": "', b'" :  "') + b"\n\n"
    again = registry.add(upload(spaced), actor="ben", reason="s")
    assert again.suite == first.suite
    assert len(store.list_audit(limit=9).items) == 1


def test_the_first_line_may_say_name_version_and_purpose(registry: SuiteRegistry) -> None:
    header = {"name": "sums", "version": "v7", "description": "simple sums"}
    data = text("1+1", header=header)
    added = registry.add(upload(data), actor="ana", reason="r").suite
    assert (added.version, added.description, added.num_items) == ("v7", "simple sums", 1)
    with pytest.raises(InvalidInputError, match=r"sent.jsonl: says that it is suite 'sums'"):
        registry.add(upload(data, "other"), actor="ana", reason="r")
    with pytest.raises(ConflictError, match="a version of their own"):
        registry.add(upload(text("5-3", header=header)), actor="ana", reason="r")
    assert names(registry) == [("sums", "v7", 1)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "sent.jsonl: suite 'sums' is empty"),
        (b"{", "sent.jsonl:1: not JSON"),
        (text("1+1", "1 + 1?", "1+1"), "the problem of item 'i2' is that of item 'i0'"),
        (text("1+1", header={"version": "../x"}), "version '../x' is not allowed"),
        (text("1+1", header={"description": "d" * 2001}), "'description' has 2001 characters"),
        (b'{"suite": 3}\n' + text("1+1"), "'suite' is a int, not an object"),
        (text("1+1").replace(b"numeric", b"python"), "unknown verifier 'python'"),
    ],
)
def test_what_is_refused_leaves_nothing(
    registry: SuiteRegistry, tmp_path: Path, data: bytes, said: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        registry.add(upload(data), actor="ana", reason="r")
    assert said in str(caught.value)
    assert names(registry) == []
    assert registry.versions(retired=True) == []
    assert not (tmp_path / "suites").exists()


def test_trained_problems_are_refused_and_not_held_out_for_it(
    registry: SuiteRegistry, trained: Trained
) -> None:
    trained.keys = {prompt_key("3-1")}
    with pytest.raises(InvalidInputError, match=r"sent.jsonl:2 \(item 'i1'\)"):
        registry.add(upload(text("1+1", "3-1"), sealed=True), actor="ana", reason="r")
    assert held_out_keys(registry, [prompt_key("1+1")]) == set()


def test_a_store_that_fails_changes_nothing(registry: SuiteRegistry, trained: Trained) -> None:
    registry.add(upload(text("1+1")), actor="ana", reason="r")
    trained.fail = True
    with pytest.raises(StoreError):
        registry.add(upload(text("3-1")), actor="ana", reason="r")
    assert names(registry) == [("sums", "1", 1)]
    assert held_out_keys(registry, [prompt_key("3-1")]) == set()
    trained.fail = False
    # The file that was written in vain is replaced.
    registry.add(upload(text("4-2")), actor="ana", reason="r")
    assert registry.items(registry.get("sums"))[0].prompt == "4-2"


def test_no_problem_stands_in_two_suites(registry: SuiteRegistry) -> None:
    registry.add(upload(text("1+1", "7-5")), actor="ana", reason="r")
    with pytest.raises(InvalidInputError, match="that of item 'i1'"):
        registry.add(upload(text("7-5?"), "other"), actor="ana", reason="r")
    registry.add(upload(text("1+1", "7-5"), sealed=True), actor="ana", reason="r")
    with pytest.raises(InvalidInputError, match="one of the sealed suite 'sums'") as caught:
        registry.add(upload(text("7-5"), "other"), actor="ana", reason="r")
    assert "i1" not in str(caught.value)


def test_removing(registry: SuiteRegistry) -> None:
    registry.add(upload(text("1+1")), actor="ana", reason="r")
    registry.remove("sums", actor="ben", reason="done")
    assert names(registry) == []
    assert held_out_keys(registry, [prompt_key("1+1")]) == set()
    with pytest.raises(NotFoundError):
        registry.remove("sums", actor="ben", reason="done")


def test_the_configuration_declares_its_own(
    trained: Trained, tmp_path: Path, store: SqlStore
) -> None:
    config = configured(tmp_path, text("1+1"), sealed=True, budget=4)
    registry = made(trained, tmp_path, configs=[config])
    version = registry.get("conf")
    assert version.source.value == "config"
    assert version.version == f"sha-{version.sha256[:12]}"
    store.use_suite("conf", version.version, "run")
    with pytest.raises(ConflictError, match=r"declared in the configuration.*\[\[gate.suites\]\]"):
        registry.add(upload(text("3-1"), "conf"), actor="ana", reason="r")
    with pytest.raises(StateError, match="restart the daemon"):
        registry.remove("conf", actor="ana", reason="r")
    registry.add(upload(text("5-3")), actor="ana", reason="r")
    # A changed file is another version, whose stale items keep their count.
    config = configured(tmp_path, text("1+1", "9-7"), sealed=True, budget=4)
    registry = made(trained, tmp_path, configs=[config])
    assert {s.name for s in registry.active().suites} == {"conf", "sums"}
    assert (registry.get("conf").fresh_share, registry.get("conf").queries_used) == (0.5, 1)
    # What the file no longer names is retired.
    registry = made(trained, tmp_path)
    assert names(registry) == [("sums", "1", 1)]
    assert registry.get("conf").state.value == "retired"
    with pytest.raises(ConfigError, match="sums was added with `opsd suites add` too"):
        made(trained, tmp_path, configs=[configured(tmp_path, text("8-6"), "sums")])


@pytest.mark.parametrize("damage", ["edit", "delete", "garble"])
def test_a_stored_file_that_changed_stops_the_start(
    registry: SuiteRegistry, trained: Trained, tmp_path: Path, damage: str
) -> None:
    registry.add(upload(text("1+1")), actor="ana", reason="r")
    path = tmp_path / "suites" / "sums" / "1.jsonl"
    if damage == "delete":
        path.unlink()
    else:
        path.chmod(0o600)
        path.write_bytes(path.read_bytes().replace(b"1+1", b"1+2") if damage == "edit" else b"{")
    with pytest.raises(ConfigError, match=r"1.jsonl.*(put the file back|cannot be read)"):
        made(trained, tmp_path)


def test_a_sealed_suite_shows_no_item(registry: SuiteRegistry) -> None:
    registry.add(upload(text("1+1"), sealed=True), actor="ana", reason="r")
    with pytest.raises(StateError, match="sealed: its items are not shown"):
        registry.items(registry.get("sums"))


def test_a_configured_suite_that_is_new_quarantines_what_overlaps_it_once(
    trained: Trained, overlap: Overlap, tmp_path: Path
) -> None:
    config = configured(tmp_path, text("1+1", "3-1"))
    made(trained, tmp_path, overlap, [config])
    assert [(suite, count) for suite, count, _ in overlap.calls] == [("conf", 2)]
    made(trained, tmp_path, overlap, [config])
    assert len(overlap.calls) == 1
    made(trained, tmp_path, overlap, [configured(tmp_path, text("1+1", "4-2"))])
    assert len(overlap.calls) == 2
