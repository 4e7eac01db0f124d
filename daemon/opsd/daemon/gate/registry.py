"""The suites that hold now: those of the configuration and those added while the daemon runs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from opsd.daemon.config.gate import SuiteConfig
from opsd.daemon.errors import ConfigError, InvalidInputError, StateError
from opsd.daemon.gate.ports import TrainingOverlap
from opsd.daemon.gate.suite_file import VERSION, SuiteContent, file_text, read_content
from opsd.daemon.gate.suites import (
    EMPTY,
    ReferenceMistake,
    Suite,
    SuiteSet,
    TrainedKeys,
    any_reference,
    check_references,
    check_untrained,
    joined,
    load_suites,
    make_suite,
    read_file,
    trained_items,
)
from opsd.daemon.store.api import SuiteStore
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.suites import (
    OverlapReport,
    SuiteSettings,
    SuiteSource,
    SuiteVersion,
)

log = logging.getLogger(__name__)

FRESH_SHARE = 0.9
"""A version of which a smaller share is new carries over what was used of the items it repeats."""

HeldOutItems = Mapping[str, Sequence[SuiteItem]]
"""Everything that may not be trained on, by suite."""

CONFIGURED = "configuration"
"""Who declares what stands in the file."""


class RegistryStore(SuiteStore, TrainedKeys, Protocol):
    """The part of the store that the registry uses."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A suite as it was sent."""

    settings: SuiteSettings
    data: bytes
    place: str  # what messages call the text
    version: str = ""  # "": what the text says, else the next number
    description: str = ""


@dataclass(frozen=True, slots=True)
class Added:
    suite: SuiteVersion
    overlap: OverlapReport


class AnyReference(nullcontext[ReferenceMistake]):
    """Checks nothing: the verdicts will tell."""

    def __init__(self) -> None:
        super().__init__(any_reference)


