"""How verifying holds up: agreement with Math-Verify, hostile texts, throughput, cost of a sandbox.

    python bench/verify.py [--processes 2] [--hostile 500] [--limit 1.0] [--json FILE]

agreement   verdicts of `math` on Math-Verify's own published cases (bench/verify-math-cases.jsonl)
            against what its tests say, and against the library called here with its defaults
hostile     texts made to hang, crash or fool a verifier (tests/support/hostile.py): the slowest
            verdict, how many processes were lost, whether one passed
throughput  ordinary answers a second, by verifier
python      a verdict on unit tests and on a program, one at a time
start       until a worker is warm
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/support"))

from hostile import hostile_texts  # noqa: E402 - the path is set just above

from opsd.daemon.types.pairs import Verdict, VerdictKind  # noqa: E402
from opsd.daemon.verify.pool import VerifierPool  # noqa: E402

CASES = ROOT / "bench/verify-math-cases.jsonl"
NEVER = "31415926"
"""An answer that no hostile text holds."""
TESTS = json.dumps({"tests": "assert add(1, 2) == 3"})
PROGRAM = json.dumps({"cases": [{"stdin": "1 2", "stdout": "3"}]})
ORDINARY = {
    "math": [(f"{n}/7", f"so it is\n\\boxed{{\\frac{{{2 * n}}}{{14}}}}") for n in range(1, 201)],
    "numeric": [(f"{n} m", f"so it is\nAnswer: {n * 100} cm") for n in range(1, 2001)],
    "exact": [(f"word {n}", f"Answer: word {n}") for n in range(1, 2001)],
}


def library_says(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    parsed = [parse(text, parsing_timeout=None) for text in (gold, answer)]
    return bool(verify(*parsed, timeout_seconds=None))


async def agreement(pool: VerifierPool) -> dict[str, Any]:
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    verdicts = await pool.verify_many(("math", c["gold"], c["answer"]) for c in cases)
    ours = [verdict.kind is VerdictKind.PASS for verdict in verdicts]
    library = [library_says(case["gold"], case["answer"]) for case in cases]
    published = [case["same"] for case in cases]
    different = [
        {"gold": case["gold"], "answer": case["answer"], "ours": our, "published": case["same"]}
        for case, our in zip(cases, ours, strict=True)
        if our != case["same"]
    ]
    return {
        "cases": len(cases),
        "with_published": sum(map(bool.__eq__, ours, published)),
        "with_library_here": sum(map(bool.__eq__, ours, library)),
        "different": different,
    }


async def hostile(pool: VerifierPool, count: int) -> dict[str, Any]:
    texts = hostile_texts(count)
    found = {}
    for verifier in ("math", "numeric"):
        began = time.monotonic()
        verdicts = await pool.verify_many((verifier, NEVER, text) for text in texts)
        found[verifier] = summary(verdicts, time.monotonic() - began)
    return found


def summary(verdicts: Iterable[Verdict], wall_s: float) -> dict[str, Any]:
    given = list(verdicts)
    lost = Counter(
        "timeout" if "was killed" in v.evidence else "crash"
        for v in given
        if "was killed" in v.evidence or "died of it" in v.evidence
    )
    return {
        "texts": len(given),
        "verdicts": dict(Counter(verdict.kind.value for verdict in given)),
        "lost": dict(lost),
        "slowest_s": round(max(verdict.duration_s for verdict in given), 3),
        "wall_s": round(wall_s, 1),
    }


async def throughput(pool: VerifierPool) -> dict[str, float]:
    found = {}
    for verifier, pairs in ORDINARY.items():
        rates = []
        for _ in range(3):
            began = time.monotonic()
            verdicts = await pool.verify_many((verifier, *pair) for pair in pairs)
            rates.append(len(pairs) / (time.monotonic() - began))
            assert all(verdict.kind is VerdictKind.PASS for verdict in verdicts)
        found[verifier] = round(statistics.median(rates), 1)
    return found


async def python_cost(pool: VerifierPool, times: int = 10) -> dict[str, Any]:
    code = "def add(a, b): return a + b"
    program = "print(sum(map(int, input().split())))"
    found: dict[str, Any] = {}
    for name, reference, text in (("unit_tests", TESTS, code), ("program", PROGRAM, program)):
        verdicts = [await pool.verify("python", reference, text) for _ in range(times)]
        if verdicts[0].kind is not VerdictKind.PASS:
            return {"not_measured": verdicts[0].evidence}
        spent = sorted(verdict.duration_s for verdict in verdicts)
        found[name] = {
            "median_s": round(statistics.median(spent), 3),
            "worst_s": round(spent[-1], 3),
        }
    return found


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    pool = VerifierPool(args.processes, 10.0)
    await pool.start()
    found: dict[str, Any] = {"start_s": round(time.monotonic() - began, 2)}
    found["agreement"] = await agreement(pool)
    found["throughput_per_s"] = await throughput(pool)
    found["python"] = await python_cost(pool)
    await pool.stop()
    strict = VerifierPool(args.processes, args.limit)
    await strict.start()
    found["hostile"] = await hostile(strict, args.hostile) | {"limit_s": args.limit}
    await strict.stop()
    return found


def show(found: dict[str, Any]) -> None:
    same = found["agreement"]
    print(f"start       {found['start_s']} s until warm")
    print(
        f"agreement   {same['with_published']}/{same['cases']} with the published verdicts, "
        f"{same['with_library_here']}/{same['cases']} with the library here"
    )
    for case in same["different"]:
        print(f"            {case['gold']!r} {case['answer']!r}: ours {case['ours']}")
    for verifier, rate in found["throughput_per_s"].items():
        print(f"throughput  {verifier:<8} {rate:>8} a second")
    for name, cost in found["python"].items():
        print(f"python      {name}: {cost}")
    for verifier in ("math", "numeric"):
        it = found["hostile"][verifier]
        print(
            f"hostile     {verifier:<8} {it['texts']} texts in {it['wall_s']} s, {it['verdicts']}, "
            f"lost {it['lost'] or 'none'}, slowest {it['slowest_s']} s "
            f"(limit {found['hostile']['limit_s']:g} s)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hostile", type=int, default=500)
    parser.add_argument("--limit", type=float, default=1.0, help="seconds for a hostile text")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    for name in ("math_verify", "opsd.daemon.verify.pool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    found = asyncio.run(measure(args))
    show(found)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
