"""Records of common data sets as pairs and problems: which field is what.

GSM8K (Cobbe et al., 2021) ends its answers with ``#### 42``; MATH (Hendrycks et al., 2021) puts
them into ``\\boxed{}``; Alpaca has instruction, input and output; ShareGPT and OpenAI have turns.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from opsd.daemon.cli.jsonl import LineError, check_text, parse_object
from opsd.daemon.types.ids import pair_id, problem_id
from opsd.daemon.types.pairs import Origin, PairStatus

if TYPE_CHECKING:
    from opsd.v1.collection_pb2 import SubmitPairsRequest, SubmitProblemsRequest

MAX_BARE_ANSWER_CHARS = 64
"""What stands alone in ``answer`` and is longer is a solution, whose answer must be marked."""

FIELDS = ("prompt", "solution", "reference", "verifier", "source", "stratum", "id", "priority")
_PROMPT = ("prompt", "problem", "question", "instruction", "query")
_SOLUTION = ("solution", "response", "output", "completion", "rationale", "answer")
_REFERENCE = ("reference", "final_answer", "ground_truth", "expected_answer")
_TURNS = ("messages", "conversations", "conversation")
_USER = ("user", "human")
_ASSISTANT = ("assistant", "gpt", "model")
_SILENT = ("system",)

_HASHES = re.compile(r"(?m)^[ \t]*####[ \t]*(?P<answer>\S[^\n]*?)[ \t]*$")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
_ANSWER_LINE = re.compile(
    r"(?im)^[\s>#*_-]*(?:final\s+)?answer\s*[*_]*\s*:\s*[*_]*\s*(?P<answer>\S.*?)\s*$"
)
_EMPTY_MARK = re.compile(r"(?im)^[\s>#*_-]*(?:####|(?:final\s+)?answer\s*[*_]*\s*:)[\s*_]*$")
"""A mark without an answer behind it."""


class Preset(StrEnum):
    GSM8K = "gsm8k"
    MATH = "math"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    OPENAI = "openai"


_PRESETS: Mapping[Preset, Mapping[str, str]] = {
    Preset.GSM8K: {"prompt": "question", "solution": "answer"},
    Preset.MATH: {"prompt": "problem", "solution": "solution", "stratum": "level"},
    Preset.ALPACA: {"prompt": "instruction", "solution": "output"},
    Preset.SHAREGPT: {"turns": "conversations"},
    Preset.OPENAI: {"turns": "messages"},
}
_OPTIONAL = ("stratum",)


@dataclass(frozen=True)
class Plan:
    """How records are read. ``fields``: which of theirs is one of ``FIELDS``, over the preset's."""

    fields: Mapping[str, str] = field(default_factory=dict)
    preset: Preset | None = None
    verifier: str = "math"
    source: str = ""
    stratum: str = ""
    without_reference: bool = False

    def named(self) -> dict[str, str]:
        """The fields that are not guessed."""
        return {**(_PRESETS[self.preset] if self.preset else {}), **self.fields}


def parse_map(text: str) -> dict[str, str]:
    """``prompt=question,solution=answer``. Raises ValueError that names the part and the fix."""
    found: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        ours, equals, theirs = (word.strip() for word in part.partition("="))
        if not equals or not theirs:
            raise ValueError(f"{part!r} is not of the form prompt=question")
        if ours not in FIELDS:
            raise ValueError(f"{ours!r} is none of {', '.join(FIELDS)}")
        found[ours] = theirs
    return found


