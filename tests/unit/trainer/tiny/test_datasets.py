import json
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from opsd.trainer.tiny.datasets import (
    Item,
    Pair,
    make_pairs,
    make_suites,
    write_jsonl,
)
from opsd.trainer.tiny.recipe import DatasetConfig

CONFIG = DatasetConfig(num_pairs=400, num_per_stratum=60)
GAINS = ("gains", "finds", "buys")


def solve(prompt: str) -> list[int]:
    """Work out the running totals of a prompt from its text alone."""
    if re.fullmatch(r"[\d+-]+", prompt):
        start, *signed = re.findall(r"[+-]?\d+", prompt)
        deltas = [int(number) for number in signed]
    else:
        start = re.findall(r"has (\d+)", prompt)[0]
        events = re.findall(r", (\w+) (\d+)", prompt)
        deltas = [int(number) * (1 if verb in GAINS else -1) for verb, number in events]
    totals = [int(start)]
    for delta in deltas:
        totals.append(totals[-1] + delta)
    return totals[1:]


def numbers(items: Sequence[Item]) -> set[str]:
    """Return the numeric problems, whatever their phrasing."""
    return {f"{re.findall(r'[0-9]+', item['prompt'])[0]}|{solve(item['prompt'])}" for item in items}


@pytest.mark.parametrize("seed", [0, 7])
def test_references_and_solutions_are_right(seed: int) -> None:
    pairs, _ = make_pairs(seed, CONFIG)
    items: list[Item] = [*pairs, *(i for s in make_suites(seed, CONFIG).values() for i in s)]
    for item in items:
        totals = solve(item["prompt"])
        assert item["solution"] == ", ".join(map(str, totals))
        assert item["reference"] == str(totals[-1])
        assert item["verifier"] == "numeric"


def test_suites_have_their_sizes_and_strata() -> None:
    suites = make_suites(0, DatasetConfig())
    assert {name: len(items) for name, items in suites.items()} == {
        "target": 600,
        "easy": 300,
        "symbolic": 300,
        "long": 300,
    }
    assert [item["stratum"] for item in suites["target"]].count("hard") == 300
    assert {item["stratum"] for item in suites["long"]} == {"long"}


def test_nothing_is_both_trained_on_and_held_out_under_any_seed() -> None:
    trained = set().union(*(numbers(make_pairs(seed, CONFIG)[0]) for seed in range(4)))
    held_out = set().union(
        *(numbers(items) for seed in range(4) for items in make_suites(seed, CONFIG).values())
    )
    assert not trained & held_out


def test_suites_share_no_numeric_problem() -> None:
    suites = make_suites(0, CONFIG)
    every = [numbers(items) for items in suites.values()]
    assert sum(map(len, every)) == len(set().union(*every)) == sum(map(len, suites.values()))


def test_wrong_pairs_carry_another_problems_solution_and_answer() -> None:
    pairs, wrong_pairs = make_pairs(0, CONFIG)
    solutions = {pair["solution"] for pair in pairs}
    assert [pair["prompt"] for pair in pairs] == [pair["prompt"] for pair in wrong_pairs]
    for right, wrong in zip(pairs, wrong_pairs, strict=True):
        assert wrong["solution"] in solutions
        assert wrong["solution"] != right["solution"]
        assert wrong["reference"] != right["reference"]
        assert wrong["reference"] == wrong["solution"].split(", ")[-1]
        assert wrong["solution"].count(",") == right["solution"].count(",")
        assert wrong["stratum"] == right["stratum"]


def test_ids_are_unique_uuids() -> None:
    pairs, wrong_pairs = make_pairs(0, CONFIG)
    items: list[Item] = [*pairs, *wrong_pairs]
    items += [item for suite in make_suites(0, CONFIG).values() for item in suite]
    assert len({uuid.UUID(item["id"]) for item in items}) == len(items)


def test_every_prefix_holds_both_strata() -> None:
    pairs, _ = make_pairs(0, CONFIG)
    share = sum(pair["stratum"] == "hard" for pair in pairs[:200]) / 200
    assert 0.35 < share < 0.65


def test_a_seed_decides_everything_and_another_draws_others() -> None:
    assert make_pairs(3, CONFIG) == make_pairs(3, CONFIG)
    assert make_suites(3, CONFIG) == make_suites(3, CONFIG)
    assert numbers(make_pairs(3, CONFIG)[0]) != numbers(make_pairs(4, CONFIG)[0])


def test_wrong_pairs_need_another_problem() -> None:
    with pytest.raises(ValueError, match="at least two"):
        make_pairs(0, DatasetConfig(num_pairs=1))


def test_jsonl_holds_the_records(tmp_path: Path) -> None:
    pairs, _ = make_pairs(0, CONFIG)
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    lines = (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    read: list[Pair] = [json.loads(line) for line in lines]
    assert read == pairs
