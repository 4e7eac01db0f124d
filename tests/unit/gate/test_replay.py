"""A stored decision comes out again, or it is said what does not."""

import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from opsd.daemon.errors import DamagedError, NotFoundError, StateError
from opsd.daemon.gate.decision import decide
from opsd.daemon.gate.inputs import GateInputs, encode
from opsd.daemon.gate.proto import replay_to_proto
from opsd.daemon.gate.replay import replay
from opsd.daemon.gate.rules import GateRules
from opsd.daemon.store import tables
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.gate import GateVerdict, SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(sqlite_url(tmp_path))
    yield opened
    opened.close()


def inputs(*, sealed: bool = False) -> GateInputs:
    items = tuple(
        ItemMeasured(
            str(number),
            {
                Arm.INCUMBENT: (AnswerRecord(number % 3 == 0, 40, words=30),),
                Arm.CANDIDATE: (AnswerRecord(number % 4 != 0, 38, words=30),),
            },
        )
        for number in range(300)
    )
    suite = SuiteMeasured("t", "1", "0" * 64, SuiteRole.TARGET, 0.0, items, sealed=sealed)
    return GateInputs("run-1", "opsd-1", "base", GateRules(), (suite,), 1.0, 2.0)


def save(store: SqlStore, given: GateInputs) -> None:
    store.save_gate_inputs(given.run_id, encode(given))
    store.save_gate(decide(given))


def test_the_same_report_comes_out(store: SqlStore) -> None:
    save(store, inputs())
    found = replay(store, "run-1")
    assert (found.identical, found.inputs_intact, found.message) == (True, True, "")
    assert found.replayed == store.get_gate("run-1")
    assert replay_to_proto(found, with_inputs=True).inputs == encode(inputs())


def test_an_edited_report_is_found(store: SqlStore) -> None:
    given = inputs()
    store.save_gate_inputs(given.run_id, encode(given))
    store.save_gate(replace(decide(given), verdict=GateVerdict.FAIL))
    found = replay(store, "run-1")
    assert not found.identical
    assert "the inputs give pass, the stored report says fail" in found.message
    store.save_gate(replace(decide(given), explanation="trust me"))
    assert "numbers or words are not" in replay(store, "run-1").message


def test_edited_inputs_are_found(store: SqlStore) -> None:
    save(store, inputs())
    forged = zlib.compress(encode(replace(inputs(), incumbent="opsd-0")))
    store._database.write(
        lambda connection: connection.execute(update(tables.gate_inputs).values(data=forged))
    )
    found = replay(store, "run-1")
    assert not found.identical
    assert not found.inputs_intact
    assert "are not what the report was decided from" in found.message


def test_damaged_inputs_are_found(store: SqlStore) -> None:
    save(store, inputs())
    damaged = zlib.compress(encode(inputs()))[:-1]
    store._database.write(
        lambda connection: connection.execute(update(tables.gate_inputs).values(data=damaged))
    )
    found = replay(store, "run-1")
    assert not found.identical
    assert not found.inputs_intact
    assert "are damaged" in found.message


def test_a_damaged_report_is_named(store: SqlStore) -> None:
    save(store, inputs())
    for text in ("{nope", "[]", "{}"):
        edit = update(tables.gate_reports).values(report_json=text)
        store._database.write(partial(Connection.execute, statement=edit))
        with pytest.raises(DamagedError, match="gate report of run-1 is damaged"):
            replay(store, "run-1")


def test_other_rules_are_named(store: SqlStore) -> None:
    given = inputs()
    store.save_gate_inputs(given.run_id, encode(given))
    store.save_gate(replace(decide(given), rules_version=1))
    assert "rules of version 1" in replay(store, "run-1").message


def test_a_report_from_before_has_nothing_to_replay(store: SqlStore) -> None:
    store.save_gate(replace(decide(inputs()), gate_inputs_sha256=""))
    with pytest.raises(NotFoundError, match="before inputs were kept"):
        replay(store, "run-1")


def test_inputs_of_a_sealed_suite_are_not_given_out(store: SqlStore) -> None:
    save(store, inputs(sealed=True))
    found = replay(store, "run-1")
    assert found.identical
    with pytest.raises(StateError, match="sealed"):
        replay_to_proto(found, with_inputs=True)
    assert replay_to_proto(found, with_inputs=False).inputs == b""