class SuiteRegistry:
    """Which suites hold, and a way to change them without a restart.

    All methods block and may be called from any thread; changes are made one at a time. What is
    read (``active``) never waits for a change.
    """

    def __init__(
        self,
        store: RegistryStore,
        *,
        state_dir: Path,
        verifiers: Collection[str],
        references: Callable[[], AbstractContextManager[ReferenceMistake]] = AnyReference,
        overlap: TrainingOverlap | None = None,
    ) -> None:
        """``references`` opens a checker of references. ``overlap`` None: stored pairs are kept
        from a new suite's items only by their exact problems, when a run takes its snapshot."""
        self._store = store
        self._directory = state_dir / "suites"
        self._verifiers = frozenset(verifiers)
        self._references = references
        self._overlap = overlap
        self._turn = threading.Lock()
        self._active = EMPTY
        self._held_out = EMPTY
        self._listeners: list[Callable[[HeldOutItems], None]] = []

    def active(self) -> SuiteSet:
        """What a gate that begins now measures."""
        return self._active

    def subscribe(self, listener: Callable[[HeldOutItems], None]) -> None:
        """Called with everything that is held out, now and whenever that changes, in the thread
        that changes it; a suite that is being added is held out before it is active."""
        with self._turn:
            self._listeners.append(listener)
            listener(_by_suite(self._held_out))

    def load(self, configs: Sequence[SuiteConfig]) -> None:
        """Takes up what the configuration and the store say; to be called once, first.

        Raises ConfigError: for what ``load_suites`` refuses, for a stored suite whose file is not
        what it was, a name that both declare, a problem in two suites, and for items that were
        trained on.
        """
        with self._turn:
            with self._references() as mistake:
                configured = load_suites(
                    configs, verifiers=self._verifiers, reference_mistake=mistake
                ).suites
            kept = [
                self._stored(version)
                for version in self._store.list_suites()
                if version.source is SuiteSource.ADDED
            ]
            clash = {suite.name for suite in configured} & {suite.name for suite in kept}
            if clash:
                raise ConfigError(
                    f"gate.suites: {', '.join(sorted(clash))} was added with `opsd suites add` too:"
                    " rename it in the file, or start without it and use `opsd suites remove`"
                )
            try:
                suites = joined([*configured, *kept])
            except InvalidInputError as error:
                raise ConfigError(str(error)) from error
            check_untrained(suites, self._store)
            known = {(old.name, old.version) for old in self._store.list_suites(retired=True)}
            self._register(configured)
            self._publish(suites, held_out=suites)
            for suite in configured:
                if (suite.name, suite.version) not in known:
                    self._quarantine_overlaps(suite)

    def _quarantine_overlaps(self, suite: Suite) -> None:
        if self._overlap is None:
            return
        found = self._overlap.quarantine_overlaps(suite.name, suite.items, CONFIGURED)
        if found.num_exact or found.num_near:
            log.warning(
                "event=suite_overlaps suite=%s version=%s exact=%d near=%d: these pairs are in "
                "quarantine now",
                *(suite.name, suite.version, found.num_exact, found.num_near),
            )

    def add(self, upload: Upload, *, actor: str, reason: str) -> Added:
        """Checks, keeps and activates a suite, or a version that replaces the active one.

        The same again changes nothing. Raises InvalidInputError for its form, a problem that
        occurs twice and items that were trained on; ConflictError for a name that the configuration
        declares or a version with other items; StoreError. Nothing is changed then.
        """
        with self._turn:
            content = self._read(upload)
            suite = self._made(upload, content)
            others = [one for one in self._active.suites if one.name != suite.name]
            new = joined([*others, suite])
            before = self._active
            # Held out first: no run may take up its items while they are looked for in runs.
            self._publish(before, held_out=_both(before, new))
            try:
                trained = trained_items(joined([replace(suite, sealed=False)]), self._store)
                if trained:
                    raise InvalidInputError(trained)
                stored = self._keep(suite, upload, actor, reason)
            except BaseException:
                self._publish(before, held_out=before)
                raise
            suite = self._stored(stored)
            after = joined([*others, suite])
            self._publish(after, held_out=after)
            overlap = OverlapReport()
            if self._overlap is not None:
                overlap = self._overlap.quarantine_overlaps(suite.name, suite.items, actor)
        log.info(
            "suite added name=%s version=%s items=%d sealed=%s actor=%s",
            *(stored.name, stored.version, stored.num_items, stored.settings.sealed, actor),
        )
        return Added(stored, overlap)

    def remove(self, name: str, *, actor: str, reason: str) -> SuiteVersion:
        """Retires a suite: no gate measures it, and its problems may be trained on.

        Raises NotFoundError, StateError for one of the configuration.
        """
        with self._turn:
            version = self._store.get_suite(name)
            if version.source is SuiteSource.CONFIG:
                raise StateError(
                    f"suite {name!r} is declared in the configuration: remove it from "
                    "[[gate.suites]] and restart the daemon"
                )
            retired = self._store.retire_suite(name, actor=actor, reason=reason)
            left = joined([suite for suite in self._active.suites if suite.name != name])
            self._publish(left, held_out=left)
        log.info("suite removed name=%s version=%s actor=%s", name, retired.version, actor)
        return retired

    def get(self, name: str, version: str = "") -> SuiteVersion:
        return self._store.get_suite(name, version)

    def versions(self, *, retired: bool = False) -> list[SuiteVersion]:
        return self._store.list_suites(retired=retired)

    def items(self, version: SuiteVersion) -> tuple[SuiteItem, ...]:
        """Raises StateError for a sealed suite: nobody is told its items."""
        if version.settings.sealed:
            raise StateError(f"suite {version.name!r} is sealed: its items are not shown")
        return self._stored(version).items

    def draft(self, upload: Upload) -> Suite:
        """What ``add`` would take up, checked for its form alone; raises InvalidInputError."""
        content = self._read(upload)
        return make_suite(
            upload.settings, content, path=Path(upload.place), data=upload.data, version="draft"
        )

    def repeated(self, suite: Suite) -> str:
        """What other suites have against it; empty when nothing."""
        others = [one for one in self._active.suites if one.name != suite.name]
        try:
            joined([*others, suite])
        except InvalidInputError as error:
            return str(error)
        return ""

    def num_trained(self, suite: Suite) -> int:
        """How many of its problems stand in some run's snapshot."""
        return len(self._store.trained_prompt_keys(sorted(set(suite.prompt_keys()))))

    def overlaps(self, suite: Suite) -> OverlapReport:
        """The stored pairs that ``add`` would put into quarantine for it."""
        if self._overlap is None:
            return OverlapReport()
        return self._overlap.find_overlaps(suite.name, suite.items)

    def _register(self, configured: Sequence[Suite]) -> None:
        """The store has a row for every version of a configured suite too: its uses hang on it."""
        names = {suite.name for suite in configured}
        for version in self._store.list_suites():
            if version.source is SuiteSource.CONFIG and version.name not in names:
                self._store.retire_suite(
                    version.name, actor=CONFIGURED, reason="no longer in [[gate.suites]]"
                )
        for suite in configured:
            self._put(
                suite,
                source=SuiteSource.CONFIG,
                actor=CONFIGURED,
                reason="declared in [[gate.suites]]",
            )

    def _put(self, suite: Suite, *, source: SuiteSource, actor: str, reason: str) -> SuiteVersion:
        return self._store.put_suite(
            SuiteVersion(
                settings=suite.settings,
                version=suite.version,
                sha256=suite.sha256,
                num_items=len(suite.items),
                source=source,
                actor=actor,
                reason=reason,
                path=str(suite.path),
                description=suite.header.description,
            ),
            suite.prompt_keys(),
            fresh_share=FRESH_SHARE,
        )

    def _read(self, upload: Upload) -> SuiteContent:
        name = upload.settings.name
        content = read_content(upload.place, name, upload.data, self._verifiers)
        with self._references() as mistake:
            check_references(upload.place, content, mistake)
        description = upload.description or content.header.description
        return replace(content, header=replace(content.header, description=description))

    def _made(self, upload: Upload, content: SuiteContent) -> Suite:
        name = upload.settings.name
        if content.header.name not in ("", name):
            raise InvalidInputError(
                f"{upload.place}: says that it is suite {content.header.name!r}: add it as that, "
                "or change its first line"
            )
        version = upload.version or content.header.version or self._next_version(name, content)
        if not VERSION.fullmatch(version):
            raise InvalidInputError(
                f"version {version[:80]!r} is not allowed: up to 64 letters, digits, points, "
                "hyphens and underscores, a letter or digit first"
            )
        header = replace(content.header, name=name, version=version)
        data = file_text(header, content.items)
        kept = replace(content, header=header, lines=tuple(range(2, len(content.items) + 2)))
        path = self._directory / name / f"{version}.jsonl"
        suite = make_suite(upload.settings, kept, path=path, data=data, version=version)
        # Until it is kept, messages speak of the text that was sent.
        return replace(suite, path=Path(upload.place), lines=content.lines)

    def _next_version(self, name: str, content: SuiteContent) -> str:
        known = [one for one in self._store.list_suites(retired=True) if one.name == name]
        same = [one.version for one in known if one.sha256 == content.sha256]
        if same:
            return same[0]
        taken = {one.version for one in known}
        return next(str(n) for n in range(1, len(taken) + 2) if str(n) not in taken)

    def _keep(self, suite: Suite, upload: Upload, actor: str, reason: str) -> SuiteVersion:
        path = (self._directory / suite.name / f"{suite.version}.jsonl").absolute()
        known = [
            one
            for one in self._store.list_suites(retired=True)
            if (one.name, one.version) == (suite.name, suite.version)
        ]
        # The file first: a row whose file is missing would stop the next start.
        if not known:
            _write_once(path, file_text(suite.header, suite.items))
        return self._put(
            replace(suite, path=path), source=SuiteSource.ADDED, actor=actor, reason=reason
        )

    def _stored(self, version: SuiteVersion) -> Suite:
        path = Path(version.path)
        data = read_file(version.name, path)
        try:
            content = read_content(str(path), version.name, data, self._verifiers)
        except InvalidInputError as error:
            raise ConfigError(f"{error}; put the file back as it was") from error
        if content.sha256 != version.sha256:
            raise ConfigError(
                f"{path}: version {version.version} of suite {version.name!r} is not what was "
                f"added (SHA-256 {content.sha256[:12]}…, not {version.sha256[:12]}…): put the file "
                "back as it was"
            )
        return make_suite(version.settings, content, path=path, data=data, version=version.version)

    def _publish(self, active: SuiteSet, *, held_out: SuiteSet) -> None:
        if held_out is not self._held_out:
            for listener in self._listeners:
                listener(_by_suite(held_out))
        self._held_out = held_out
        self._active = active


def _both(before: SuiteSet, new: SuiteSet) -> SuiteSet:
    """What either holds out, under names that may repeat."""
    return SuiteSet((*before.suites, *new.suites), {**before.held_out, **new.held_out})


def _by_suite(suites: SuiteSet) -> HeldOutItems:
    found: dict[str, list[SuiteItem]] = {}
    for suite in suites.suites:
        found.setdefault(suite.name, []).extend(suite.items)
    return found


def _write_once(path: Path, data: bytes) -> None:
    """Whole or not at all, for its owner's eyes, and read-only from then on."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    for directory in (path.parent, path.parent.parent):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
