"""What collecting is made of in the daemon."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from opsd.daemon.app.collecting import (
    Canaries,
    CurrentHeldOut,
    PairOverlap,
    WatchedAttempts,
    canaries_of,
    recorder_of,
)
from opsd.daemon.collect.hygiene.contamination import Renumbered
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pairs import (
    Attempt,
    Pair,
    PairInput,
    PairStatus,
    SuiteItem,
    Verdict,
    VerdictKind,
)
from opsd.daemon.types.suites import OverlapReport
from opsd.daemon.types.text import prompt_key

PROBLEM = "A farmer has 17 sheep, sells 9 of them and buys 4 lambs. How many animals has he now?"


def config(state_dir: Path, fraction: float) -> OpsdConfig:
    return OpsdConfig.model_validate(
        {"state_dir": str(state_dir), "collect": {"hygiene": {"canary_fraction": fraction}}}
    )


def test_the_canaries_secret_is_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    assert canaries_of(config(tmp_path, 0.0)) is None
    first = canaries_of(config(tmp_path, 1.0))
    assert first is not None
    path = tmp_path / "canary.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = canaries_of(config(tmp_path, 1.0))
    assert again is not None
    assert again.planted("id", "42") == first.planted("id", "42") != "42"
    # Planted once, they are looked for even when no more are.
    later = canaries_of(config(tmp_path, 0.0))
    assert later is not None
    assert later.planted("id", "42") == "42"
    assert later.find(first.planted("id", "42"))
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"canary\.key"):
        canaries_of(config(tmp_path, 1.0))


def test_completions_are_looked_through_once_they_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[Attempt] = []

    class Sink:
        def add_attempts(self, attempts: Sequence[Attempt]) -> None:
            kept.extend(attempts)

    def leaks() -> float:
        found = REGISTRY.get_sample_value("opsd_canary_leaks_total", {"place": "completion"})
        return found or 0.0

    canaries = Canaries(b"0123456789abcdef", 1.0)
    watched = WatchedAttempts(Sink(), canaries)
    before = leaks()
    clean = Attempt("a", "r", "base", "p", "the answer is 42", 4, 1.0)
    watched.add_attempts([clean])
    assert leaks() == before
    leaked = Attempt("b", "r", "base", "p", canaries.planted("x", "42").lower(), 4, 1.0)
    watched.add_attempts([clean, leaked])
    assert leaks() == before + 1
    assert kept == [clean, clean, leaked]
    assert "place=completion adapter=base attempt=b canaries=1" in caplog.text


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize("record", [True, False])
async def test_completions_that_are_not_kept_are_looked_through_too(
    tmp_path: Path, fraction: float, record: bool
) -> None:
    kept: list[Attempt] = []

    class Sink:
        def add_attempts(self, attempts: Sequence[Attempt]) -> None:
            kept.extend(attempts)

    def counted(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    settings = config(tmp_path, fraction)
    settings = settings.model_copy(
        update={"server": settings.server.model_copy(update={"record_attempts": record})}
    )
    canaries = canaries_of(settings)
    recorder = recorder_of(settings, Sink(), canaries)
    if recorder is None:
        assert (fraction, record) == (0.0, False)
        return
    text = canaries.planted("x", "42") if canaries is not None else "42"
    before = counted("opsd_canary_leaks_total", place="completion")
    unkept = counted("opsd_attempts_total", outcome="looked_through")
    recorder.start()
    recorder.offer(Attempt("b", "r", "base", "p", text, 4, 1.0))
    assert await recorder.flush()
    await recorder.stop()
    assert len(kept) == record
    assert counted("opsd_canary_leaks_total", place="completion") == before + fraction
    assert counted("opsd_attempts_total", outcome="looked_through") == unkept + (not record)


def test_a_suite_may_say_that_numbers_tell_problems_apart() -> None:
    item = SuiteItem("1", PROBLEM, "numeric", "12")
    other = PROBLEM.replace("17", "31").replace("9", "12").replace("4", "8")
    for renumbered, found in ((Renumbered.AUTO, "s"), (Renumbered.NEVER, None)):
        held_out = CurrentHeldOut({"s": renumbered})
        held_out.replace({"s": [item]})
        assert held_out.is_held_out(PROBLEM) == "s"
        assert held_out.is_held_out(other) == found


def test_stored_pairs_that_a_suite_holds_are_counted_and_then_put_aside(tmp_path: Path) -> None:
    prompts = (PROBLEM, PROBLEM.upper(), "What is 2 plus 2?")
    with closing(open_store(sqlite_url(tmp_path))) as store:
        for number, prompt in enumerate(prompts):
            given = PairInput(f"pair-{number}", prompt, "12", "numeric", "12")
            verdict = Verdict(VerdictKind.PASS, "numeric", "12 = 12", 0.0)
            store.add_pair(
                Pair(given, PairStatus.VERIFIED, verdict, "ana", 0.0, prompt, prompt_key(prompt))
            )

        def statuses() -> list[PairStatus]:
            return [store.get_pair(f"pair-{number}").status for number in range(3)]

        overlap, items = PairOverlap(store), [SuiteItem("1", PROBLEM, "numeric", "12")]
        found = OverlapReport(1, 1, 0, ("pair-0", "pair-1"))
        assert overlap.find_overlaps("s", items) == found
        assert statuses() == [PairStatus.VERIFIED] * 3
        assert overlap.quarantine_overlaps("s", items, "ann") == found
        assert statuses() == [PairStatus.QUARANTINED] * 2 + [PairStatus.VERIFIED]
        assert overlap.find_overlaps("s", items).num_known == 2
