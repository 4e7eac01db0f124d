"""The audit log in the database: chained as it is written, guarded, and tampering found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, delete, insert, text

from opsd.daemon.errors import InvalidInputError, StoreError
from opsd.daemon.store.area import write_audit
from opsd.daemon.store.heads import HeadKeeper
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.store.tables import audit
from opsd.daemon.types.adapters import Adapter, AuditEntry
from opsd.daemon.types.audit import (
    GENESIS,
    AuditFacts,
    ChainVerifier,
    Head,
    entry_sha256,
    sha256_hex,
)
from opsd.daemon.types.gate import GateReport, GateVerdict
from opsd.daemon.types.runs import Run, RunState
from opsd.daemon.types.signatures import PublicKey, ring

MakeRun = Callable[..., Run]
MakeAdapter = Callable[..., Adapter]


class Key:
    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(self.private.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


def fill(store: SqlStore, count: int = 6) -> None:
    for number in range(count):
        store.add_audit(actor="ana", action="x.y", subject=f"s{number}", reason=f"r{number}")


def verify(store: SqlStore, *anchors: Head) -> ChainVerifier:
    chain = ChainVerifier([store.audit_head(), *anchors])
    for batch in store.audit_entries():
        for entry in batch:
            chain.feed(entry)
    chain.finish()
    return chain


def run_sql(store: SqlStore, *statements: str) -> None:
    def work(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    store._database.write(work)


def unguard(store: SqlStore) -> None:
    """What somebody does who owns the database."""
    names = ("audit_no_update", "audit_no_delete", "audit_no_replace")
    if store.dialect == "postgresql":
        run_sql(store, "ALTER TABLE audit DISABLE TRIGGER ALL")
    else:
        run_sql(store, *(f"DROP TRIGGER {name}" for name in names))


def test_entries_are_chained_without_a_gap(store: SqlStore) -> None:
    fill(store)
    with pytest.raises(InvalidInputError):
        store.add_audit(actor="a", action="x", subject="s", reason="r", detail_json="[]")
    fill(store, 2)
    (entries,) = store.audit_entries()
    assert [entry.id for entry in entries] == list(range(1, 9))
    assert entries[0].prev_sha256 == GENESIS
    assert verify(store).problems == []
    assert store.audit_head() == Head(8, entries[-1].entry_sha256)


def test_a_write_that_fails_leaves_no_gap(store: SqlStore) -> None:
    fill(store, 1)

    def work(connection: Connection) -> None:
        write_audit(connection, 1.0, actor="a", action="x", subject="s", reason="r")
        raise StoreError("power cut")

    with pytest.raises(StoreError, match="power cut"):
        store._database.write(work)
    fill(store, 1)
    assert [entry.id for batch in store.audit_entries() for entry in batch] == [1, 2]
    assert verify(store).problems == []


def test_what_is_hashed_is_what_is_stored(store_url: str) -> None:
    """Times of every size, and texts that no database keeps as they are."""
    times = iter([0.0, -0.0, 1e-300, 1700000000.1, 0.1 + 0.2, 4102444800.999999])
    store = open_store(store_url, clock=lambda: next(times))
    strange = "\x00 \ud800 \udfff ü \u2028 \r\n 🙂"
    for _ in range(6):
        store.add_audit(
            actor=strange,
            action="x",
            subject=strange,
            reason=strange,
            detail_json=json.dumps({"text": strange}),
        )
    store.close()
    store = open_store(store_url)
    assert verify(store).problems == []
    entry = store.audit_entry(4)
    assert entry is not None
    assert entry.time_unix_s == 1700000000.1
    store.close()


FIELDS = {
    "id": "id = 99",
    "time": "time_unix_s = time_unix_s + 0.000001",
    "actor": "actor = 'mallory'",
    "action": "action = 'z'",
    "subject": "subject = 's9'",
    "reason": "reason = 'because'",
    "detail": """detail_json = '{"a":1}'""",
    "link": f"prev_sha256 = '{'a' * 64}'",
    "hash": f"entry_sha256 = '{'a' * 64}'",
}


def put_back(store: SqlStore, entry: AuditEntry) -> None:
    def work(connection: Connection) -> None:
        connection.execute(delete(audit).where(audit.c.id.in_([entry.id, 99])))
        connection.execute(insert(audit).values(**asdict(entry)))

    store._database.write(work)


def test_every_edit_is_found_and_placed(store: SqlStore) -> None:
    fill(store)
    unguard(store)
    for entry_id, (field, change) in product((1, 3, 6), FIELDS.items()):
        before = store.audit_entry(entry_id)
        assert before is not None
        run_sql(store, f"UPDATE audit SET {change} WHERE id = {entry_id}")
        problems = verify(store).problems
        where = 99 if field == "id" else entry_id
        assert any(problem.entry_id == where for problem in problems), (field, problems)
        put_back(store, before)
        assert verify(store).problems == []


def test_every_deletion_is_found(store: SqlStore) -> None:
    fill(store)
    unguard(store)
    for entry_id in (1, 3, 6):
        before = store.audit_entry(entry_id)
        assert before is not None
        run_sql(store, f"DELETE FROM audit WHERE id = {entry_id}")
        assert verify(store).num_problems >= 1
        put_back(store, before)


def test_a_swap_is_found(store: SqlStore) -> None:
    fill(store)
    unguard(store)
    run_sql(
        store,
        "UPDATE audit SET id = 100 WHERE id = 2",
        "UPDATE audit SET id = 2 WHERE id = 5",
        "UPDATE audit SET id = 5 WHERE id = 100",
    )
    assert {problem.entry_id for problem in verify(store).problems} >= {2, 5}


def test_a_hash_made_anew_is_found_at_the_next_entry(store: SqlStore) -> None:
    fill(store)
    entry = store.audit_entry(3)
    assert entry is not None
    forged = entry_sha256(replace(entry, actor="mallory"))
    unguard(store)
    run_sql(store, f"UPDATE audit SET actor = 'mallory', entry_sha256 = '{forged}' WHERE id = 3")
    assert [problem.entry_id for problem in verify(store).problems] == [4]


def test_an_inserted_entry_is_found(store: SqlStore) -> None:
    fill(store)
    last = store.audit_entry(6)
    assert last is not None
    forged = replace(last, id=7, prev_sha256=last.entry_sha256, actor="mallory")
    unguard(store)
    columns = "id, time_unix_s, actor, action, subject, reason, detail_json"
    run_sql(
        store,
        f"INSERT INTO audit ({columns}, prev_sha256, entry_sha256) VALUES (7, 1.0, 'mallory', 'x',"
        f" 's', 'r', '{{}}', '{forged.prev_sha256}', '{'0' * 64}')",
    )
    assert [problem.entry_id for problem in verify(store).problems] == [7]


def test_the_end_cut_off_is_found_by_a_kept_head(store: SqlStore) -> None:
    fill(store)
    kept = store.audit_head()
    four = store.audit_entry(4)
    assert four is not None
    unguard(store)
    run_sql(
        store,
        "DELETE FROM audit WHERE id > 4",
        f"UPDATE audit_head SET entry_id = 4, entry_sha256 = '{four.entry_sha256}'",
    )
    assert verify(store).problems == []
    assert "entries 5 to 6 are deleted" in verify(store, kept).problems[0].message


def test_the_database_refuses_changes(store: SqlStore) -> None:
    fill(store)
    around = {
        "postgresql": "TRUNCATE audit",
        "sqlite": "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE id = 3",
    }
    for statement in (
        "UPDATE audit SET reason = 'x' WHERE id = 2",
        "DELETE FROM audit WHERE id = 6",
        "DELETE FROM audit",
        around[store.dialect],
    ):
        with pytest.raises(StoreError, match="only ever added to"):
            run_sql(store, statement)
    assert verify(store).problems == []


def test_two_entries_never_follow_the_same_one(store: SqlStore) -> None:
    fill(store)
    columns = "time_unix_s, actor, action, subject, reason, detail_json, prev_sha256, entry_sha256"
    with pytest.raises(StoreError):
        run_sql(
            store,
            f"INSERT INTO audit (id, {columns}) SELECT 50, {columns} FROM audit WHERE id = 3",
        )


def test_a_log_without_a_head_is_not_continued(store: SqlStore) -> None:
    run_sql(store, "DELETE FROM audit_head")
    with pytest.raises(StoreError, match="restore the database"):
        fill(store, 1)


def test_entries_of_before_are_chained(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ScriptDirectory._upgrade_revs
    with monkeypatch.context() as first:
        first.setattr(
            ScriptDirectory, "_upgrade_revs", lambda self, _, now: steps(self, "0003", now)
        )
        store = open_store(store_url)
    columns = "id, time_unix_s, actor, action, subject, reason, detail_json"
    for number in (2, 3, 7):
        run_sql(
            store,
            f"INSERT INTO audit ({columns}) VALUES ({number}, {number}.25, 'ana',"
            f" 'adapter.promote', 'opsd-x', 'grün', '{{}}')",
        )
    store.close()

    store = open_store(store_url)
    assert verify(store).problems == []
    (entries,) = store.audit_entries()
    assert [entry.id for entry in entries] == [2, 3, 7, 8]
    assert entries[0].reason == "grün"
    assert (entries[3].action, entries[3].detail_json) == ("audit.chain", '{"entries":3}')
    fill(store, 1)
    assert verify(store).problems == []
    assert store.audit_head().id == 9
    with pytest.raises(StoreError, match="only ever added to"):
        run_sql(store, "DELETE FROM audit WHERE id = 2")
    unguard(store)
    run_sql(store, "DELETE FROM audit WHERE id = 3")
    assert verify(store).problems
    store.close()


def test_every_entry_says_which_daemon_wrote_it(store: SqlStore) -> None:
    facts = AuditFacts("1.2.3", "c" * 40, "d" * 64, "e" * 64, "f" * 64)
    store.describe_daemon(facts)
    store.add_audit(actor="a", action="x", subject="s", reason="r", detail_json='{"k": [1]}')
    entry = store.list_audit(limit=1).items[0]
    assert json.loads(entry.detail_json) == {
        "k": [1],
        "facts": {
            "version": "1.2.3",
            "commit": "c" * 40,
            "code_sha256": "d" * 64,
            "config_sha256": "e" * 64,
            "base_fingerprint": "f" * 64,
        },
    }


def test_facts_cannot_be_claimed(store: SqlStore) -> None:
    with pytest.raises(InvalidInputError, match="facts"):
        store.add_audit(actor="a", action="x", subject="s", reason="r", detail_json='{"facts": {}}')


def test_a_decision_names_what_it_rests_on(
    store: SqlStore, make_run: MakeRun, make_adapter: MakeAdapter
) -> None:
    run = store.create_run(make_run())
    spec = json.dumps({"shard": {"sha256": "5" * 64}})
    at = RunState.QUEUED
    for state in (RunState.PREPARING, RunState.TRAINING, RunState.EVALUATING):
        store.transition_run(run.id, expected=at, to=state, reason="on", spec_json=spec)
        at = state
    adapter = store.add_adapter(make_adapter(run.id))
    report = GateReport(run.id, adapter.name, "base", GateVerdict.PASS, "pass: fine", (), 1.0, 2.0)
    store.save_gate(report)
    store.save_gate(report)
    store.transition_run(run.id, expected=at, to=RunState.AWAITING_APPROVAL, reason="on")
    store.promote(adapter.name, expected_epoch=0, actor="ana", reason="good")
    store.rollback(expected_epoch=1, actor="bob", reason="bad")

    by_action = {e.action: e for batch in store.audit_entries() for e in batch}
    actions = [e.action for batch in store.audit_entries() for e in batch]
    assert actions == [
        "run.create",
        "run.train",
        "gate.verdict",
        "adapter.promote",
        "adapter.rollback",
    ]
    trained = json.loads(by_action["run.train"].detail_json)["facts"]
    assert trained["shard_sha256"] == "5" * 64
    assert trained["spec_sha256"] == sha256_hex(spec)
    facts = json.loads(by_action["adapter.promote"].detail_json)["facts"]
    stored = store._database.read(
        lambda c: c.execute(text("SELECT report_json FROM gate_reports")).scalar_one()
    )
    assert (
        facts
        | {
            "adapter_sha256": adapter.sha256,
            "shard_sha256": "5" * 64,
            "gate_verdict": "pass",
            "gate_report_sha256": sha256_hex(stored),
            "incumbent": adapter.name,
            "epoch": 1,
            "trigger": "operator",
            "run_id": run.id,
        }
        == facts
    )
    detail = json.loads(by_action["adapter.promote"].detail_json)
    assert (detail["from"], detail["to"], detail["epoch"]) == ("base", adapter.name, 1)
    assert by_action["gate.verdict"].reason == "pass: fine"


def test_the_gates_inputs_are_named_where_the_report_names_them(
    store: SqlStore, make_run: MakeRun, make_adapter: MakeAdapter
) -> None:
    run = store.create_run(make_run())
    adapter = store.add_adapter(make_adapter(run.id))
    report = json.dumps({"gate_inputs_sha256": "9" * 64})
    run_sql(
        store,
        "INSERT INTO gate_reports (run_id, candidate, verdict, report_json)"
        f" VALUES ('{run.id}', '{adapter.name}', 'fail', '{report}')",
    )
    store.reject(adapter.name, actor="ana", reason="no")
    facts = json.loads(store.list_audit(limit=1).items[0].detail_json)["facts"]
    assert facts["gate_inputs_sha256"] == "9" * 64
    assert facts["gate_verdict"] == "fail"


class Keeper:
    def __init__(self, store: SqlStore, path: Path) -> None:
        self.key = Key()
        self.store = store
        self.heads = HeadKeeper(path, self.key, ring([self.key.public_key]), store)


@pytest.fixture
def keeper(store: SqlStore, tmp_path: Path) -> Keeper:
    return Keeper(store, tmp_path / "audit" / "heads.jsonl")


def test_heads_are_signed_as_the_log_grows(keeper: Keeper) -> None:
    assert keeper.heads.sign() == []
    assert keeper.heads.read() == ([], [])
    kept = []
    for _ in range(3):
        fill(keeper.store, 2)
        assert keeper.heads.sign() == []
        assert keeper.heads.sign() == []  # nothing new
        kept.append(keeper.store.audit_head())
    signed, problems = keeper.heads.read()
    assert [item.head for item in signed] == kept
    assert problems == []
    assert keeper.heads.newest() == kept[-1]
    assert keeper.heads.path.stat().st_mode & 0o777 == 0o600


def test_the_newest_head_is_found_behind_many_that_do_not_count(keeper: Keeper) -> None:
    fill(keeper.store)
    keeper.heads.sign()
    kept = keeper.heads.newest()
    with keeper.heads.path.open("a") as file:
        file.write(("x" * 999 + "\n") * 200)
    assert keeper.heads.newest() == kept
    fill(keeper.store, 1)
    keeper.heads.sign()
    assert keeper.heads.newest() == keeper.store.audit_head()
    _, problems = keeper.heads.read()
    assert len(problems) == 200


def test_a_rewritten_log_is_not_signed(keeper: Keeper) -> None:
    fill(keeper.store)
    keeper.heads.sign()
    kept = keeper.heads.newest()
    unguard(keeper.store)
    run_sql(
        keeper.store,
        "DELETE FROM audit WHERE id > 4",
        "UPDATE audit_head SET entry_id = 4, entry_sha256 ="
        " (SELECT entry_sha256 FROM audit WHERE id = 4)",
    )
    fill(keeper.store, 5)
    (problem,) = keeper.heads.sign()
    assert problem.entry_id == 6
    assert keeper.heads.newest() == kept
    assert verify(keeper.store).problems == []
    assert verify(keeper.store, kept).num_problems == 1


def test_a_log_that_ends_before_its_signed_head_is_not_signed(keeper: Keeper) -> None:
    fill(keeper.store)
    keeper.heads.sign()
    unguard(keeper.store)
    run_sql(keeper.store, "DELETE FROM audit WHERE id > 4")
    (problem,) = keeper.heads.sign()
    assert "is missing" in problem.message


def test_an_edit_after_the_last_signed_head_is_not_signed(keeper: Keeper) -> None:
    fill(keeper.store)
    keeper.heads.sign()
    fill(keeper.store)
    unguard(keeper.store)
    run_sql(keeper.store, "UPDATE audit SET actor = 'mallory' WHERE id = 9")
    (problem,) = keeper.heads.sign()
    assert problem.entry_id == 9


def test_a_head_half_written_does_not_count(keeper: Keeper) -> None:
    fill(keeper.store)
    keeper.heads.sign()
    kept = keeper.heads.newest()
    with keeper.heads.path.open("ab") as file:
        file.write(b'{"payload":"abc')
    assert keeper.heads.newest() == kept
    fill(keeper.store)
    assert keeper.heads.sign() == []
    signed, problems = keeper.heads.read()
    assert ([item.head.id for item in signed], problems) == ([6, 12], [])


def test_a_forged_head_is_a_problem(keeper: Keeper) -> None:
    fill(keeper.store)
    stranger = Keeper(keeper.store, keeper.heads.path)
    stranger.heads.sign()
    signed, problems = keeper.heads.read()
    assert signed == []
    assert "line 1: signed by" in problems[0].message
