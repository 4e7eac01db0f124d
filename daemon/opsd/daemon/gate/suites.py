"""The held-out suites together: read once, and compared with each other and with what was trained
on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opsd.daemon.config.gate import SuiteConfig
from opsd.daemon.errors import ConfigError, InvalidInputError
from opsd.daemon.gate.suite_file import NO_HEADER, Header, SuiteContent, read_content
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.suites import SuiteSettings
from opsd.daemon.types.text import prompt_key

_NAMED_AT_MOST = 5


class TrainedKeys(Protocol):
    """The part of the pair store that knows what was trained on."""

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]: ...


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite as it stood when it was read.

    ``sha256`` is of what the items say (``suite_file.content_sha256``), ``file_sha256`` of the
    file's bytes.
    """

    name: str
    role: SuiteRole
    margin: float
    path: Path
    sha256: str
    items: tuple[SuiteItem, ...]
    version: str = ""
    stratum_margin: float = 0.0
    sealed: bool = False
    budget: int = 0
    samples: int = 0  # 0: gate.samples
    file_sha256: str = ""
    lines: tuple[int, ...] = ()
    header: Header = NO_HEADER

    @property
    def settings(self) -> SuiteSettings:
        return SuiteSettings(
            name=self.name,
            role=self.role,
            margin=self.margin,
            stratum_margin=self.stratum_margin,
            sealed=self.sealed,
            budget=self.budget,
            samples=self.samples,
        )

    def prompt_keys(self) -> list[str]:
        """``types.text.prompt_key`` of every item, in their order."""
        return [prompt_key(item.prompt) for item in self.items]


@dataclass(frozen=True, slots=True)
class HeldOutItem:
    """Where a held-out prompt stands."""

    suite: str
    item_id: str
    line: int


@dataclass(frozen=True, slots=True)
class SuiteSet:
    """All suites, and every held-out prompt's key (``types.text.prompt_key``) with its place."""

    suites: tuple[Suite, ...]
    held_out: dict[str, HeldOutItem]

    def num_items(self) -> int:
        return sum(len(suite.items) for suite in self.suites)


EMPTY = SuiteSet((), {})


ReferenceMistake = Callable[[str, str], str]
"""(verifier, reference) → what is wrong with it, and how to mend it; "" where nothing is."""


def any_reference(verifier: str, reference: str) -> str:
    """Finds no mistake: the verdicts will tell."""
    return ""


def load_suites(
    configs: Sequence[SuiteConfig],
    *,
    verifiers: Collection[str],
    reference_mistake: ReferenceMistake = any_reference,
) -> SuiteSet:
    """Reads and checks every suite; ``verifiers`` are the names that items may ask for, and
    ``reference_mistake(verifier, reference)`` says what is wrong with a reference.

    Raises ConfigError, which names the file, the line and the fix, for an unreadable or empty file,
    a malformed line, an unknown verifier, a reference that the verifier cannot compare with, an id
    that occurs twice in a suite, and a problem that occurs twice in whichever suites.
    """
    try:
        return joined([_load(config, verifiers, reference_mistake) for config in configs])
    except InvalidInputError as error:
        raise ConfigError(str(error)) from error


def _load(
    config: SuiteConfig, verifiers: Collection[str], reference_mistake: ReferenceMistake
) -> Suite:
    path = Path(config.path)
    data = read_file(config.name, path)
    content = read_content(str(path), config.name, data, verifiers)
    check_references(str(path), content, reference_mistake)
    if content.header.name and content.header.name != config.name:
        raise InvalidInputError(
            f"{path}: says that it is suite {content.header.name!r}, but gate.suites names it "
            f"{config.name!r}: mend one of them"
        )
    return make_suite(
        SuiteSettings(
            name=config.name,
            role=SuiteRole(config.role),
            margin=config.margin,
            stratum_margin=config.stratum_margin,
            sealed=config.sealed,
            budget=config.budget,
            samples=config.samples,
        ),
        content,
        path=path,
        data=data,
    )


