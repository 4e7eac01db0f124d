"""The verifier ``json``: a document that a JSON Schema describes."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import short
from opsd.daemon.verify.extract import NoAnswerError, after_thinking
from opsd.daemon.verify.protocol import Finding, FunctionCheck
from opsd.daemon.verify.references import BadReferenceError, wanted_object

_KEYS = ("schema", "expected")
_EXAMPLE = '{"schema": {"type": "object", "required": ["name"]}} or {"expected": {"name": "Ada"}}'
_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:json)?[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_OUR_FENCES = re.compile(r"^[ \t]*```", re.MULTILINE)


@lru_cache(maxsize=64)
def read_schema(reference: str) -> tuple[Draft202012Validator | None, bool, Any]:
    """Of a reference: its schema, whether it has an expected value, and that value.

    Raises BadReferenceError.
    """
    given = wanted_object(reference, _KEYS, _EXAMPLE)
    if not given:
        raise BadReferenceError(
            f"it has neither 'schema' nor 'expected'; write for example {_EXAMPLE}"
        )
    if "schema" not in given:
        return None, True, given["expected"]
    schema = given["schema"]
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise BadReferenceError(f"'schema' is no JSON Schema: {_where(error)}; mend it") from None
    except (re.error, RecursionError) as error:
        raise BadReferenceError(f"'schema' cannot be read: {error}; mend it") from None
    _check_local(schema)
    # An empty registry: the default one fetches what a schema refers to.
    return (
        Draft202012Validator(schema, registry=Registry()),
        "expected" in given,
        given.get("expected"),
    )


def _check_local(schema: Any) -> None:
    """Raises BadReferenceError for what the schema refers to and does not hold."""
    resource = DRAFT202012.create_resource(schema)
    resolver = Registry().with_resource("", resource).resolver()
    for reached in _references(schema):
        if not reached.startswith("#"):
            raise BadReferenceError(
                f"'schema' refers to {short(reached)}, and nothing is fetched; put it under $defs"
            )
        try:
            resolver.lookup(reached)
        except Unresolvable:
            raise BadReferenceError(
                f"'schema' refers to {short(reached)}, which is not in it; add it under $defs"
            ) from None


def _references(schema: Any) -> list[str]:
    found: list[str] = []
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found += [
                part[key] for key in ("$ref", "$dynamicRef") if isinstance(part.get(key), str)
            ]
            left += part.values()
        elif isinstance(part, list):
            left += part
    return found


def json_mistake(reference: str) -> str:
    """What is wrong with it; "" where nothing is."""
    try:
        schema, has_expected, expected = read_schema(reference)
        if schema is not None and has_expected:
            wrong = best_match(schema.iter_errors(expected))
            if wrong is not None:
                return f"'expected' does not fit 'schema': {_where(wrong)}; mend one of them"
    except BadReferenceError as error:
        return str(error)
    return ""


def check_json(reference: str, text: str) -> Finding:
    """The document is the last fenced block (``json`` or nameless) or, without a fence, all of what
    stands behind the thinking."""
    try:
        schema, has_expected, expected = read_schema(reference)
    except BadReferenceError as error:
        return VerdictKind.ERROR, f"the reference: {error}"
    try:
        given = _document(text)
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    try:
        wrong = best_match(schema.iter_errors(given)) if schema is not None else None
    except Unresolvable as error:
        return VerdictKind.ERROR, f"the reference: 'schema' refers to {short(str(error.ref))}"
    if wrong is not None:
        return VerdictKind.FAIL, _where(wrong)
    shown = short(json.dumps(given, ensure_ascii=False))
    if has_expected and not same_json(given, expected):
        return VerdictKind.FAIL, f"{shown} ≠ {short(json.dumps(expected, ensure_ascii=False))}"
    return (
        VerdictKind.PASS,
        f"{shown} {'is the expected value' if has_expected else 'fits the schema'}",
    )


def _document(text: str) -> Any:
    spoken = after_thinking(text)
    fenced = _FENCE.findall(spoken)
    if not fenced and _OUR_FENCES.search(spoken):
        raise NoAnswerError("no fenced block of it is JSON")
    try:
        return json.loads(fenced[-1] if fenced else spoken, parse_constant=_no_constant)
    except RecursionError:
        raise NoAnswerError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise NoAnswerError(f"it is not JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def same_json(first: Any, second: Any) -> bool:
    """Equality of JSON values: 1 and 1.0 are one number, 1 and true are not."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_json(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same_json, first, second))
    return bool(first == second)


def _where(error: ValidationError | SchemaError) -> str:
    place = error.json_path if error.path else "the document"
    return f"{place}: {error.message[:120]}"


JSON = FunctionCheck(check_json, json_mistake)
