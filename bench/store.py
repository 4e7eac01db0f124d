"""What the store's work costs as the number of pairs grows: 10^4, 10^5, 10^6.

Fills one database step by step and measures at each size:

  add      one pair at a time through the intake (form, held-out check, near-duplicates, quota), 32
           at once as a stream has them; the verifier passes everything at once: it is not measured
  bulk     add_pairs, 5,000 pairs in a transaction, near-duplicates looked for
  near     a re-cased copy of a stored pair, which is found and refused
  draw     the pairs of a run, 2,000 of them, newest and random, caps on
  first    the newest page of 50
  middle   a page of 50 from the middle
  rare     a page of a submitter's pairs of a rare origin, and one that is empty
  count    the counts that the status page and the scheduler ask for
  stats    counts by source, submitter and origin

Pairs are made up: 40 words of a vocabulary of 2,000, 60 submitters (one has a third of all), 20
sources. Band keys are least hashes of words in bands of four: the store sees keys, not how they
were made. Times are medians, a pair or a call; a ratio is to the first size; the slope is that of
log time against log size (0: flat, 1: linear).

    python bench/store.py [--sizes 10000,100000,1000000] [--databases sqlite,postgresql]
                          [--directory DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from uuid import UUID

from opsd.daemon.collect.form import Form
from opsd.daemon.collect.intake import Intake, IntakeRules, content_sha256
from opsd.daemon.config.collect import CollectConfig
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pair_sets import AddRules, DrawPolicy, NewPair, Quota
from opsd.daemon.types.pairs import (
    AddPairKind,
    Origin,
    Pair,
    PairInput,
    PairStatus,
    Verdict,
    VerdictKind,
)
from opsd.daemon.types.text import prompt_key
from postgres_server import postgres_server

WORDS = tuple(f"w{number:04}x" for number in range(2000))
NUM_BANDS = 8
BULK = 5000
ADDS = 640
LOOKS = 200
DRAW = 2000
FAST = Verdict(VerdictKind.PASS, "exact", "the same", 0.0)


class MadeUp:
    """Pairs of a seed: the same ones for every database."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pair(self) -> NewPair:
        pick = self._random
        prompt = " ".join(pick.choices(WORDS, k=40))
        given = PairInput(
            id=str(UUID(int=pick.getrandbits(128), version=4)),
            prompt=prompt,
            solution=" ".join(pick.choices(WORDS, k=60)),
            verifier="exact",
            reference=str(pick.randrange(1000)),
            source=f"source {pick.randrange(20)}",
        )
        who = pick.randrange(90)
        pair = Pair(
            input=given,
            status=PairStatus.VERIFIED,
            verdict=FAST,
            submitter=f"submitter {who}" if who < 59 else "busy",
            created_unix_s=time.time(),
            content_sha256=content_sha256(given),
            prompt_key=prompt_key(prompt),
            origin=Origin.SUBMITTED if pick.random() < 0.95 else Origin.OWN_ATTEMPT,
        )
        return NewPair(pair, band_keys(prompt))


def band_keys(prompt: str) -> tuple[int, ...]:
    """Least hashes of the words, in bands of four."""
    least = sorted({_hash(word) for word in prompt.lower().split()})
    return tuple(hash(tuple(least[4 * band : 4 * band + 4])) for band in range(NUM_BANDS))


@cache
def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def is_near_duplicate(a: str, b: str) -> bool:
    mine, others = set(a.lower().split()), set(b.lower().split())
    return len(mine & others) >= 0.8 * len(mine | others)


class Near:
    """Implements ``NearDuplicates``."""

    def band_keys(self, prompt: str) -> tuple[int, ...]:
        return band_keys(prompt)

    def is_near_duplicate(self, a: str, b: str) -> bool:
        return is_near_duplicate(a, b)


class Passing:
    """A verifier that costs nothing."""

    known_verifiers = ("exact", "math", "numeric")

    async def check_reference(self, verifier: str, reference: str) -> str:
        return ""

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        return FAST


class NoSuites:
    def is_held_out(self, prompt: str) -> str | None:
        return None


RULES = AddRules(is_near_duplicate=is_near_duplicate, quota=Quota(pairs_per_day=10**9))


@dataclass
class Measured:
    """Seconds by operation, at one size."""

    size: int
    seconds: dict[str, float] = field(default_factory=dict)


def median_s(repeat: int, work: Callable[[], object]) -> float:
    took = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def fill(store: SqlStore, made_up: MadeUp, size: int, say: Callable[[str], None]) -> float:
    """Up to ``size`` pairs; the median seconds a pair of the last few transactions."""
    took = []
    have = store.count_pairs().verified
    while have < size:
        batch = [made_up.pair() for _ in range(min(BULK, size - have))]
        began = time.perf_counter()
        results = store.add_pairs(batch, rules=RULES)
        took.append((time.perf_counter() - began) / len(batch))
        assert all(result.kind is AddPairKind.STORED for result in results)
        if (have + len(batch)) // 100_000 > have // 100_000:
            say(f"{have + len(batch)} pairs, {1e6 * took[-1]:.0f} us a pair")
        have += len(batch)
    return statistics.median(took[-5:])


