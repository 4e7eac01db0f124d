"""What counts as the answer, and as the same answer."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.worker import check

PASS, FAIL, ERROR = VerdictKind.PASS, VerdictKind.FAIL, VerdictKind.ERROR


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("2", "Answer: 2"),
        ("2", "61-40=21\n21-10=11\nAnswer: 2"),
        ("2", "21, 2"),
        ("40", "61-40"),
        ("-40", "it is -40."),
        ("2", "Answer: 3\nno:\nAnswer: 2"),
        ("2", "Answer: 3 \\boxed{1} \\boxed{2}"),
        ("3", "**Final Answer**: **3**"),
        ("3", "Answer: x = 3"),
        ("5", "<think>Answer: 4</think>Answer: 5"),
        ("5", "\\boxed{5\\text{ cm}}"),
        ("5", "Answer: $5 apples"),
        ("-5", "Answer: -$5"),
        ("1000", "Answer: 1,000"),
        ("1000", "\\boxed{1{,}000}"),
        ("1000", "Answer: $1 \\times 10^{3}$."),
        ("0.001", "Answer: 1e-3"),
        ("1/2", "Answer: 0.5"),
        ("0.5", "\\boxed{\\frac12}"),
        ("2.5", "Answer: 2½"),
        ("2.5", "\\boxed{2\\frac{1}{2}}"),
        ("1/3", "Answer: 0.333"),
        ("50%", "Answer: 1/2"),
        ("50", "Answer: 50%"),
        ("-3", "Answer: \u22123"),
        ("12", "Answer: \uff11\uff12"),
    ],
)
def test_numbers_that_are_the_same(reference: str, text: str) -> None:
    assert check("numeric", reference, text)[0] is PASS


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("2", "Answer: 1 or 2"),
        ("2", "Answer: 1, 2"),
        ("2", "Answer: not 2"),
        ("2", "Answer: between 1 and 2"),
        ("2", "\\boxed{2} \\boxed{3}"),
        ("2", "Answer: 2\nAnswer: 3"),
        ("2", "2 3"),
        ("2", "<think>Answer: 2"),
        ("2", "Answer: 2 <think>3</think>"),
        ("2", "Answer:"),
        ("2", "\\boxed{2"),
        ("2", "Answer: 2x"),
        ("2", "Answer: 2 million"),
        ("10", "Answer: 10\u00b2"),
        ("102", "so it is 10\u00b2"),
        ("2", "so it is 3^{2}"),
        ("2", "so it is x_{2}"),
        ("3.14", "Answer: 3.14159"),
        ("0.5", "Answer: 0.54"),
        ("1/3", "Answer: 0.33"),
        ("1/3", "Answer: 0.334"),
        ("0", "Answer: 1/0"),
        ("314", "Answer: 3,14"),
        ("5", "Answer: five"),
        ("5", "Answer: " + "5" * 10_000),
        ("5", "9" * 5_000),
        ("1", "Answer: 1e99999"),
        ("2", ""),
        ("2", "   \n"),
    ],
)
def test_numbers_that_are_not(reference: str, text: str) -> None:
    assert check("numeric", reference, text)[0] is FAIL


@pytest.mark.parametrize("reference", ["", "abc", "1 or 2", "1/0", "9" * 5_000])
def test_a_reference_that_is_no_number_is_an_error(reference: str) -> None:
    kind, evidence = check("numeric", reference, "Answer: 2")
    assert kind is ERROR
    assert "reference" in evidence


@given(st.fractions(max_denominator=10**6))
def test_a_fraction_equals_itself_and_no_other(value: Fraction) -> None:
    assert check("numeric", str(value), f"thus\nAnswer: {value}")[0] is PASS
    other = value + Fraction(1, 7)
    assert check("numeric", str(value), f"Answer: {other}")[0] is FAIL


@given(
    st.lists(st.integers(-999, 999), min_size=2, max_size=5, unique=True),
    st.sampled_from([" or ", ", ", " and ", "; ", " / or ", " "]),
)
def test_several_guesses_never_pass(guesses: list[int], between: str) -> None:
    text = between.join(map(str, guesses))
    for verifier in ("numeric", "exact"):
        for guess in guesses[:-1]:
            for marked in (f"Answer: {text}", f"\\boxed{{{text}}}"):
                assert check(verifier, str(guess), marked)[0] is FAIL


@settings(deadline=None)
@given(st.sampled_from(["numeric", "exact", "math"]), st.text(max_size=60), st.text(max_size=60))
def test_nothing_raises(verifier: str, reference: str, text: str) -> None:
    kind, evidence = check(verifier, reference, text)
    assert isinstance(kind, VerdictKind)
    assert isinstance(evidence, str)


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("2", "Answer: 2"),
        ("1/2", "Answer: 0.5"),
        ("1/2", "\\boxed{\\frac{2}{4}}"),
        ("1/2", "Answer: 50\\%"),
        ("1500", "Answer: 1.5\\times 10^3"),
        ("1024", "Answer: 2^{10}"),
        ("-1/2", "\\boxed{-\\frac12}"),
        ("\\sqrt{8}", "\\boxed{2\\sqrt2}"),
        ("x^2-1", "\\boxed{(x-1)(x+1)}"),
        ("\\{1,2\\}", "\\boxed{\\{2,1\\}}"),
        ("\\{1,2\\}", "Answer: 1 or 2"),
        ("(1,2)", "Answer: (1, 2)"),
        ("2", "so $x=2$"),
        ("2", "11-9=2"),
        ("$2$", "Answer: 2"),
        ("yes", "Answer: yes"),
    ],
)
def test_mathematics_that_is_the_same(reference: str, text: str) -> None:
    assert check("math", reference, text)[0] is PASS


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("2", "Answer: 1 or 2"),
        ("2", "Answer: 1, 2"),
        ("2", "\\boxed{\\{1,2\\}}"),
        ("2", "\\boxed{\\pm 2}"),
        ("2", "Answer: 61-40-19"),
        ("42", "Answer: 6 \\times 7"),
        ("2", "\\boxed{\\int_0^2 1 dx}"),
        ("2", "\\boxed{\\infty-\\infty+2}"),
        ("2", "\\boxed{\\frac00}"),
        ("2", "\\boxed{x}"),
        ("2", "\\boxed{2x}"),
        ("2", "\\boxed{[1,3]}"),
        ("x", "\\boxed{y}"),
        ("2", "__import__('os').system('true')"),
    ],
)
def test_mathematics_that_is_not(reference: str, text: str) -> None:
    assert check("math", reference, text)[0] is FAIL


@given(st.lists(st.integers(2, 99), min_size=2, max_size=4))
@settings(deadline=None, max_examples=30)
def test_the_problem_is_not_its_own_answer(terms: list[int]) -> None:
    problem = "+".join(map(str, terms))
    assert check("math", str(sum(terms)), f"Answer: {problem}")[0] is FAIL
    assert check("math", str(sum(terms)), f"Answer: {sum(terms)}")[0] is PASS


@pytest.mark.parametrize(
    ("reference", "text", "kind"),
    [
        ("B", "Answer: B.", PASS),
        ("B", "because …\n\\boxed{B}", PASS),
        ("a b", " a \n b ", PASS),
        ("\u00e9", "e\u0301", PASS),
        ("B", "b", FAIL),
        ("B", "A or B", FAIL),
        ("x2", "x\u00b2", FAIL),
        ("", "", ERROR),
    ],
)
def test_exact_text(reference: str, text: str, kind: VerdictKind) -> None:
    assert check("exact", reference, text)[0] is kind
