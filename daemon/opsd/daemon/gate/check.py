"""What a suite can tell at its size, and what is wrong with it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from opsd.daemon.config.gate import GateConfig
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.gate import power
from opsd.daemon.gate.multiple import spent_alpha
from opsd.daemon.gate.ports import AnswerVerifier, NearDuplicates
from opsd.daemon.gate.registry import SuiteRegistry, Upload
from opsd.daemon.gate.rules import GateRules
from opsd.daemon.gate.suites import Suite
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.pairs import SuiteItem, Verdict, VerdictKind
from opsd.daemon.types.suites import OverlapReport, SuiteSettings

ASSUMED_DISCORDANCE = 0.2
"""Of two adapters of one family on problems of mixed difficulty: an assumption, and said to be."""
DIFFERENCES = (0.01, 0.02, 0.05, 0.1)
TINY_STRATUM = 30
"""Items below which a stratum shows only the grossest damage."""
LARGEST_STRATUM = 0.8
MIN_MEASURED = 30
"""Items that two adapters must have answered before their discordance is taken for measured."""

_ANSWER_VERIFIERS = frozenset({"exact", "math", "numeric", "choice"})
"""Verifiers whose reference is itself an answer."""
_VERIFIED_AT_ONCE = 8
_NAMED_AT_MOST = 5


class HistoryStore(Protocol):
    """The part of the store that knows earlier gates."""

    def num_suite_uses(self, prompt_keys: Sequence[str]) -> int: ...

    def answer_outcomes(self, conditions: str) -> list[dict[str, bool]]: ...


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What is assumed and asked; 0 and nothing stand for what is known best."""

    discordance: float = 0.0
    differences: tuple[float, ...] = DIFFERENCES
    gate_number: int = 0


@dataclass(frozen=True, slots=True)
class StratumCheck:
    stratum: str
    num_items: int
    holdable_margin: float | None