def import_pair(raw: bytes, plan: Plan) -> SubmitPairsRequest:
    """A record as a pair. Raises LineError that names the field and the fix.

    Made by `opsd pairs export`, it keeps its id and its origin; what was quarantined is refused.
    """
    from opsd.v1.collection_pb2 import PairInput, SubmitPairsRequest

    record = _Record(parse_object(raw), plan)
    if record.value.get("status") == PairStatus.QUARANTINED.value:
        raise LineError(
            "status: it is quarantined where it was exported; release it there, or take the key "
            "status out to have it verified anew"
        )
    prompt = record.prompt()
    solution, reference = record.solution_and_reference()
    if not solution.strip():
        raise LineError(f"solution: is empty; {record.hint('solution', _SOLUTION)}")
    if not reference.strip():
        raise LineError(
            "reference: the solution marks no answer (#### 42, \\boxed{42} or a line Answer: 42); "
            f"{record.hint('reference', _REFERENCE)}"
        )
    verifier = record.label("verifier") or plan.verifier
    pair = PairInput(
        id=record.uuid() or pair_id(prompt, solution, verifier, reference),
        prompt=prompt,
        solution=solution,
        verifier=verifier,
        reference=reference,
        source=record.label("source") or plan.source,
        stratum=record.label("stratum") or plan.stratum,
    )
    return SubmitPairsRequest(pair=pair, origin=record.origin())


def import_problem(raw: bytes, plan: Plan) -> SubmitProblemsRequest:
    """A record as a problem; one without a solution or reference has no known answer."""
    from opsd.v1.collection_pb2 import ProblemInput, SubmitProblemsRequest

    record = _Record(parse_object(raw), plan)
    prompt = record.prompt()
    reference = "" if plan.without_reference else record.solution_and_reference()[1]
    verifier = record.label("verifier") or plan.verifier
    problem = ProblemInput(
        id=record.uuid() or problem_id(prompt, verifier, reference),
        prompt=prompt,
        verifier=verifier,
        reference=reference,
        source=record.label("source") or plan.source,
        stratum=record.label("stratum") or plan.stratum,
        priority=record.priority(),
    )
    return SubmitProblemsRequest(problem=problem)


class _Record:
    """One line's object, read by a plan."""

    def __init__(self, value: dict[str, Any], plan: Plan) -> None:
        self.value = value
        self._plan = plan
        self._named = plan.named()
        self._turns = self._find_turns()

    def prompt(self) -> str:
        """Raises LineError."""
        if self._turns is not None:
            return self._turns[0]
        key, prompt = self._first("prompt", _PROMPT)
        extra = self.value.get("input")
        if key == "instruction" and isinstance(extra, str) and extra.strip():
            check_text("input", extra)
            prompt = f"{prompt}\n\n{extra}"
        if not prompt.strip():
            raise LineError(f"prompt: is empty; {self.hint('prompt', _PROMPT)}")
        return prompt

    def solution_and_reference(self) -> tuple[str, str]:
        """Either may be empty where the record has none. Raises LineError."""
        if self._turns is not None:
            key, solution = "", self._turns[1]
        else:
            key, solution = self._first("solution", _SOLUTION, required=False)
        _, reference = self._first("reference", _REFERENCE, required=False, numbers=True)
        if reference:
            return solution, reference
        if key != "answer":
            # Beside a solution, "answer" is what it comes to.
            beside = _text("answer", self.value.get("answer"), numbers=True)
            if beside and not _marked(beside):
                return solution, beside
            solution = solution or beside
        if not _marked(solution):
            is_bare = (
                len(solution) <= MAX_BARE_ANSWER_CHARS
                and "\n" not in solution.strip()
                and not _EMPTY_MARK.search(solution)
            )
            return solution, solution.strip() if key == "answer" and is_bare else ""
        return _read_solution(solution)

    def label(self, name: str) -> str:
        """A short text about the record, "" where it has none."""
        key = self._named.get(name, name)
        value = _look_up(self.value, key)
        if value is None and name in self._plan.fields and name not in _OPTIONAL:
            raise LineError(f"{name}: the record has no {key!r}")
        return _text(key, value, numbers=True)

    def uuid(self) -> str:
        """Of the record, in canonical form; "" where its id is none."""
        try:
            return str(uuid.UUID(self.label("id")))
        except ValueError:
            return ""

    def origin(self) -> str:
        given = self.value.get("origin")
        if isinstance(given, str) and given in set(Origin):
            return given
        return Origin.IMPORTED.value

    def priority(self) -> int:
        value = _look_up(self.value, self._named.get("priority", "priority"))
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 31:
            raise LineError("priority: must be an integer, e.g. 0")
        return value

    def hint(self, name: str, known: tuple[str, ...]) -> str:
        return f"known names: {', '.join(known)}; another one is named with --map {name}=NAME"

    def _first(
        self, name: str, known: tuple[str, ...], *, required: bool = True, numbers: bool = False
    ) -> tuple[str, str]:
        """The key that holds it, and the text; a key that was named must be there."""
        if name in self._named:
            key = self._named[name]
            value = _look_up(self.value, key)
            if value is None:
                raise LineError(f"{name}: the record has no {key!r}")
            return key, _text(key, value, numbers=numbers)
        for key in known:
            if self.value.get(key) is not None:
                return key, _text(key, self.value[key], numbers=numbers or key == "answer")
        if required:
            raise LineError(f"{name}: is missing; {self.hint(name, known)}")
        return "", ""

    def _find_turns(self) -> tuple[str, str] | None:
        key = self._named.get("turns")
        if key is None:
            if "prompt" in self._named or any(self.value.get(key) for key in _PROMPT):
                return None
            key = next((key for key in _TURNS if self.value.get(key) is not None), None)
            if key is None:
                return None
        return _turns(key, _look_up(self.value, key))


