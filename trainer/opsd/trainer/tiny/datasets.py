"""What opsd is fed with: the pool of pairs, its wrong-reference control, and held-out suites."""

import json
import random
import uuid
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from opsd.trainer.tiny.problems import (
    EASY,
    HARD,
    LONG,
    MEDIUM,
    SYMBOLIC_HARD,
    SYMBOLIC_MEDIUM,
    Problem,
    Split,
    Stratum,
    draw_distinct,
    phrase,
)
from opsd.trainer.tiny.recipe import DatasetConfig

VERIFIER = "numeric"
SOURCE = "tiny"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "tiny.trainer.opsd")


class Item(TypedDict):
    """One held-out problem of a suite."""

    id: str
    prompt: str
    verifier: str
    reference: str
    stratum: str
    solution: str


class Pair(Item):
    """One problem with the solution that the teacher will read."""

    source: str


def _identifier(kind: str, prompt: str, solution: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{kind}\n{prompt}\n{solution}"))


def _item(kind: str, prompt: str, problem: Problem, stratum: Stratum) -> Item:
    """Put a problem on record; ``problem`` gives the solution and the reference."""
    solution = problem.reference_solution()
    return {
        "id": _identifier(kind, prompt, solution),
        "prompt": prompt,
        "verifier": VERIFIER,
        "reference": str(problem.answer),
        "stratum": stratum.name,
        "solution": solution,
    }


def make_pairs(seed: int, config: DatasetConfig) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs and, prompt for prompt, the same with another problem's solution.

    Every prefix of either holds medium and hard problems about half and half. A wrong pair's
    reference is the other problem's answer too, so that it passes verification.
    """
    rng = random.Random(f"pairs {seed}")
    taken: set[Problem] = set()
    num_medium = config.num_pairs // 2
    drawn = [(p, MEDIUM) for p in draw_distinct(rng, MEDIUM, Split.OPSD, num_medium, taken)]
    num_hard = config.num_pairs - num_medium
    drawn += [(p, HARD) for p in draw_distinct(rng, HARD, Split.OPSD, num_hard, taken)]
    rng.shuffle(drawn)
    partners = _partners([problem for problem, _ in drawn])
    pairs: list[Pair] = []
    wrong_pairs: list[Pair] = []
    for problem, stratum in drawn:
        prompt = phrase(problem, stratum.phrasing, rng)
        other = partners[problem]
        pairs.append({**_item("pair", prompt, problem, stratum), "source": SOURCE})
        wrong_pairs.append({**_item("wrong", prompt, other, stratum), "source": SOURCE})
    return pairs, wrong_pairs


def _partners(problems: list[Problem]) -> dict[Problem, Problem]:
    """Give each problem another one with as many operations and, where any has, another answer."""
    by_length: dict[int, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_length[len(problem.deltas)].append(problem)
    partners: dict[Problem, Problem] = {}
    for group in by_length.values():
        for place, problem in enumerate(group):
            others = group[place + 1 :] + group[:place]
            pool = others or [other for other in problems if other != problem]
            if not pool:
                raise ValueError("wrong pairs need at least two problems")
            partners[problem] = next((o for o in pool if o.answer != problem.answer), pool[0])
    return partners


def make_suites(seed: int, config: DatasetConfig) -> dict[str, list[Item]]:
    """Return the held-out suites by name; no numeric problem is in two of them."""
    rng = random.Random(f"suites {seed}")
    taken: set[Problem] = set()
    count = config.num_per_stratum
    contents = {
        "target": ((MEDIUM, count), (HARD, count)),
        "easy": ((EASY, count),),
        "symbolic": ((SYMBOLIC_MEDIUM, count - count // 2), (SYMBOLIC_HARD, count // 2)),
        "long": ((LONG, count),),
    }
    return {
        name: [
            _item(f"suite {name}", phrase(problem, stratum.phrasing, rng), problem, stratum)
            for stratum, how_many in parts
            for problem in draw_distinct(rng, stratum, Split.HELDOUT, how_many, taken)
        ]
        for name, parts in contents.items()
    }


def write_jsonl(path: Path, records: Iterable[Item]) -> None:
    """Write one JSON object a line, UTF-8."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")
