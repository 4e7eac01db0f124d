"""How a finished run's adapter enters the daemon: verified, copied, stored, loaded."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opsd.daemon.adapters.files import (
    ADAPTER_FILES,
    AdapterFacts,
    check_listing,
    verify_adapter_dir,
)
from opsd.daemon.errors import AdapterError, NotFoundError, StateError, StoreError
from opsd.daemon.store.api import AdapterStore
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.runs import Run

log = logging.getLogger(__name__)

_INCOMING = ".incoming-"
_HEX_DIGITS_IN_NAME = 16


_ROLES = {
    AdapterState.CANDIDATE: "candidate",
    AdapterState.RETIRED: "candidate",
    AdapterState.CANARY: "canary",
    AdapterState.INCUMBENT: "incumbent",
    AdapterState.PREVIOUS: "previous",
}
"""As what the engine holds a known adapter; a rejected one it does not hold."""


class EngineResidency(Protocol):
    """Which adapters the engine holds (``Residency`` is the real one)."""

    async def ensure(self, handle: AdapterHandle, role: str) -> None: ...

    async def retire(self, name: str) -> None: ...


def adapter_name(sha256: str) -> str:
    """``opsd-`` and the first 16 hexadecimal digits of the content digest."""
    return f"opsd-{sha256[:_HEX_DIGITS_IN_NAME]}"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What an adapter must fit; ``max_rank`` is the engine's."""

    directory: Path
    fingerprint: str
    max_rank: int


def verify_for_model(directory: Path, sha256: str, model: ServedModel) -> AdapterFacts:
    """``verify_adapter_dir``, and that the adapter was made for the served model, as far as it
    says.
    """
    facts = verify_adapter_dir(
        directory, expected_sha256=sha256, model_dir=model.directory, max_rank=model.max_rank
    )
    # Models of one architecture have equal shapes: only the fingerprint that opsd's trainer
    # writes tells them apart. Other writers put a path there, which says nothing.
    if _is_digest(facts.base_model) and facts.base_model != model.fingerprint:
        raise AdapterError(
            f"adapter {directory}: made for base model {facts.base_model}, not for the served "
            f"one, whose fingerprint is {model.fingerprint}"
        )
    return facts