async def add_through_intake(store: SqlStore, made_up: MadeUp) -> float:
    """Seconds a pair, 32 under way at a time; they are not counted in the size."""
    rules = IntakeRules(near=Near(), add=RULES)
    passing = Passing()
    form = Form(CollectConfig(), passing.known_verifiers)
    intake = Intake(store, passing, NoSuites(), form, rules=rules)
    pairs = [made_up.pair().pair for _ in range(ADDS)]
    slots = asyncio.Semaphore(32)

    async def submit(pair: Pair) -> None:
        async with slots:
            outcome = await intake.submit(pair.input, pair.submitter)
            assert outcome.label == "verified", outcome

    began = time.perf_counter()
    await asyncio.gather(*(submit(pair) for pair in pairs))
    took = time.perf_counter() - began
    intake.close()
    return took / len(pairs)


def measure(store: SqlStore, made_up: MadeUp, size: int, say: Callable[[str], None]) -> Measured:
    found = Measured(size)
    found.seconds["bulk"] = fill(store, made_up, size, say)
    found.seconds["add"] = asyncio.run(add_through_intake(store, made_up))
    page = store.list_pairs(limit=LOOKS)
    stored = list(page.items)
    copies = iter(
        [
            NewPair(_copy(pair, number), band_keys(pair.input.prompt))
            for number, pair in enumerate(stored)
        ]
    )

    def look() -> None:
        new = next(copies)
        result = store.add_pair(new.pair, band_keys=new.band_keys, rules=RULES)
        assert result.kind is AddPairKind.NEAR_DUPLICATE, result.kind

    found.seconds["near"] = median_s(len(stored), look)
    runs = iter(range(100))
    policy = DrawPolicy(DRAW, max_submitter_share=0.2, max_self_made_share=0.25)

    def draw() -> None:
        drawn = store.draw_pairs(f"run {next(runs)}", policy, held_out=lambda keys: set())
        assert len(drawn.pairs) == DRAW

    found.seconds["draw"] = median_s(7, draw)
    found.seconds["first"] = median_s(30, lambda: store.list_pairs(limit=50))
    token = str(size // 2)
    found.seconds["middle"] = median_s(30, lambda: store.list_pairs(limit=50, token=token))

    def rare() -> None:
        store.list_pairs(limit=50, submitter="submitter 7", origin=Origin.OWN_ATTEMPT)
        store.list_pairs(limit=50, origin=Origin.SELF_PLAY)

    found.seconds["rare"] = median_s(30, rare)
    found.seconds["count"] = median_s(100, store.count_pairs)
    found.seconds["stats"] = median_s(30, store.pair_groups)
    return found


def _copy(pair: Pair, number: int) -> Pair:
    given = pair.input
    again = PairInput(
        id=str(UUID(int=number, version=4)),
        prompt=given.prompt.upper(),
        solution=given.solution,
        verifier=given.verifier,
        reference=given.reference,
        source=given.source,
    )
    return Pair(
        input=again,
        status=pair.status,
        verdict=pair.verdict,
        submitter="copyist",
        created_unix_s=pair.created_unix_s,
        content_sha256=content_sha256(again),
        prompt_key=prompt_key(again.prompt),
    )


def table(database: str, found: Sequence[Measured]) -> list[str]:
    """Times in milliseconds, then the ratio to the first size and the slope."""
    sizes = [f"{one.size:,}" for one in found]
    lines = [f"{database}", f"{'ms':8}" + "".join(f"{size:>16}" for size in sizes) + "   slope"]
    for name in found[0].seconds:
        times = [one.seconds[name] for one in found]
        cells = [f"{1e3 * times[0]:10.3f}    "]
        cells += [f"{1e3 * took:8.3f} {took / times[0]:4.1f}x" for took in times[1:]]
        lines.append(f"{name:8}" + "".join(f"{cell:>16}" for cell in cells) + slope(found, name))
    return lines


def slope(found: Sequence[Measured], name: str) -> str:
    """Of log time against log size, by least squares."""
    if len(found) < 2:
        return ""
    x = [math.log(one.size) for one in found]
    y = [math.log(one.seconds[name]) for one in found]
    return f"{statistics.linear_regression(x, y).slope:8.2f}"


@contextmanager
def database_url(kind: str, directory: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{directory / 'bench.db'}"
        return
    with postgres_server() as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument(
        "--directory", type=Path, help="where the database goes; default: a new one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    sizes = sorted(int(size) for size in given.sizes.split(","))

    def say(message: str) -> None:
        print(f"# {message}", file=sys.stderr, flush=True)

    results: dict[str, list[Measured]] = {}
    for kind in given.databases.split(","):
        with (
            tempfile.TemporaryDirectory(prefix="opsd-bench-", dir=given.directory) as directory,
            database_url(kind, Path(directory)) as url,
        ):
            store = open_store(url)
            made_up = MadeUp(0)
            results[kind] = []
            for size in sizes:
                results[kind].append(measure(store, made_up, size, say))
                print("\n".join(table(kind, results[kind])), flush=True)
            store.close()
    if given.json:
        data = {
            kind: [{"size": one.size, "seconds": one.seconds} for one in found]
            for kind, found in results.items()
        }
        given.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
