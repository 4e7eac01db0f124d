"""The judged code's side of its unit tests: runs it, and does what the tests ask of it.

It shares a process with code that nobody trusts. What it sends is therefore only ever taken for
what the judged code returns.
"""

from __future__ import annotations

import json
import operator
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opsd.daemon.verify.inside.confine import confine
from opsd.daemon.verify.inside.wire import ClosedError, Objects, Wire, WireError, decode, encode

SOLUTION = Path("/opsd/solution.py")
OPERATIONS: dict[str, Callable[..., Any]] = {
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "delete_item": operator.delitem,
    "length": len,
    "iterator": iter,
    "next": next,
    "text": str,
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "modulo": operator.mod,
    "power": operator.pow,
    "negate": operator.neg,
    "absolute": abs,
}


class Side:
    """Answers requests; ``back`` asks the tests to call what they handed over."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._objects = Objects()

    def serve(self, module: types.ModuleType) -> None:
        names = [name for name in vars(module) if not name.startswith("_")]
        self._wire.send(["ready", self._objects.number_of(module), names])
        while True:
            self._wire.send(self._answer(self._wire.receive()))

    def _answer(self, request: list[Any]) -> list[Any]:
        try:
            name, *arguments = [*request[:1], *(self._decode(item) for item in request[1:])]
            if name == "call":
                function, positional, named = arguments
                value = function(*positional, **named)
            else:
                value = OPERATIONS[name](*arguments)
            return ["value", self._encode(value)]
        except (ClosedError, WireError):
            raise
        except BaseException as error:
            return self._raised(error)

    def _raised(self, error: BaseException) -> list[Any]:
        lineage = [
            [cls.__name__, None if cls.__module__ == "builtins" else self._objects.number_of(cls)]
            for cls in reversed(type(error).__mro__[:-1])
        ]
        return ["raised", lineage, self._encode(said(error))]

    def _encode(self, value: object) -> Any:
        encoded = encode(value, self._objects)
        if isinstance(value, type) and issubclass(value, BaseException):
            # The tests may want to catch it.
            encoded["x"] = self._raised(value.__new__(value))[1]
        return encoded

    def _decode(self, value: Any) -> Any:
        return decode(value, self._found)

    def _found(self, number: Any) -> Any:
        """Even numbers are the tests' own objects, see ``judge``."""
        if isinstance(number, list):
            return self._callback(number[0])
        return self._objects[number]

    def _callback(self, number: int) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            self._wire.send(["back", number, self._encode(positional), self._encode(named)])
            while True:
                message = self._wire.receive()
                if message[0] == "back_value":
                    return self._decode(message[1])
                if message[0] == "back_raised":
                    raise RuntimeError(f"the tests' function raised {message[1]}")
                self._wire.send(self._answer(message))

        return call


def said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return ""


def main() -> None:
    settings = json.loads(sys.argv[1])
    confine(**settings["limits"])
    sys.path[1:1] = settings["packages"]
    wire = Wire(settings["read_fd"], settings["write_fd"])
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        code = compile(SOLUTION.read_bytes(), "solution.py", "exec")
        exec(code, vars(module))
    except BaseException as error:
        wire.send(["broken", f"{type(error).__name__}: {said(error)}"])
        return
    Side(wire).serve(module)
