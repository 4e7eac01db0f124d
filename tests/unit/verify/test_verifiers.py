"""``regex``, ``choice``, ``json``, and the units and tolerances of ``numeric``."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.worker import check, check_reference

PASS, FAIL, ERROR = VerdictKind.PASS, VerdictKind.FAIL, VerdictKind.ERROR

METRES = json.dumps({"value": "10", "unit": "m", "rel_tolerance": "0.01"})
CLOSE = json.dumps({"value": "3.14", "abs_tolerance": "0.005"})


@pytest.mark.parametrize(
    ("reference", "text", "kind"),
    [
        ("12.5 m", "Answer: 1250 cm", PASS),
        ("12.5 m", "\\boxed{0.0125\\text{ km}}", PASS),
        ("12.5 m", "Answer: 12.5", PASS),
        ("12.5 m", "Answer: 12.5 km", FAIL),
        ("12.5 m", "Answer: 12.5 kg", FAIL),
        ("12.5 m", "Answer: 12.5 apples", FAIL),
        ("12.5 m", "so it is 1250 cm.", PASS),
        ("12.5 m", "so it is 12.5 km.", FAIL),
        ("2 h", "Answer: 120 minutes", PASS),
        ("2 h", "Answer: 7200 s", PASS),
        ("36 km/h", "Answer: 10 m/s", PASS),
        ("36 km/h", "Answer: 10 metres per second", PASS),
        ("3 m^2", "\\boxed{30000\\text{ cm}^2}", PASS),
        ("3 m^2", "\\boxed{300\\text{ cm}}", FAIL),
        ("1 l", "Answer: 1000 cm^3", PASS),
        ("5 µm", "Answer: 0.005 mm", PASS),
        ("2 kg", "Answer: 2000 grams", PASS),
        ("5 apples", "Answer: 5 pears", PASS),
        ("50%", "Answer: 0.5", PASS),
        (METRES, "Answer: 1009 cm", PASS),
        (METRES, "Answer: 1011 cm", FAIL),
        (METRES, "Answer: 10.1 kg", FAIL),
        (CLOSE, "Answer: 3.142", PASS),
        (CLOSE, "Answer: 3.15", FAIL),
        (CLOSE, "Answer: 3.14 or 3.15", FAIL),
        ("1/3", "Answer: 0.333 m", PASS),
    ],
)
def test_units_and_tolerances(reference: str, text: str, kind: VerdictKind) -> None:
    found, evidence = check("numeric", reference, text)
    assert found is kind, evidence
    assert check_reference("numeric", reference) == ""


@given(st.integers(1, 10**6), st.sampled_from([("m", "mm", 1000), ("h", "s", 3600)]))
def test_a_conversion_is_exact(value: int, units: tuple[str, str, int]) -> None:
    large, small, factor = units
    assert check("numeric", f"{value} {large}", f"Answer: {value * factor} {small}")[0] is PASS
    assert check("numeric", f"{value} {large}", f"Answer: {value * factor + 1} {small}")[0] is FAIL


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [
        ("", "empty"),
        ("two", "not a number"),
        ('{"value": 10}', "'value' is a int"),
        ('{"value": "10", "unit": "parsnip"}', "'parsnip' is not known"),
        ('{"value": "10", "tolerance": "1"}', "'tolerance' is no key"),
        ('{"value": "10", "rel_tolerance": "-1"}', "at least 0"),
        ('{"unit": "m"}', "'value' is missing"),
    ],
)
def test_numeric_references(reference: str, wrong: str) -> None:
    assert wrong in check_reference("numeric", reference)


OPTIONS = json.dumps({"answer": "B", "options": {"A": "red", "B": "Blue sky", "C": "green"}})


@pytest.mark.parametrize(
    "text",
    [
        "B", "(B)", "B.", "b)", "Answer: B", "**Answer: (B)**", "\\boxed{B}", "\\boxed{\\text{B}}",
        "Answer: B) blue sky", "Answer: blue sky.", "Answer: Blue  Sky", "thus\nthe answer is (B).",
        "The correct answer is B", "Answer: option B", "Answer: the answer is B",
        "A? no.\n\nB", "<think>A</think>B",
    ],
)  # fmt: skip
def test_choices_that_are_right(text: str) -> None:
    assert check("choice", OPTIONS, text)[0] is PASS


@pytest.mark.parametrize(
    "text",
    [
        "A", "Answer: A or B", "Answer: A, B", "Answer: B) red", "Answer: B and C", "Answer: AB",
        "Answer: not B", "Answer: D", "Be careful", "Blue", "", "B\nA", "Answer: blue sky or red",
        "\\boxed{A}, \\boxed{B}\\boxed{C}", "<think>B", "A B C D E", "Answer: all of them",
    ],
)  # fmt: skip
def test_choices_that_are_not(text: str) -> None:
    assert check("choice", OPTIONS, text)[0] is FAIL


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [
        ("B", ""),
        ("(b)", ""),
        (OPTIONS, ""),
        ('{"answer": "B", "options": ["x", "y"]}', ""),
        ("Z", "no letter"),
        ("AB", "no letter"),
        ('{"answer": "D", "options": {"A": "x"}}', "not among the options"),
        ('{"answer": "A", "options": {"A": "x", "B": "X"}}', "twice"),
        ('{"answer": "A", "options": {"1": "x"}}', "letters are A to J"),
        ('{"options": {"A": "x"}}', "'answer' is missing"),
    ],
)
def test_choice_references(reference: str, wrong: str) -> None:
    found = check_reference("choice", reference)
    assert wrong in found
    assert bool(wrong) == bool(found)


@pytest.mark.parametrize(
    ("reference", "text", "kind"),
    [
        ("\\d+", "Answer: 42", PASS),
        ("\\d+", "Answer: 42 apples", FAIL),
        ("\\d+", "thus 42", FAIL),
        ('{"pattern": "ab+", "flags": "i"}', "ABB", PASS),
        ('{"pattern": "a.b", "flags": "s"}', "a\nb", PASS),
        ("a.b", "a\nb", FAIL),
        ("(", "(", ERROR),
    ],
)
def test_patterns(reference: str, text: str, kind: VerdictKind) -> None:
    assert check("regex", reference, text)[0] is kind


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [
        ("(", "does not compile"),
        ("a*", "matches nothing at all"),
        ('{"pattern": "a", "flags": "q"}', "'flags' has 'q'"),
        ('{"pattern": 1}', "'pattern' is a int"),
        ("a+", ""),
    ],
)
def test_pattern_references(reference: str, wrong: str) -> None:
    found = check_reference("regex", reference)
    assert wrong in found
    assert bool(wrong) == bool(found)


PERSON = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer"}}}
SCHEMA = json.dumps({"schema": PERSON})
EXPECTED = json.dumps({"expected": {"name": "Ada", "age": 36}})


@pytest.mark.parametrize(
    ("reference", "text", "kind"),
    [
        (SCHEMA, '{"name": "Ada"}', PASS),
        (SCHEMA, 'Here:\n```json\n{"name": "Ada", "age": 36}\n```\nThat is all.', PASS),
        (SCHEMA, '```json\n{}\n```\nno:\n```\n{"name": "Ada"}\n```', PASS),
        (SCHEMA, '{"name": "Ada", "age": "old"}', FAIL),
        (SCHEMA, '{"age": 36}', FAIL),
        (SCHEMA, "[1]", FAIL),
        (SCHEMA, "name: Ada", FAIL),
        (SCHEMA, '```yaml\nname: Ada\n```', FAIL),
        (SCHEMA, "[" * 100_000, FAIL),
        (SCHEMA, '{"name": NaN}', FAIL),
        (EXPECTED, '{"age": 36.0, "name": "Ada"}', PASS),
        (EXPECTED, '{"age": true, "name": "Ada"}', FAIL),
        (EXPECTED, '{"age": 36, "name": "Ada", "more": 1}', FAIL),
        ('{"expected": true}', "1", FAIL),
        ('{"expected": 1}', "true", FAIL),
        ('{"expected": null}', "null", PASS),
    ],
)  # fmt: skip
def test_documents(reference: str, text: str, kind: VerdictKind) -> None:
    found, evidence = check("json", reference, text)
    assert found is kind, evidence
    assert evidence


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [
        (SCHEMA, ""),
        (EXPECTED, ""),
        ('{"schema": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}}', ""),
        ("[1]", "no JSON object"),
        ("{}", "neither 'schema' nor 'expected'"),
        ('{"schema": {"type": "objekt"}}', "no JSON Schema: $.type"),
        ('{"schema": {"pattern": "("}}', "no JSON Schema"),
        ('{"schema": {"$ref": "http://127.0.0.1:1/schema"}}', "nothing is fetched"),
        ('{"schema": {"$ref": "#/$defs/b"}}', "not in it"),
        ('{"schema": {"type": "string"}, "expected": 3}', "does not fit"),
    ],
)
def test_document_references(reference: str, wrong: str) -> None:
    found = check_reference("json", reference)
    assert wrong in found
    assert bool(wrong) == bool(found)


@given(
    st.sampled_from(["choice", "regex", "json", "numeric", "exact"]),
    st.text(max_size=60),
    st.text(max_size=60),
)
def test_nothing_raises(verifier: str, reference: str, text: str) -> None:
    kind, evidence = check(verifier, reference, text)
    assert isinstance(kind, VerdictKind)
    assert evidence
    assert isinstance(check_reference(verifier, reference), str)
