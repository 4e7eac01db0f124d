"""Two daemons on one PostgreSQL, and a connection that is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, text

from opsd.daemon.errors import ConcurrentChangeError, StoreError
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.audit import ChainVerifier
from opsd.daemon.types.pairs import AddPairKind, Pair


def backend(store: SqlStore) -> int:
    def work(connection: Connection) -> int:
        pid: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        return pid

    return store._database.write(work)


def kill(url: str, pid: int) -> None:
    helper = open_store(url, exclusive=False)
    helper._database.read(
        lambda connection: connection.execute(
            text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}
        ).scalar()
    )
    helper.close()


def test_two_stores_store_a_content_once(
    postgres_url: str, make_pair: Callable[[str], Pair]
) -> None:
    stores = [open_store(postgres_url, exclusive=False) for _ in range(2)]
    pairs = [make_pair(f"content {number}") for number in range(30)]
    barrier = threading.Barrier(2)

    def add_all(store: SqlStore) -> list[AddPairKind]:
        barrier.wait()
        return [store.add_pair(pair).kind for pair in pairs]

    with ThreadPoolExecutor(2) as threads:
        kinds = [kind for kinds in threads.map(add_all, stores) for kind in kinds]
    assert kinds.count(AddPairKind.STORED) == 30
    assert kinds.count(AddPairKind.ALREADY_STORED) == 30
    for store in stores:
        store.close()


def test_of_two_daemons_one_promotes(
    postgres_url: str, make_adapter: Callable[[], Adapter]
) -> None:
    stores = [open_store(postgres_url, exclusive=False) for _ in range(2)]
    for round_number in range(5):
        names = [store.add_adapter(make_adapter()).name for store in stores]
        epoch = stores[0].get_incumbent().epoch
        barrier = threading.Barrier(2)

        def promote(
            store: SqlStore, name: str, epoch: int = epoch, barrier: threading.Barrier = barrier
        ) -> bool:
            barrier.wait()
            try:
                store.promote(name, expected_epoch=epoch, actor="a", reason="r")
            except ConcurrentChangeError:
                return False
            return True

        with ThreadPoolExecutor(2) as threads:
            won = list(threads.map(promote, stores, names))
        assert sorted(won) == [False, True]
        row = stores[1].get_incumbent()
        assert (row.adapter, row.epoch) == (names[won.index(True)], round_number + 1)
        states = [adapter.state for adapter in stores[0].list_adapters()]
        assert states.count(AdapterState.INCUMBENT) == 1
    for store in stores:
        store.close()


def test_two_stores_migrate_one_database(postgres_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: open_store(postgres_url, exclusive=False), range(4)))
    assert {store.get_incumbent().epoch for store in stores} == {0}
    for store in stores:
        store.close()


def test_a_daemon_waits_for_the_one_before_to_be_gone(postgres_url: str) -> None:
    first = open_store(postgres_url)
    leave = threading.Timer(0.5, first.close)
    leave.start()
    open_store(postgres_url).close()
    leave.join()


def test_a_lost_connection_is_made_again(
    postgres_url: str, make_pair: Callable[[str], Pair]
) -> None:
    store = open_store(postgres_url)
    store.add_pair(make_pair("before"))
    kill(postgres_url, backend(store))
    pair = make_pair("after")
    with pytest.raises(StoreError):
        store.add_pair(pair)
    assert store.add_pair(pair).kind is AddPairKind.STORED
    assert store.count_pairs().verified == 2
    store.close()


def test_who_lost_the_lock_with_the_connection_does_not_write(
    postgres_url: str, make_pair: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store(postgres_url)
    kill(postgres_url, backend(first))
    second = open_store(postgres_url)
    with pytest.raises(StoreError):
        first.add_pair(make_pair("x"))
    with monkeypatch.context() as patch:
        patch.setattr("opsd.daemon.store.locks.WAIT_S", 0.2)
        with pytest.raises(StoreError, match="another daemon"):
            first.add_pair(make_pair("x"))
    assert second.count_pairs().verified == 0
    second.close()
    assert first.add_pair(make_pair("x")).kind is AddPairKind.STORED
    first.close()


def test_two_daemons_write_one_chain(postgres_url: str) -> None:
    """Without the lock on the head's row, two entries would follow the same one."""
    stores = [open_store(postgres_url, exclusive=False) for _ in range(2)]
    barrier = threading.Barrier(8)

    def add(number: int) -> list[int]:
        barrier.wait()
        store = stores[number % 2]
        return [
            store.add_audit(actor="a", action="x", subject=f"{number} {n}", reason="r")
            for n in range(25)
        ]

    with ThreadPoolExecutor(8) as threads:
        ids = [entry_id for some in threads.map(add, range(8)) for entry_id in some]
    assert sorted(ids) == list(range(1, 201))
    chain = ChainVerifier([stores[0].audit_head()])
    for batch in stores[1].audit_entries():
        for entry in batch:
            chain.feed(entry)
    chain.finish()
    assert (chain.problems, chain.checked) == ([], 200)
    for store in stores:
        store.close()
