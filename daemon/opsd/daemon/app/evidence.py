"""What lets others check the daemon's decisions: its key, manifests and the audit log's heads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from prometheus_client import Gauge

from opsd.daemon.adapters.manifest import Manifests
from opsd.daemon.adapters.signing import SigningKey, key_path, key_ring, load_or_create_key
from opsd.daemon.app.code_version import code_facts
from opsd.daemon.config.digest import config_sha256, public_config
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.config.signing import SigningConfig
from opsd.daemon.errors import StoreError
from opsd.daemon.store.heads import HeadKeeper
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.audit import canonical_json

log = logging.getLogger(__name__)

_POLL_S = 2.0
_INTACT = Gauge(
    "opsd_audit_intact", "1 while the audit log continues the head that was signed last, else 0"
)
_ENTRIES = Gauge("opsd_audit_entries", "Number of the audit log's newest signed entry")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The parts that sign."""

    key: SigningKey
    manifests: Manifests
    heads: HeadKeeper


def gather_evidence(config: OpsdConfig, fingerprint: str, store: SqlStore) -> Evidence:
    """Reads or makes the key, and tells the store what every audit entry says and who signs.

    Raises ConfigError for a key that cannot be used.
    """
    key = load_or_create_key(key_path(config.signing, config.state_dir))
    trusted = key_ring(key, config.signing)
    manifests = Manifests((config.state_dir / "adapters").absolute(), key, trusted, store)
    heads = HeadKeeper(config.state_dir / "audit" / "heads.jsonl", key, trusted, store)
    store.describe_daemon(
        code_facts(config_sha256=config_sha256(config), base_fingerprint=fingerprint)
    )
    store.set_witness(manifests)
    return Evidence(key, manifests, heads)


class AuditKeeper:
    """Notes the daemon's start and stop in the audit log, and has its head signed as it grows."""

    def __init__(self, store: SqlStore, heads: HeadKeeper, config: OpsdConfig) -> None:
        self._store = store
        self._heads = heads
        self._config = config
        self._signing: SigningConfig = config.signing
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._signed_id = 0
        self._signed_at_s = time.monotonic()
        self._complained = False

    async def start(self) -> None:
        """To be called before anything is decided."""
        assert self._task is None, "started twice"
        # Before the first entry of this start covers up that the end of the log is gone.
        await asyncio.to_thread(self._sign)
        detail = canonical_json({"config": public_config(self._config)})
        await asyncio.to_thread(
            self._store.add_audit,
            actor="opsd",
            action="daemon.start",
            subject="daemon",
            reason="started",
            detail_json=detail,
        )
        await asyncio.to_thread(self._sign)
        self._task = asyncio.create_task(self._drive(), name="audit-heads")

    def wake(self) -> None:
        """What serves has changed: the entry about it is signed at once."""
        self._wake.set()

    async def stop(self) -> None:
        """To be called last, while the store is still open."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        try:
            await asyncio.to_thread(
                self._store.add_audit,
                actor="opsd",
                action="daemon.stop",
                subject="daemon",
                reason="stopped",
            )
        except StoreError as error:
            log.warning("audit: the stop is not noted error=%s", error)
        await asyncio.to_thread(self._sign)

    async def _drive(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            woken = self._wake.is_set()
            self._wake.clear()
            if woken or await asyncio.to_thread(self._is_due):
                await asyncio.to_thread(self._sign)

    def _is_due(self) -> bool:
        try:
            new = self._store.audit_head().id - self._signed_id
        except StoreError as error:
            log.warning("audit: the head cannot be read error=%s", error)
            return False
        waited_s = time.monotonic() - self._signed_at_s
        return new != 0 and (
            new >= self._signing.head_every_entries or waited_s >= self._signing.head_every_s
        )

    def _sign(self) -> None:
        try:
            problems = self._heads.sign()
            self._signed_id = self._heads.newest().id
        except StoreError as error:
            log.error("audit: no head is signed error=%s", error)
            return
        self._signed_at_s = time.monotonic()
        _INTACT.set(0 if problems else 1)
        _ENTRIES.set(self._signed_id)
        if problems and not self._complained:
            self._complained = True
            log.error(
                "audit: the log does not continue its last signed head, nothing more of it is "
                "signed: %s; `opsd audit verify` shows all of it",
                "; ".join(str(problem) for problem in problems[:3]),
            )
