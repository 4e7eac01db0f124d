"""The calls that let others check what was decided: the audit log, keys and signed adapters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc

from opsd.daemon.adapters.manifest import Manifests
from opsd.daemon.admin.convert import audit_to_proto
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.store.api import AdapterStore, AuditStore
from opsd.daemon.store.heads import HeadKeeper
from opsd.daemon.types.adapters import AuditEntry, Incumbent
from opsd.daemon.types.audit import ChainVerifier, Head, parse_head
from opsd.daemon.types.manifest import ADAPTER_FILES, MANIFEST_NAME, PUBLIC_KEY_NAME
from opsd.daemon.types.signatures import PublicKey, Signer
from opsd.v1 import admin_pb2

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

_PIECE_BYTES = 1 << 20


class AuditedStore(AdapterStore, AuditStore, Protocol):
    """What is read here."""


@dataclass(frozen=True, slots=True)
class AuditDoor:
    """Everything behind these calls. The methods block."""

    store: AuditedStore
    signer: Signer
    manifests: Manifests
    heads: HeadKeeper

    def verify(self, expected: Head | None) -> Iterator[admin_pb2.AuditProgress]:
        """Checks the log against itself, its signed heads, the head's row and what serves."""
        # Read first: the log only grows, so it must hold whatever they name.
        incumbent = self.store.get_incumbent()
        row = self.store.audit_head()
        signed, problems = self.heads.read()
        anchors = [row, *(item.head for item in signed), *([expected] if expected else [])]
        chain = ChainVerifier(anchors)
        changes = _ChangeCheck(incumbent)
        for problem in problems:
            chain.report(problem.entry_id, problem.message)
        for batch in self.store.audit_entries():
            for entry in batch:
                chain.feed(entry)
                changes.feed(entry)
            yield admin_pb2.AuditProgress(checked=chain.checked, total=max(row.id, chain.checked))
        chain.finish()
        if self.store.audit_head().id < chain.head.id:
            chain.report(chain.head.id, "stands behind the end of the log: it was inserted")
        for message in changes.problems():
            chain.report(0, message)
        yield _result(chain, row, len(signed))

    def head(self) -> admin_pb2.AuditHead:
        problems = self.heads.sign()
        newest = self.heads.newest_signed()
        row = self.store.audit_head()
        if problems or newest is None:
            why = str(problems[0]) if problems else ""
            return admin_pb2.AuditHead(id=row.id, sha256=row.sha256, problem=why)
        head = newest.head
        return admin_pb2.AuditHead(id=head.id, sha256=head.sha256, envelope=newest.envelope)

    def export_log(self) -> Iterator[admin_pb2.AuditBatch]:
        # The last head covers what is there now; entries that come meanwhile are left out.
        self.heads.sign()
        end = self.store.audit_head().id
        signed, _ = self.heads.read()
        for batch in self.store.audit_entries():
            entries = [audit_to_proto(entry) for entry in batch if entry.id <= end]
            yield admin_pb2.AuditBatch(entries=entries)
            if batch[-1].id >= end:
                break
        for item in signed:
            yield admin_pb2.AuditBatch(heads=[item.envelope])

    def export_adapter(self, name: str) -> Iterator[admin_pb2.FilePiece]:
        adapter = self.store.get_adapter(name)
        envelope = self.manifests.envelope(adapter.name)
        self.manifests.check(adapter)
        pem = self.signer.public_key.pem
        yield admin_pb2.FilePiece(file=MANIFEST_NAME, data=envelope.encode())
        yield admin_pb2.FilePiece(file=PUBLIC_KEY_NAME, data=pem.encode())
        for file in ADAPTER_FILES:
            with (Path(adapter.path) / file).open("rb") as reader:
                while piece := reader.read(_PIECE_BYTES):
                    yield admin_pb2.FilePiece(file=file, data=piece)

    def keys(self) -> admin_pb2.SigningKeys:
        trusted = [_key(key) for key in self.manifests.trusted.keys]
        return admin_pb2.SigningKeys(own=_key(self.signer.public_key), trusted=trusted)


class AuditCalls:
    """The part of AdminService that answers them."""

    def __init__(self, door: AuditDoor) -> None:
        self._door = door

    async def VerifyAudit(
        self, request: admin_pb2.VerifyAuditRequest, context: Context
    ) -> AsyncIterator[admin_pb2.AuditProgress]:
        expected = None
        if request.expected_head:
            try:
                expected = parse_head(request.expected_head)
            except ValueError as error:
                raise InvalidInputError(f"expected_head: {error}") from error
        async for progress in _in_thread(self._door.verify(expected)):
            yield progress

    async def ExportAudit(
        self, request: admin_pb2.ExportAuditRequest, context: Context
    ) -> AsyncIterator[admin_pb2.AuditBatch]:
        async for batch in _in_thread(self._door.export_log()):
            yield batch

    async def GetAuditHead(
        self, request: admin_pb2.GetAuditHeadRequest, context: Context
    ) -> admin_pb2.AuditHead:
        return await asyncio.to_thread(self._door.head)

    async def GetSigningKeys(
        self, request: admin_pb2.GetSigningKeysRequest, context: Context
    ) -> admin_pb2.SigningKeys:
        return self._door.keys()

    async def ExportAdapter(
        self, request: admin_pb2.ExportAdapterRequest, context: Context
    ) -> AsyncIterator[admin_pb2.FilePiece]:
        if not request.name.strip():
            raise InvalidInputError("name: is empty; name an adapter (a unique prefix will do)")
        async for piece in _in_thread(self._door.export_adapter(request.name.strip())):
            yield piece


@dataclass(slots=True)
class _ChangeCheck:
    """Whether the log's last change of what serves is what the incumbent's row says."""

    incumbent: Incumbent
    serving: str | None = None  # as of the row's epoch

    def feed(self, entry: AuditEntry) -> None:
        if not entry.action.startswith("adapter."):
            return
        try:
            detail = json.loads(entry.detail_json)
            if detail["epoch"] == self.incumbent.epoch:
                self.serving = str(detail["to"])
        except (ValueError, LookupError, TypeError):
            return

    def problems(self) -> Iterator[str]:
        row = self.incumbent
        if self.serving is None and row.epoch > 0:
            yield (
                f"no entry tells of the change that made {row.adapter} serve (epoch {row.epoch}): "
                "the incumbent's row was changed past the log, or its entry deleted"
            )
        elif self.serving is not None and self.serving != row.adapter:
            yield (
                f"{row.adapter} serves (epoch {row.epoch}), but the entry of that epoch says "
                f"{self.serving}: the incumbent's row was changed past the log"
            )


def _result(chain: ChainVerifier, row: Head, num_signed: int) -> admin_pb2.AuditProgress:
    return admin_pb2.AuditProgress(
        checked=chain.checked,
        total=max(row.id, chain.checked),
        done=True,
        problems=[
            admin_pb2.AuditProblem(entry_id=problem.entry_id, message=problem.message)
            for problem in chain.problems
        ],
        num_problems=chain.num_problems,
        head_id=chain.head.id,
        head_sha256=chain.head.sha256,
        signed_heads=num_signed,
    )


def _key(key: PublicKey) -> admin_pb2.SigningKey:
    return admin_pb2.SigningKey(id=key.id, text=key.text, pem=key.pem)


async def _in_thread(items: Iterator[T]) -> AsyncIterator[T]:
    """What a blocking iterator gives, without blocking the event loop."""
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item
