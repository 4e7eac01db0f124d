"""Adding pairs: what is stored, and what is answered instead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, bindparam, insert, or_, select, union_all

from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, chunks
from opsd.daemon.store.pair_counts import Ledger, add_use, lock_pairs, over_quota, read_use
from opsd.daemon.store.pair_rows import pair_of, pair_values, size_bytes, stored_keys
from opsd.daemon.types.pair_sets import AddRules, NewPair, QuotaUse
from opsd.daemon.types.pairs import AddPairKind, AddPairResult, Pair, PairInput, PairStatus
from opsd.daemon.types.text import normalise_prompt

_pairs = tables.pairs
_bands = tables.pair_bands

CANDIDATES_PER_KEY = 8
MAX_CANDIDATES = 16
"""Stored pairs that one new pair is compared with, the newest first: bounds what a template of a
thousand problems with one answer costs."""

_NO_RULES = AddRules()

# Built once: for a statement that runs for every pair, putting it together costs more than running
# it.
_INSERT = insert(_pairs)
_INSERT_BANDS = insert(_bands)
_INSERT_ONE = insert(_pairs).returning(_pairs.c.seq)
_SAME_AS_ONE = select(_pairs).where(
    or_(
        _pairs.c.id == bindparam("given_id"),
        _pairs.c.content_sha256 == bindparam("given_sha256"),
    )
)


class PairInsertArea(Area):
    """The part of ``PairStore`` that adds."""

    def add_pair(
        self, pair: Pair, *, band_keys: tuple[int, ...] = (), rules: AddRules = _NO_RULES
    ) -> AddPairResult:
        return self._add([NewPair(pair, band_keys)], rules)[0]

    def add_pairs(
        self, batch: Sequence[NewPair], *, rules: AddRules = _NO_RULES
    ) -> list[AddPairResult]:
        """In order, as if one after the other, in one transaction: all are durable, or none."""
        return self._add(batch, rules)

    def _add(self, batch: Sequence[NewPair], rules: AddRules) -> list[AddPairResult]:
        def work(connection: Connection) -> list[AddPairResult]:
            lock_pairs(connection)
            adder = _Adder(connection, rules, self._clock())
            adder.look_up(batch)
            results = [adder.add(new) for new in batch]
            adder.write()
            return results

        return self._database.write(work, name="pair")


@dataclass(slots=True)
class _Accepted:
    """A pair that will be stored at the end of the batch."""

    pair: Pair
    group_id: int
    keys: tuple[int, ...]  # as they are stored


class _Adder:
    """Decides on each pair of a batch, in order, and writes what is to be stored at the end."""

    def __init__(self, connection: Connection, rules: AddRules, now_unix_s: float) -> None:
        self._connection = connection
        self._rules = rules
        self._now_unix_s = now_unix_s
        self._ledger = Ledger(connection)
        self._by_id: dict[str, Pair] = {}
        self._by_sha256: dict[str, Pair] = {}
        self._accepted: list[_Accepted] = []
        self._accepted_by_key: dict[int, list[Pair]] = defaultdict(list)
        self._keys: dict[str, tuple[int, ...]] = {}
        self._shared_keys: set[int] | None = None  # None: not looked at
        self._use: dict[str, QuotaUse] = {}
        self._more_use: dict[str, tuple[int, int]] = {}

    def look_up(self, batch: Sequence[NewPair]) -> None:
        """Finds what is stored with the same ids or contents."""
        for row in self._same(batch):
            stored = pair_of(row)
            self._by_id[stored.input.id] = stored
            self._by_sha256[stored.content_sha256] = stored
        if self._rules.is_near_duplicate is not None:
            self._keys = {
                new.pair.input.id: stored_keys(new.band_keys, new.pair.input) for new in batch
            }
        if len(batch) > 1:
            self._ledger.find_groups([new.pair for new in batch])
            keys = [key for some in self._keys.values() for key in some]
            self._shared_keys = _known_keys(self._connection, keys)

    def add(self, new: NewPair) -> AddPairResult:
        known = self._known(new.pair)
        if known is not None:
            return known
        keys = self._keys.get(new.pair.input.id, ())
        near = self._near(new.pair, keys)
        if near is not None:
            return AddPairResult(AddPairKind.NEAR_DUPLICATE, near)
        refusal = self._charge(new.pair)
        if refusal:
            return AddPairResult(AddPairKind.OVER_QUOTA, None, refusal)
        self._accept(new.pair, keys)
        return AddPairResult(AddPairKind.STORED, new.pair)

    def write(self) -> None:
        self._ledger.post()
        for submitter, (pairs, size) in sorted(self._more_use.items()):
            add_use(self._connection, submitter, self._now_unix_s, pairs, size)
        for some in chunks(self._accepted):
            rows = [pair_values(one.pair, one.group_id, bool(one.keys)) for one in some]
            if len(rows) == 1:
                seqs = [self._connection.execute(_INSERT_ONE, rows[0]).scalar_one()]
            else:
                self._connection.execute(_INSERT, rows)
                ids = [one.pair.input.id for one in some]
                by_id = {
                    row.id: row.seq
                    for row in self._connection.execute(
                        select(_pairs.c.id, _pairs.c.seq).where(_pairs.c.id.in_(ids))
                    )
                }
                seqs = [by_id[id] for id in ids]
            bands = [
                {"band_key": key, "pair_seq": seq}
                for seq, one in zip(seqs, some, strict=True)
                for key in one.keys
            ]
            if bands:
                # Neighbours in the index are written together.
                bands.sort(key=lambda band: band["band_key"])
                self._connection.execute(_INSERT_BANDS, bands)

    def _same(self, batch: Sequence[NewPair]) -> list[RowMapping]:
        if len(batch) == 1:
            pair = batch[0].pair
            same = {"given_id": pair.input.id, "given_sha256": pair.content_sha256}
            return list(self._connection.execute(_SAME_AS_ONE, same).mappings())
        rows: list[RowMapping] = []
        for some in chunks(batch):
            ids = [new.pair.input.id for new in some]
            contents = [new.pair.content_sha256 for new in some]
            for condition in (_pairs.c.id.in_(ids), _pairs.c.content_sha256.in_(contents)):
                rows += self._connection.execute(select(_pairs).where(condition)).mappings()
        return rows

    def _known(self, pair: Pair) -> AddPairResult | None:
        """The answer when the id or the content is taken."""
        stored = self._by_id.get(pair.input.id)
        if stored is not None:
            if stored.status is PairStatus.PURGED:
                return AddPairResult(AddPairKind.PURGED, stored)
            if stored.content_sha256 == pair.content_sha256:
                return AddPairResult(AddPairKind.ALREADY_STORED, stored)
            return AddPairResult(AddPairKind.ID_CONFLICT, stored)
        stored = self._by_sha256.get(pair.content_sha256)
        if stored is None:
            return None
        if stored.status is PairStatus.PURGED:
            return AddPairResult(AddPairKind.PURGED, stored)
        return AddPairResult(AddPairKind.DUPLICATE, stored)

    def _near(self, pair: Pair, keys: tuple[int, ...]) -> Pair | None:
        """A pair of the same answer (and solution, if the rules say so) with nearly this prompt."""
        is_near = self._rules.is_near_duplicate
        if is_near is None or not keys:
            return None
        candidates = [known for key in keys for known in self._accepted_by_key.get(key, ())]
        candidates = candidates[-MAX_CANDIDATES:]
        if self._shared_keys is None or not self._shared_keys.isdisjoint(keys):
            candidates += candidates_of(self._connection, keys)
        if not candidates:
            return None
        answer = _normal_answer(pair.input)
        solution = normalise_prompt(pair.input.solution)
        for candidate in candidates:
            other = candidate.input
            if _normal_answer(other) != answer:
                continue
            if self._rules.same == "solution" and normalise_prompt(other.solution) != solution:
                continue
            if is_near(pair.input.prompt, other.prompt):
                return candidate
        return None

    def _charge(self, pair: Pair) -> str:
        """Counts the pair against its submitter's quota; why it is refused, or ""."""
        quota = self._rules.quota
        if not quota.is_on:
            return ""
        who = pair.submitter
        if who not in self._use:
            self._use[who] = read_use(self._connection, who, self._now_unix_s)
        pairs, size = self._more_use.get(who, (0, 0))
        before = self._use[who]
        use = QuotaUse(
            who,
            before.pairs_today + pairs,
            before.bytes_today + size,
            before.pairs_stored + pairs,
            before.resets_unix_s,
        )
        more = size_bytes(pair)
        refusal = over_quota(quota, use, more)
        if not refusal:
            self._more_use[who] = (pairs + 1, size + more)
        return refusal

    def _accept(self, pair: Pair, keys: tuple[int, ...]) -> None:
        group_id = self._ledger.group_id(pair)
        self._ledger.add(group_id, pair)
        self._accepted.append(_Accepted(pair, group_id, keys))
        self._by_id[pair.input.id] = pair
        self._by_sha256[pair.content_sha256] = pair
        for key in keys:
            self._accepted_by_key[key].append(pair)


