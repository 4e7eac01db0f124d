"""How well planted copies of held-out problems are found, and what a lookup costs.

    python bench/contamination.py [--seeds 5] [--sizes 1000,10000]

The labelled set is made by tests/support/contamination_set.py. Thresholds were chosen on the tuned
half; the other half's hand-written problems were kept aside. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from contamination_set import Case, Clean, Half, LabelledSet, Planted, make_set
from contamination_stories import STORIES, tell

from opsd.daemon.collect.hygiene.contamination import HeldOutIndex
from opsd.daemon.gate.stats import wilson_interval
from opsd.daemon.types.pairs import SuiteItem

Counts = dict[str, list[int]]  # found, of how many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="sets of each half")
    parser.add_argument("--sizes", default="100,1000,10000", help="items, for the lookup's cost")
    parser.add_argument("--misses", action="store_true", help="name them, of the tuned half only")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    figures = {half.value: measure(half, options) for half in Half}
    for half, counts in figures.items():
        print(f"\n{half} half")
        for label, (found, total) in counts.items():
            ci = wilson_interval(found, total, confidence=0.95)
            share = f"{found:5}/{total:<5} {found / total:6.1%}"
            print(f"  {label:60} {share}  [{ci.low:.1%}, {ci.high:.1%}]")
    print()
    costs = [lookup_cost(int(size)) for size in options.sizes.split(",")]
    for cost in costs:
        print("  ".join(f"{name}={value:,.4g}" for name, value in cost.items()))
    if options.json:
        options.json.write_text(json.dumps({"counts": figures, "costs": costs}, indent=1))


def measure(half: Half, options: argparse.Namespace) -> Counts:
    """Found and total of every label; hand-written ones are the same under every seed and count
    once."""
    counts: Counts = defaultdict(lambda: [0, 0])
    for seed in range(options.seeds):
        labelled = make_set(half, seed)
        for case, found in judged(labelled):
            if seed and case.label in (Planted.REWORDED, Clean.TWIN, Clean.UNRELATED):
                continue
            names = [case.label.value]
            if isinstance(case.label, Planted):
                names.append("ALL PLANTED")
            else:
                names.append("ALL CLEAN, twins too")
                if case.label is not Clean.TWIN:
                    names.append("ALL CLEAN, without twins")
            for name in names:
                counts[name][0] += found
                counts[name][1] += 1
            wrong = found != isinstance(case.label, Planted)
            if options.misses and wrong and half is Half.TUNED and not seed:
                print(f"{case.label.value} | {case.text!r}")
    return dict(sorted(counts.items(), key=lambda entry: _rank(entry[0])))


def _rank(name: str) -> int:
    order = [*Planted, "ALL PLANTED", *Clean, "ALL CLEAN, without twins", "ALL CLEAN, twins too"]
    return [str(label) for label in order].index(name)


def judged(labelled: LabelledSet) -> Iterator[tuple[Case, bool]]:
    index = HeldOutIndex(labelled.suites)
    for case in (*labelled.planted, *labelled.clean):
        yield case, index.match(case.text) is not None


def lookup_cost(num_items: int) -> dict[str, float]:
    """Microseconds of one thread, of clean texts and of reworded ones, in one suite."""
    rng = random.Random(num_items)
    texts = [tell(STORIES[n % len(STORIES)](rng), rng) for n in range(num_items)]
    items = [SuiteItem(str(n), text, "numeric", "1") for n, text in enumerate(texts)]
    began = time.perf_counter()
    index = HeldOutIndex({"suite": items})
    built_s = time.perf_counter() - began
    clean = [case.text for case in make_set(Half.TUNED).clean]
    found = [text.replace("How many", "What number of") for text in texts[:1000]]
    return {
        "items": num_items,
        "build_s": built_s,
        "lookup_clean_us": _mean_us(index, clean),
        "lookup_found_us": _mean_us(index, found),
    }


def _mean_us(index: HeldOutIndex, texts: Sequence[str]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        for text in texts:
            index.match(text)
        best = min(best, time.thread_time() - began)
    return best / len(texts) * 1e6


if __name__ == "__main__":
    main()
