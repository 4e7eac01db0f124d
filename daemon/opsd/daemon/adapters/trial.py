"""Adapters that are measured and never serve: verified, loaded, unloaded, forgotten."""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from opsd.daemon.adapters.files import ADAPTER_FILES, check_listing
from opsd.daemon.adapters.intake import (
    ServedModel,
    adapter_name,
    checked_digest,
    copy_file,
    verify_for_model,
)
from opsd.daemon.errors import NotFoundError, StoreError
from opsd.daemon.types.adapters import Adapter
from opsd.daemon.types.engine import AdapterHandle

log = logging.getLogger(__name__)

_ROLE = "candidate"


class TrialStore(Protocol):
    """The part of the adapters' store that trials use."""

    def get_adapter(self, name: str) -> Adapter: ...

    def allot_lora_id(self) -> int: ...


class TrialResidency(Protocol):
    """Which adapters the engine holds (``Residency`` is the real one)."""

    def handles(self) -> Collection[AdapterHandle]: ...

    async def ensure(self, handle: AdapterHandle, role: str) -> None: ...

    async def retire(self, name: str) -> None: ...


class Trials:
    """Loads adapters for a while, without a row of their own, from copies that nobody writes to.

    One at a time, so that all of them together take one of the engine's slots.
    The copies lie in ``state_dir/trials`` and go when the trial ends; what a killed daemon left
    there goes when the next one is made.
    """

    def __init__(
        self,
        store: TrialStore,
        *,
        state_dir: Path,
        model: ServedModel,
        residency: TrialResidency,
        verify_known: Callable[[Adapter], None],
    ) -> None:
        """``verify_known`` raises AdapterError unless a stored adapter's bytes are what they
        were."""
        self._store = store
        self._dir = state_dir / "trials"
        self._model = model
        self._residency = residency
        self._verify_known = verify_known
        self._turn = asyncio.Lock()
        shutil.rmtree(self._dir, ignore_errors=True)

    @asynccontextmanager
    async def on_trial(self, adapter_dir: Path, sha256: str) -> AsyncIterator[AdapterHandle]:
        """The adapter is loaded as a candidate within, and out of the engine afterwards.

        Raises AdapterError when the files are not what they should be, StoreError when they cannot
        be copied, StateError and EngineError when they cannot be loaded.
        """
        digest = checked_digest(sha256)
        async with self._turn:
            known = await asyncio.to_thread(self._known, adapter_name(digest))
            if known is not None:
                trial = self._loaded(known.handle())
            else:
                trial = self._copied(adapter_dir, digest)
            async with trial as handle:
                yield handle

    @asynccontextmanager
    async def _copied(self, adapter_dir: Path, digest: str) -> AsyncIterator[AdapterHandle]:
        directory = self._dir / uuid.uuid4().hex
        try:
            await asyncio.to_thread(self._copy, adapter_dir, directory, digest)
            lora_id = await asyncio.to_thread(self._store.allot_lora_id)
            path = str(directory.absolute())
            fresh = AdapterHandle(adapter_name(digest), lora_id, path, sha256=digest)
            async with self._loaded(fresh) as handle:
                yield handle
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    @asynccontextmanager
    async def _loaded(self, handle: AdapterHandle) -> AsyncIterator[AdapterHandle]:
        was_loaded = handle in self._residency.handles()
        if not was_loaded:
            await self._residency.ensure(handle, _ROLE)
        try:
            yield handle
        finally:
            # What was there before, an incumbent or somebody's candidate, is not ours to take away.
            if not was_loaded:
                await self._residency.retire(handle.name)

    def _known(self, name: str) -> Adapter | None:
        """Training is deterministic: the bytes of a trial may be those of a stored adapter."""
        try:
            adapter = self._store.get_adapter(name)
        except NotFoundError:
            return None
        self._verify_known(adapter)
        return adapter

    def _copy(self, source: Path, directory: Path, sha256: str) -> None:
        check_listing(source)
        try:
            directory.mkdir(parents=True, mode=0o700)
            for name in ADAPTER_FILES:
                copy_file(source / name, directory / name, durably=False)
        except OSError as error:
            raise StoreError(f"adapter {source} not copied to {directory}: {error}") from error
        facts = verify_for_model(directory, sha256, self._model)
        if facts.is_noop:
            log.info("adapter_noop path=%s: every B is zero", source)