def make_suite(
    settings: SuiteSettings, content: SuiteContent, *, path: Path, data: bytes, version: str = ""
) -> Suite:
    """``version`` is by default what the file says, or else comes from its content."""
    return Suite(
        name=settings.name,
        role=settings.role,
        margin=settings.margin,
        path=path,
        sha256=content.sha256,
        items=content.items,
        version=version or content.header.version or f"sha-{content.sha256[:12]}",
        stratum_margin=settings.stratum_margin,
        sealed=settings.sealed,
        budget=settings.budget,
        samples=settings.samples,
        file_sha256=hashlib.sha256(data).hexdigest(),
        lines=content.lines,
        header=content.header,
    )


def joined(suites: Sequence[Suite]) -> SuiteSet:
    """Raises InvalidInputError when a problem occurs twice, in one suite or in two."""
    held_out: dict[str, HeldOutItem] = {}
    by_name = {suite.name: suite for suite in suites}
    for suite in suites:
        for line, item in zip(suite.lines, suite.items, strict=True):
            here = HeldOutItem(suite.name, item.id, line)
            first = held_out.setdefault(prompt_key(item.prompt), here)
            if first is not here:
                raise InvalidInputError(_repeated(suite, here, by_name[first.suite], first))
    return SuiteSet(tuple(suites), held_out)


def _repeated(suite: Suite, item: HeldOutItem, other: Suite, first: HeldOutItem) -> str:
    if other.sealed and other.name != suite.name:
        # Which of a sealed suite's items it is stays sealed.
        whose = f"one of the sealed suite {other.name!r}"
    else:
        whose = f"that of item {first.item_id!r} ({other.path}:{first.line})"
    return (
        f"{suite.path}:{item.line}: the problem of item {item.item_id!r} is {whose}: keep one of "
        "them, or neither suite measures what it says"
    )


def check_references(
    place: str, content: SuiteContent, reference_mistake: ReferenceMistake
) -> None:
    """Raises InvalidInputError for a reference that its verifier cannot compare with."""
    for line, item in zip(content.lines, content.items, strict=True):
        mistake = reference_mistake(item.verifier, item.reference)
        if mistake:
            raise InvalidInputError(
                f"{place}:{line}: 'reference' of item {item.id!r}, for the verifier "
                f"{item.verifier}: {mistake}"
            )


def check_untrained(suites: SuiteSet, store: TrainedKeys) -> None:
    """Raises ConfigError when an item of a suite stands in a run's snapshot: it measures memory."""
    message = trained_items(suites, store)
    if message:
        raise ConfigError(f"gate.suites: {message}")


def trained_items(suites: SuiteSet, store: TrainedKeys) -> str:
    """What is wrong when items stand in a run's snapshot; empty when none does."""
    trained = store.trained_prompt_keys(sorted(suites.held_out))
    if not trained:
        return ""
    by_name = {suite.name: suite for suite in suites.suites}
    places = sorted(
        (item.suite, item.line, item.item_id)
        for key, item in suites.held_out.items()
        if key in trained
    )
    named = [
        f"{by_name[suite].path}:{line} (item {item_id!r})"
        for suite, line, item_id in places
        if not by_name[suite].sealed
    ]
    sealed = sorted({suite for suite, _, _ in places if by_name[suite].sealed})
    named += [
        f"{sum(place[0] == suite for place in places)} of the sealed suite {suite!r}"
        for suite in sealed
    ]
    shown = ", ".join(named[:_NAMED_AT_MOST])
    more = f" and {len(named) - _NAMED_AT_MOST} more" if len(named) > _NAMED_AT_MOST else ""
    return (
        f"held-out problems were trained on by an earlier run: {shown}{more}. "
        "No trained item enters a suite: remove these lines"
    )


def check_unchanged(suites: SuiteSet) -> None:
    """Raises ConfigError when a suite's file is no longer what was read."""
    for suite in suites.suites:
        found = hashlib.sha256(read_file(suite.name, suite.path)).hexdigest()
        if found != suite.file_sha256:
            raise ConfigError(
                f"{suite.path}: suite {suite.name!r} changed since the daemon read it: restart the "
                "daemon to take up the new items, or put the old file back"
            )


def read_file(name: str, path: Path) -> bytes:
    """Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: suite {name!r} cannot be read: {error.strerror}: mend gate.suites.path"
        ) from None