def candidates_of(connection: Connection, keys: tuple[int, ...]) -> list[Pair]:
    """The newest stored pairs that share one of the (stored) keys."""
    values: dict[str, Any] = {f"key_{number}": key for number, key in enumerate(keys)}
    found = connection.execute(_sharing(len(keys)), values).scalars()
    seqs = sorted(set(found), reverse=True)[:MAX_CANDIDATES]
    if not seqs:
        return []
    rows = connection.execute(
        select(_pairs)
        .where(_pairs.c.seq.in_(seqs), _pairs.c.status != PairStatus.PURGED.value)
        .order_by(_pairs.c.seq.desc())
    ).mappings()
    return [pair_of(row) for row in rows]


def _known_keys(connection: Connection, keys: Sequence[int]) -> set[int]:
    """Those that some stored pair has. Each is looked for once, however many pairs have it."""
    known: set[int] = set()
    place = "(?)" if connection.dialect.name == "sqlite" else "(%s::bigint)"
    for some in chunks(keys):
        places = ", ".join([place] * len(some))
        found = connection.exec_driver_sql(
            f"SELECT column1 FROM (VALUES {places}) AS given"
            " WHERE EXISTS (SELECT 1 FROM pair_bands WHERE band_key = column1)",
            tuple(some),
        )
        known.update(found.scalars())
    return known


@cache
def _sharing(num_keys: int) -> Select[tuple[int]]:
    newest = [
        select(_bands.c.pair_seq)
        .where(_bands.c.band_key == bindparam(f"key_{number}"))
        .order_by(_bands.c.pair_seq.desc())
        .limit(CANDIDATES_PER_KEY)
        .subquery(f"band_{number}")
        for number in range(num_keys)
    ]
    if num_keys == 1:
        return select(newest[0].c.pair_seq)
    together = union_all(*(select(part.c.pair_seq) for part in newest)).subquery("together")
    return select(together.c.pair_seq)


def _normal_answer(given: PairInput) -> tuple[str, str]:
    return given.verifier, normalise_prompt(given.reference)
