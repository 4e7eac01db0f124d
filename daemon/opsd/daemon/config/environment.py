"""Configuration from OPSD_… environment variables."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from opsd.daemon.config.keys import ENV_PREFIX, Key, all_keys, sections, suggest_key
from opsd.daemon.config.problems import Problem, shown

RESERVED = frozenset(
    {
        "OPSD_ACTOR",  # the command line's --actor
        "OPSD_ADDRESS",  # the command line's --address
        "OPSD_CONFIG",  # the configuration file
        "OPSD_CUDA",  # of the build
        "OPSD_DEBUG",  # the command line shows tracebacks
        "OPSD_FAILPOINT",  # tests kill the daemon there
        "OPSD_TIMEOUT",  # the command line's --timeout
        "OPSD_TRAINER_FAILPOINT",  # tests kill the trainer there
    }
)
"""Variables of the project that are no keys of the configuration."""

# Kubernetes puts such variables into every container for a service called opsd, opsd-server, …
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)$")

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True, slots=True)
class Override:
    key: Key
    variable: str
    value: Any


def read_environment(environ: Mapping[str, str]) -> tuple[list[Override], list[Problem]]:
    """The keys that the environment sets, parsed to the type that each wants."""
    by_variable = {key.variable: key for key in all_keys().values() if not key.in_list}
    overrides: list[Override] = []
    problems: list[Problem] = []
    for variable in sorted(environ):
        text = environ[variable]
        if not variable.startswith(ENV_PREFIX) or variable in RESERVED:
            continue
        key = by_variable.get(variable)
        if key is None:
            problem = _unknown(variable, text, by_variable)
            if problem is not None:
                problems.append(problem)
            continue
        try:
            overrides.append(Override(key, variable, _parse(key, text)))
        except ValueError:
            message = f"{shown(key.name, text)} is not {key.allowed}"
            problems.append(Problem(key.name, f"environment {variable}", message, _form(key)))
    return overrides, problems


def _unknown(variable: str, text: str, known: Mapping[str, Key]) -> Problem | None:
    """What is wrong with a variable that is no key; None for one that is none of our business."""
    if _KUBERNETES.search(variable) or (
        variable.endswith("_PORT") and text.startswith(("tcp://", "udp://", "sctp://"))
    ):
        return None
    where = f"environment {variable}"
    rest = variable.removeprefix(ENV_PREFIX).lower()
    tops = {name.partition(".")[0] for name in sections() if name}
    if "__" in rest:
        name = suggest_key(tuple(part for part in rest.split("__") if part) or (rest,))
        guess = all_keys()[name].variable if name in all_keys() else ""
        if guess and guess not in known:
            guess = all_keys()[".".join(name.split(".")[:-1])].variable + " (a JSON list)"
    elif any(rest.startswith(f"{top}_") for top in tops):
        flat = {v.replace("__", "_"): v for v in known}
        close = difflib.get_close_matches(variable, flat, 1, 0.75)
        guess = flat[close[0]] if close else ""
    else:
        close = difflib.get_close_matches(variable, known, 1, 0.88)
        if not close:
            return None
        guess = close[0]
    fix = f"did you mean {guess}?" if guess else "unset it, or see docs/reference/config.md"
    return Problem("", where, "no such key in the configuration", fix)


def _form(key: Key) -> str:
    if get_origin(key.kind) is tuple:
        return f"write it as JSON, e.g. {key.variable}='{_EXAMPLE[key.element is None]}'"
    return f"set {key.variable} to {key.allowed}"


_EXAMPLE = {
    True: '["q_proj", "v_proj"]',
    False: '[{"name": "held-out", "path": "…", "role": "target"}]',
}


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(text)
    return word in _TRUE


def _list(text: str) -> list[Any]:
    value = json.loads(text)
    if not isinstance(value, list):
        raise ValueError(text)
    return value


def _parse(key: Key, text: str) -> Any:
    """Raises ValueError."""
    kind = key.kind
    if key.optional and text.strip().lower() in ("", "none"):
        return None
    if get_origin(kind) is tuple:
        return _list(text)
    if get_origin(kind) is Literal:
        return int(text) if isinstance(get_args(kind)[0], int) else text.strip()
    parsers: dict[Any, Callable[[str], Any]] = {
        bool: lambda t: _boolean(t.strip()),
        int: int,
        float: float,
        str: str,
        Path: str,
    }
    return parsers[kind](text)
