"""``math`` gives Math-Verify's own verdict on the cases that Math-Verify publishes.

The cases are facts of its test suite (version 0.9): a gold answer, an answer, whether they are the
same. Long answers are cut down to the end that decides. Left out are those for other settings than
its defaults (another precision, not strict, sets compared with relations).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.worker import check

CASES = Path(__file__).parents[3] / "bench/verify-math-cases.jsonl"
DIFFERENT = {
    ("$10$", "Answer \\( (9+1) \\)"): "a sum left to be worked out is no answer to a number",
    (
        "$9$",
        "Answer $ \n 9 \n $",
    ): "published for LaTeX alone; with its defaults it passes there too",
    ("$9$", "Answer \\( \n 9 \n \\)"): "the same",
}


def test_the_published_verdicts_are_ours() -> None:
    different = []
    cases = [json.loads(line) for line in CASES.read_text().splitlines()]
    assert len(cases) == 258
    for case in cases:
        kind, _ = check("math", case["gold"], case["answer"])
        if (kind is VerdictKind.PASS) != case["same"]:
            different.append((case["gold"], case["answer"]))
    assert different == list(DIFFERENT)


@pytest.mark.parametrize(
    ("reference", "text", "passes"),
    [
        # In both directions.
        ("2", "Answer: x=2", True),
        ("x=2", "Answer: 2", True),
        ("21", "Answer: 61-40=21", True),
        ("x>1", "Answer: (1,\\infty)", True),
        ("1<x<2", "Answer: (1,2)", True),
        ("x^2=4", "Answer: \\{-2,2\\}", True),
        ("x^2/4+y^2/3=1", "Answer: x^2/16+y^2/12=1/4", True),
        # No value makes the answer true.
        ("x^2+1=0", "Answer: x=x+1", False),
        ("x^2+1=0", "Answer: 0=x-x+1", False),
        # At six digits they would be the same.
        ("10^{-9}", "Answer: 0.0", False),
        ("10^{-9}", "Answer: 2.0\\times10^{-9}", False),
        ("10^{-9}", "Answer: 0.000000001", True),
        ("0.0000004", "Answer: 0.0000001", False),
        ("1/3", "Answer: 0.333333", True),
        # Parts of one answer.
        ("\\{1,2\\}", "\\boxed{1} and \\boxed{2}", True),
        ("1", "\\boxed{1} and \\boxed{2}", False),
        ("2", "\\boxed{1} and \\boxed{2}", False),
        ("2", "first \\boxed{1}, which is wrong, then \\boxed{2}", True),
        ("2", "\\boxed{1}\n\nNo. \\boxed{2}", True),
        ("2", "\\boxed{3}. The final answer is $2$. I hope it is correct.", True),
    ],
)
def test_where_we_look_twice(reference: str, text: str, passes: bool) -> None:
    kind, evidence = check("math", reference, text)
    assert (kind is VerdictKind.PASS) == passes, evidence