def _turns(key: str, value: Any) -> tuple[str, str]:
    """The one question and the one reply; system turns are left out. Raises LineError."""
    if not isinstance(value, list):
        raise LineError(f"{key}: must be a list of turns")
    said = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise LineError(f"{key}: turn {number} is no object")
        role = str(turn.get("role") or turn.get("from") or "").lower()
        text = _text(f"{key}[{number}]", turn.get("content", turn.get("value")))
        if role not in _SILENT:
            said.append((role, text))
    roles = [role for role, _ in said]
    if len(said) == 1 and roles[0] in _USER:
        return said[0][1], ""
    if len(said) != 2 or roles[0] not in _USER or roles[1] not in _ASSISTANT:
        raise LineError(
            f"{key}: one question and one reply make a pair, this has {', '.join(roles) or 'none'}"
        )
    return said[0][1], said[1][1]


def _look_up(record: dict[str, Any], path: str) -> Any:
    """The value at a key, or at a path of keys with dots between."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def _text(key: str, value: Any, *, numbers: bool = False) -> str:
    """None is "". Raises LineError."""
    if value is None:
        return ""
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        value = _joined(value)
    if not isinstance(value, str):
        raise LineError(f"{key}: must be a string")
    check_text(key, value)
    return value


def _joined(parts: list[Any]) -> str | None:
    """Of content parts, or of one turn in a list, the text."""
    texts = [
        part.get("text", part.get("content")) if isinstance(part, dict) else part for part in parts
    ]
    if texts and all(isinstance(text, str) for text in texts):
        return "".join(str(text) for text in texts)
    return None


def _marked(text: str) -> bool:
    return bool(_HASHES.search(text) or "\\boxed" in text or _ANSWER_LINE.search(text))


def _read_solution(solution: str) -> tuple[str, str]:
    """The solution, with GSM8K's marks as opsd's verifiers read them, and the answer it marks."""
    hashes = list(_HASHES.finditer(solution))
    if hashes:
        last = hashes[-1]
        answer = last["answer"].strip()
        plain = solution[: last.start()] + f"Answer: {answer}" + solution[last.end() :]
        return _CALCULATOR.sub("", plain), answer.replace(",", "") if _is_number(answer) else answer
    boxed = _last_boxed(solution)
    if boxed is not None:
        return solution, boxed
    lines = list(_ANSWER_LINE.finditer(solution))
    return solution, lines[-1]["answer"].strip("*_ \t\r") if lines else ""


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\$?[\d,]*\.?\d+%?", text) is not None


def _last_boxed(text: str) -> str | None:
    """What the last ``\\boxed{…}`` holds; None where there is none or it is not closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    opening = start + len("\\boxed{") - 1
    depth = 0
    for place in range(opening, len(text)):
        if text[place] not in "{}" or text[place - 1] == "\\":
            continue
        depth += 1 if text[place] == "{" else -1
        if depth == 0:
            return text[opening + 1 : place].strip()
    return None