@dataclass(frozen=True, slots=True)
class SuiteCheck:
    """See gate.proto's message of this name."""

    settings: SuiteSettings
    version: str
    sha256: str
    num_items: int
    num_clusters: int
    effective_items: float
    gate_number: int
    gain_level: float
    guard_level: float
    discordance: float
    discordance_source: str  # "measured", "given" or "assumed"
    detectable_gain: float | None
    holdable_margin: float | None
    needed: tuple[tuple[float, int | None], ...]
    strata: tuple[StratumCheck, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


class SuiteChecker:
    """Looks at active suites and at texts that might become one; changes nothing."""

    def __init__(
        self,
        registry: SuiteRegistry,
        verifier: AnswerVerifier,
        store: HistoryStore,
        config: GateConfig,
        *,
        conditions: Callable[[Suite], tuple[str, str]],
        near_duplicates: NearDuplicates | None = None,
    ) -> None:
        """``conditions`` are ``GateEvaluator``'s. Without ``near_duplicates`` only exact ones are
        looked for, which the result says."""
        self._registry = registry
        self._verifier = verifier
        self._store = store
        self._rules = GateRules(confidence=config.confidence)
        self._is_greedy = config.temperature == 0.0
        self._conditions = conditions
        self._near_duplicates = near_duplicates

    async def check_active(self, name: str, options: CheckOptions) -> SuiteCheck:
        """Raises NotFoundError or InvalidInputError."""
        suites = {suite.name: suite for suite in self._registry.active().suites}
        if name not in suites:
            version = await asyncio.to_thread(self._registry.get, name)
            raise InvalidInputError(
                f"suite {name!r} is not active: its last version {version.version} was retired"
            )
        return await self._check(suites[name], options, errors=[], is_draft=False)

    async def check_draft(self, upload: Upload, options: CheckOptions) -> SuiteCheck:
        """Raises InvalidInputError for a text that is no suite at all."""
        draft = await asyncio.to_thread(self._registry.draft, upload)
        errors = []
        repeated = await asyncio.to_thread(self._registry.repeated, draft)
        if repeated:
            errors.append(repeated)
        num_trained = await asyncio.to_thread(self._registry.num_trained, draft)
        if num_trained:
            errors.append(
                f"{num_trained} of its problems were trained on by an earlier run: it would "
                "measure memory"
            )
        found = await self._check(draft, options, errors=errors, is_draft=True)
        overlap = await asyncio.to_thread(self._registry.overlaps, draft)
        return replace(found, warnings=(*found.warnings, *_overlap_warnings(overlap)))

    async def _check(
        self, suite: Suite, options: CheckOptions, *, errors: list[str], is_draft: bool
    ) -> SuiteCheck:
        is_open = is_draft or not suite.sealed
        gate_number = options.gate_number or 1 + await asyncio.to_thread(
            self._store.num_suite_uses, suite.prompt_keys()
        )
        discordance, source = await self._discordance(suite, options)
        sizes = Counter(item.cluster or f"\0{item.id}" for item in suite.items)
        found = SuiteCheck(
            settings=suite.settings,
            version="" if is_draft else suite.version,
            sha256=suite.sha256,
            num_items=len(suite.items),
            num_clusters=len(sizes),
            effective_items=power.effective_items(sizes.values()),
            gate_number=gate_number,
            gain_level=spent_alpha(self._rules.alpha, gate_number),
            guard_level=self._rules.one_sided,
            discordance=discordance,
            discordance_source=source,
            detectable_gain=None,
            holdable_margin=None,
            needed=(),
            strata=(),
            errors=(),
            warnings=(),
        )
        found = _with_power(found, options.differences)
        strata = _strata(found, suite.items)
        warnings = [*_size_warnings(found), *_strata_warnings(found, strata, is_open)]
        if self._is_greedy and suite.samples > 1:
            warnings.append("samples has no effect: gate.temperature is 0, and all would be equal")
        warnings += await self._text_warnings(suite, is_open)
        warnings += await self._reference_warnings(suite, is_open)
        return replace(
            found,
            strata=tuple(strata) if is_open else (),
            errors=tuple(errors),
            warnings=tuple(warnings),
        )

    async def _discordance(self, suite: Suite, options: CheckOptions) -> tuple[float, str]:
        if options.discordance > 0.0:
            return options.discordance, "given"
        # What two adapters did on a sealed suite is not told.
        if not suite.sealed:
            for conditions in self._conditions(suite):
                outcomes = await asyncio.to_thread(self._store.answer_outcomes, conditions)
                share = _measured_discordance(outcomes)
                if share is not None:
                    return share, "measured"
        return ASSUMED_DISCORDANCE, "assumed"

    async def _text_warnings(self, suite: Suite, is_open: bool) -> list[str]:
        if self._near_duplicates is None:
            return ["problems that are nearly the same were not looked for"]
        texts = [item.prompt for item in suite.items]
        near = await asyncio.to_thread(self._near_duplicates, texts)
        if not near:
            return []
        named = [f"{suite.items[a].id!r} and {suite.items[b].id!r}" for a, b in near]
        return [
            f"{len(near)} pairs of problems are nearly the same{_named(named, is_open)}: give them "
            "one cluster, or keep one of each"
        ]

    async def _reference_warnings(self, suite: Suite, is_open: bool) -> list[str]:
        """Whether each item's verifier takes the item's own solution or reference for right."""
        free = asyncio.Semaphore(_VERIFIED_AT_ONCE)

        async def verdict(item: SuiteItem) -> Verdict:
            async with free:
                text = _own_answer(item)
                return await self._verifier.verify(
                    item.verifier, item.reference, text or " ", private=suite.sealed
                )

        verdicts = await asyncio.gather(*(verdict(item) for item in suite.items))
        broken, refused = [], []
        for item, found in zip(suite.items, verdicts, strict=True):
            if found.kind is VerdictKind.ERROR:
                broken.append(f"{item.id!r} ({found.evidence})")
            elif found.kind is VerdictKind.FAIL and _own_answer(item):
                refused.append(f"{item.id!r} ({found.evidence})")
        said = []
        if broken:
            said.append(
                f"the verifier cannot judge {len(broken)} items{_named(broken, is_open)}: mend "
                "their references"
            )
        if refused:
            said.append(
                f"the verifier does not take the own solution or reference of {len(refused)} items "
                f"for right{_named(refused, is_open)}: mend one or the other"
            )
        return said


def _own_answer(item: SuiteItem) -> str:
    """A text that should pass; empty where the item has none."""
    if item.solution:
        return item.solution
    return item.reference if item.verifier in _ANSWER_VERIFIERS else ""


def _measured_discordance(outcomes: Sequence[dict[str, bool]]) -> float | None:
    """Between the two adapters that were asked last."""
    if len(outcomes) < 2:
        return None
    first, second = outcomes[0], outcomes[1]
    both = first.keys() & second.keys()
    if len(both) < MIN_MEASURED:
        return None
    differing = sum(first[item] is not second[item] for item in both)
    # Half an item more: none seen does not mean that there is none.
    return (differing + 0.5) / (len(both) + 1)


def _with_power(found: SuiteCheck, differences: Sequence[float]) -> SuiteCheck:
    """Clusters that agree within themselves leave fewer items; more of them are needed then."""
    inflation = found.num_items / found.effective_items
    margin = found.settings.margin
    is_target = found.settings.role is SuiteRole.TARGET
    discordance = found.discordance

    def needed(difference: float) -> int | None:
        if is_target:
            count = power.items_for_gain(
                difference, discordance=discordance, level=found.gain_level, margin=margin
            )
        else:
            count = power.items_for_margin(
                difference, discordance=discordance, level=found.guard_level
            )
        return None if count is None else round(count * inflation)

    return replace(
        found,
        detectable_gain=power.detectable_gain(
            found.effective_items,
            discordance=discordance,
            level=found.gain_level,
            margin=margin if is_target else 0.0,
        ),
        holdable_margin=power.holdable_margin(
            found.effective_items, discordance=discordance, level=found.guard_level
        ),
        needed=tuple((difference, needed(difference)) for difference in differences),
    )


def _strata(found: SuiteCheck, items: Sequence[SuiteItem]) -> list[StratumCheck]:
    counts = Counter(item.stratum for item in items)
    if set(counts) <= {""}:
        return []
    level = found.guard_level / len(counts)
    return [
        StratumCheck(
            stratum,
            count,
            power.holdable_margin(count, discordance=found.discordance, level=level),
        )
        for stratum, count in counts.items()
    ]


def _size_warnings(found: SuiteCheck) -> Iterator[str]:
    settings = found.settings
    if settings.role is SuiteRole.TARGET:
        if found.detectable_gain is None:
            yield "no gain, however large, can be shown with so few items"
        elif found.detectable_gain >= settings.margin + 0.1:
            yield (
                f"only a gain of {100 * found.detectable_gain:.0f} points or more is shown 4 times "
                "in 5: add items"
            )
    elif found.holdable_margin is None or found.holdable_margin > settings.margin:
        enough = power.items_for_margin(
            settings.margin, discordance=found.discordance, level=found.guard_level
        )
        how_many = f"about {enough:,} items" if enough is not None else "a margin above 0"
        yield (
            f"a loss of more than {100 * settings.margin:.3g} points is ruled out less than 4 "
            f"times in 5 even where nothing changed: that takes {how_many}"
        )


def _strata_warnings(
    found: SuiteCheck, strata: Sequence[StratumCheck], is_open: bool
) -> Iterator[str]:
    tiny = [s for s in strata if s.num_items < TINY_STRATUM]
    if tiny:
        named = [f"{s.stratum or '(none)'!r} ({s.num_items})" for s in tiny]
        yield f"{len(tiny)} strata have fewer than {TINY_STRATUM} items{_named(named, is_open)}"
    largest = max(strata, key=lambda s: s.num_items, default=None)
    if (
        largest is not None
        and len(strata) > 1
        and largest.num_items > LARGEST_STRATUM * found.num_items
    ):
        share = 100 * largest.num_items / found.num_items
        name = f" ({largest.stratum or '(none)'!r})" if is_open else ""
        yield f"one stratum{name} has {share:.0f} % of the items: it decides about the whole"
    limit = found.settings.stratum_margin
    weak = [s for s in strata if limit and (s.holdable_margin is None or s.holdable_margin > limit)]
    if weak and found.settings.role is SuiteRole.GUARD:
        named = [f"{s.stratum or '(none)'!r}" for s in weak]
        yield (
            f"{len(weak)} of {len(strata)} strata are too small to rule out a loss of "
            f"{100 * limit:.3g} points 4 times in 5{_named(named, is_open)}"
        )


def _overlap_warnings(found: OverlapReport) -> Iterator[str]:
    total = found.num_exact + found.num_near
    if total > found.num_known:
        yield (
            f"{total} stored pairs overlap it ({found.num_exact} exactly, {found.num_near} nearly; "
            f"{found.num_known} are in quarantine): adding it puts the rest there"
        )


def _named(names: Sequence[str], is_open: bool) -> str:
    if not is_open:
        return ""
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f": {', '.join(names[:_NAMED_AT_MOST])}{more}"