class AdapterIntake:
    """Takes adapters into ``state_dir/adapters``; only what lies there is ever served."""

    def __init__(
        self,
        store: AdapterStore,
        *,
        state_dir: Path,
        model_dir: Path,
        fingerprint: str,
        max_rank: int,
        residency: EngineResidency,
        clock: Callable[[], float] = time.time,
        check_manifest: Callable[[Adapter], None] = lambda adapter: None,
    ) -> None:
        """``fingerprint`` is the served model's, ``max_rank`` the engine's; ``check_manifest``
        raises AdapterError unless a promoted adapter's manifest vouches for its files."""
        self._store = store
        self._adapters_dir = state_dir / "adapters"
        self._model_dir = model_dir
        self._fingerprint = fingerprint
        self._max_rank = max_rank
        self._residency = residency
        self._clock = clock
        self._check_manifest = check_manifest
        self._lock = asyncio.Lock()

    async def admit(self, run: Run, adapter_dir: Path | str, expected_sha256: str) -> Adapter:
        """The adapter of ``run``, stored as a candidate and loaded beside the incumbent.

        Admitting the same bytes again returns the same row. Raises AdapterError when the files are
        not what they should be, StoreError when they cannot be kept, StateError when another run
        made these very bytes and they were rejected or serve already, and EngineError when they
        cannot be loaded. Files that are refused are not kept.
        """
        sha256 = checked_digest(expected_sha256)
        async with self._lock:
            directory, facts = await asyncio.to_thread(self._take_in, Path(adapter_dir), sha256)
            adapter = await asyncio.to_thread(
                self._store.add_adapter, self._row(run, directory, facts)
            )
        _check_admissible(adapter, run)
        if facts.is_noop:
            log.warning("adapter_noop adapter=%s run=%s: every B is zero", adapter.name, run.id)
        await self._residency.ensure(adapter.handle(), _ROLES[adapter.state])
        log.info("adapter_admitted adapter=%s run=%s rank=%d", adapter.name, run.id, adapter.rank)
        return adapter

    async def withdraw(self, name: str) -> None:
        """Unloads a candidate that will not be promoted, once nothing uses it.

        A no-op for an adapter that serves, is one rollback away, or is not known.
        """
        try:
            adapter = await asyncio.to_thread(self._store.get_adapter, name)
        except NotFoundError:
            return
        if _ROLES.get(adapter.state, "candidate") == "candidate":
            await self._residency.retire(adapter.name)

    def verify_known(self, adapter: Adapter) -> None:
        """Checks a stored adapter's manifest and bytes before they serve; raises AdapterError.

        Reads all of them: call it in a thread.
        """
        if adapter.model_fingerprint != self._fingerprint:
            raise AdapterError(
                f"{adapter.name} was trained on the model with fingerprint "
                f"{adapter.model_fingerprint}, but model.path {self._model_dir} has "
                f"{self._fingerprint}: serve that model again, or start with a fresh state_dir"
            )
        self._check_manifest(adapter)
        self._verify(Path(adapter.path), adapter.sha256)

    def _take_in(self, source: Path, sha256: str) -> tuple[Path, AdapterFacts]:
        """The adapter's lasting directory; verifies the copy, which nobody else writes to."""
        directory = (self._adapters_dir / adapter_name(sha256)).absolute()
        try:
            self._adapters_dir.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            if directory.exists():
                return directory, self._verify(directory, sha256)
            check_listing(source)
        except OSError as error:
            raise StoreError(f"{self._adapters_dir}: {error}") from error
        incoming = self._adapters_dir / f"{_INCOMING}{uuid.uuid4().hex}"
        try:
            incoming.mkdir()
            for name in ADAPTER_FILES:
                copy_file(source / name, incoming / name)
            _fsync_dir(incoming)
            facts = self._verify(incoming, sha256)
            incoming.rename(directory)
            _fsync_dir(self._adapters_dir)
        except OSError as error:
            raise StoreError(f"adapter {source} not copied to {directory}: {error}") from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return directory, facts

    def _verify(self, directory: Path, sha256: str) -> AdapterFacts:
        return verify_for_model(
            directory,
            sha256,
            ServedModel(self._model_dir, self._fingerprint, self._max_rank),
        )

    def _remove_leftovers(self) -> None:
        """Half copies of a daemon that was killed; the lock says that none is being made."""
        for leftover in self._adapters_dir.glob(f"{_INCOMING}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _row(self, run: Run, directory: Path, facts: AdapterFacts) -> Adapter:
        return Adapter(
            name=adapter_name(facts.sha256),
            sha256=facts.sha256,
            lora_id=0,  # the store allots it
            state=AdapterState.CANDIDATE,
            run_id=run.id,
            path=str(directory),
            rank=facts.rank,
            alpha=facts.alpha,
            size_bytes=facts.size_bytes,
            model_fingerprint=self._fingerprint,
            created_unix_s=self._clock(),
        )


def _check_admissible(adapter: Adapter, run: Run) -> None:
    """Training is deterministic: the same pairs, seed and settings make the same bytes again."""
    open_states = (AdapterState.CANDIDATE, AdapterState.RETIRED)
    same_run = adapter.run_id == run.id and adapter.state is not AdapterState.REJECTED
    if adapter.state not in open_states and not same_run:
        raise StateError(
            f"run {run.id} trained the very adapter that run {adapter.run_id} did, {adapter.name}, "
            f"which is {adapter.state.value}: train on new pairs or with another seed"
        )


def _is_digest(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def checked_digest(sha256: str) -> str:
    """Lower-case; a malformed one must not become part of a path."""
    digest = sha256.lower()
    if not _is_digest(digest):
        raise AdapterError(
            f"the adapter's digest is {sha256!r}, expected SHA-256 in 64 hexadecimal digits"
        )
    return digest


def copy_file(source: Path, target: Path, *, durably: bool = True) -> None:
    """Copies one regular file, follows no link; the copy is read-only and, ``durably``, on disk."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fchmod(writer.fileno(), 0o444)
        if durably:
            os.fsync(writer.fileno())


def _fsync_dir(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
