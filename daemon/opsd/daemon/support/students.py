"""The students of runs in the engine: their files, names and versions."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opsd.daemon.adapters.files import ADAPTER_FILES, check_listing
from opsd.daemon.adapters.intake import ServedModel, checked_digest, copy_file, verify_for_model
from opsd.daemon.adapters.residency import STUDENT
from opsd.daemon.errors import (
    AdapterError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    StateError,
    StoreError,
)
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.runs import Run

log = logging.getLogger(__name__)

# Stored adapters count from 1; the engine keys weights by these ids, so the ranges never meet.
_FIRST_LORA_ID = 1 << 30
_RUN_DIGITS = 8
_SHA_DIGITS = 16
_HELD_VERSIONS = 2


class EngineResidency(Protocol):
    """Which adapters the engine holds (``Residency`` is the real one)."""

    async def ensure(self, handle: AdapterHandle, role: str) -> None: ...

    async def retire(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Student:
    """One version of a run's adapter."""

    handle: AdapterHandle
    run_id: str
    sha256: str


def student_name(run_id: str, sha256: str) -> str:
    """``opsd-run-``, the run's and the content digest's first digits."""
    return f"opsd-run-{run_id[:_RUN_DIGITS]}-{sha256[:_SHA_DIGITS]}"


class Students:
    """Keeps copies of the files: a run may delete its own while the engine still needs them.

    Of one run at most two versions are loaded: the newest, and the one before while it is used.
    """

    def __init__(
        self,
        residency: EngineResidency,
        model: ServedModel,
        directory: Path,
    ) -> None:
        """``directory`` is for the copies alone; what lies there from before is removed."""
        self._residency = residency
        self._model = model
        self._directory = directory.absolute()
        self._ids = itertools.count(_FIRST_LORA_ID)
        # Every name that the engine has met keeps its bytes, id and path.
        self._known: dict[str, Student] = {}
        self._loaded: defaultdict[str, list[Student]] = defaultdict(list)  # by run, oldest first
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._uses: Counter[str] = Counter()
        self._idle: dict[str, asyncio.Event] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def clear_leftovers(self) -> None:
        """Removes what a daemon that was killed left behind; call it before anything is loaded."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def runs(self) -> list[str]:
        """Ids of the runs that have a student here."""
        return [run_id for run_id, students in self._loaded.items() if students]

    def find(self, run_id: str, name: str) -> Student:
        """Raises NotFoundError unless the run has a student of this name loaded."""
        for student in self._loaded.get(run_id, ()):
            if student.handle.name == name:
                return student
        names = ", ".join(s.handle.name for s in self._loaded.get(run_id, ())) or "none"
        raise NotFoundError(
            f"adapter: {name[:80]!r} is not a loaded student of run {run_id}, which has {names}: "
            "call LoadStudent (again)"
        )

    @contextmanager
    def use(self, student: Student) -> Iterator[AdapterHandle]:
        """The student stays loaded until the exit."""
        name = student.handle.name
        self._uses[name] += 1
        try:
            yield student.handle
        finally:
            self._uses[name] -= 1
            if not self._uses[name]:
                del self._uses[name]
                self._idle.pop(name, asyncio.Event()).set()

    async def load(self, run: Run, path: Path, sha256: str) -> Student:
        """Checks the files byte by byte, copies them and has the engine load the copy.

        Waits while two older versions are in use. Raises InvalidInputError for a path outside the
        run's directory, AdapterError for files that are not what they should be, OverloadedError
        while the engine has no slot that serving does not need, EngineError when it cannot load
        them.
        """
        digest = checked_digest(sha256)
        source = await asyncio.to_thread(_inside, run, path)
        async with self._locks[run.id]:
            held = self._loaded[run.id]
            student = await asyncio.to_thread(self._take_in, run.id, source, digest)
            name = student.handle.name
            if student in held and name not in self._leaving:
                return student
            # The same bytes may just be on their way out.
            await self._gone([name, *(s.handle.name for s in held[: 1 - _HELD_VERSIONS])])
            student = await asyncio.to_thread(self._take_in, run.id, source, digest)
            await self._ensure(run.id, student)
            older = [s for s in held if s is not student]
            held.append(student)
            for other in older:
                self._leave(run.id, other)
        log.info("student loaded run=%s adapter=%s", run.id, name)
        return student

    async def release(self, run_id: str) -> None:
        """Unloads the run's students as soon as nothing uses them; returns when they are gone."""
        async with self._locks[run_id]:
            students = list(self._loaded.get(run_id, ()))
            for student in students:
                self._leave(run_id, student)
            await self._gone([student.handle.name for student in students])
            self._loaded.pop(run_id, None)
            for student in [s for s in self._known.values() if s.run_id == run_id]:
                await asyncio.to_thread(self._remove, student)
        self._locks.pop(run_id, None)
        if students:
            log.info("students released run=%s", run_id)

    def forget(self, name: str) -> None:
        """The engine has let go of it for another adapter's sake: nobody may use it any more."""
        for students in self._loaded.values():
            for student in [s for s in students if s.handle.name == name]:
                students.remove(student)

    async def _ensure(self, run_id: str, student: Student) -> None:
        try:
            try:
                await self._residency.ensure(student.handle, STUDENT)
            except StateError:
                older = list(self._loaded[run_id])
                if not older:
                    raise
                # No room for two versions: the older one goes first, once it is not used any more.
                for other in older:
                    self._leave(run_id, other)
                await self._gone([other.handle.name for other in older])
                await self._residency.ensure(student.handle, STUDENT)
        except StateError as error:
            self._remove(student)
            raise OverloadedError(str(error)) from error
        except BaseException:
            self._remove(student)
            raise

    def _leave(self, run_id: str, student: Student) -> None:
        name = student.handle.name
        if name not in self._leaving:
            self._leaving[name] = asyncio.create_task(
                self._retire(run_id, student), name=f"retire-{name}"
            )

    async def _retire(self, run_id: str, student: Student) -> None:
        name = student.handle.name
        try:
            while self._uses[name]:
                await self._idle.setdefault(name, asyncio.Event()).wait()
            if student in self._loaded.get(run_id, ()):
                self._loaded[run_id].remove(student)  # from here on nobody can name it
            await self._residency.retire(name)
            await asyncio.to_thread(self._remove, student)
        finally:
            del self._leaving[name]

    async def _gone(self, names: list[str]) -> None:
        tasks = [self._leaving[name] for name in names if name in self._leaving]
        # A caller that gives up must not keep a student in the engine.
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    def _take_in(self, run_id: str, source: Path, sha256: str) -> Student:
        """The student with a verified copy of its files; blocks."""
        name = student_name(run_id, sha256)
        known = self._known.get(name)
        if known is not None and (known.run_id, known.sha256) != (run_id, sha256):
            raise AdapterError(
                f"adapter {source}: {name} already stands for the bytes {known.sha256} of run "
                f"{known.run_id}: change the run's seed"
            )
        target = self._directory / name
        try:
            if not target.is_dir():
                self._copy(source, target, sha256)
        except OSError as error:
            raise StoreError(f"adapter {source} not copied to {target}: {error}") from error
        if known is None:
            known = Student(AdapterHandle(name, next(self._ids), str(target)), run_id, sha256)
            self._known[name] = known
        return known

    def _copy(self, source: Path, target: Path, sha256: str) -> None:
        check_listing(source)
        incoming = target.with_name(f".{target.name}")
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(mode=0o700, parents=True)
        try:
            for name in ADAPTER_FILES:
                copy_file(source / name, incoming / name, durably=False)
            verify_for_model(incoming, sha256, self._model)
            incoming.rename(target)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def _remove(self, student: Student) -> None:
        shutil.rmtree(student.handle.path, ignore_errors=True)


def _inside(run: Run, path: Path) -> Path:
    """The adapter's directory, links resolved, if it lies in the run's."""
    try:
        root, found = Path(run.run_dir).resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInputError(f"path: {str(path)[:200]!r} cannot be read: {error}") from error
    if not run.run_dir or root not in found.parents:
        raise InvalidInputError(
            f"path: {found} is not inside the run's directory {root}: write the student there"
        )
    return found
