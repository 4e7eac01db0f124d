"""The judged code as its unit tests see it: a module whose functions and objects live elsewhere."""

from __future__ import annotations

import builtins
import types
from collections.abc import Iterator
from typing import Any, NoReturn

from opsd.daemon.verify.inside.wire import (
    ClosedError,
    LateError,
    Objects,
    Wire,
    WireError,
    decode,
    encode,
)

MESSAGE_CHARS = 400
MAX_NAMES = 500


class SolutionError(Exception):
    """What the judged code raised, where it is no built-in exception."""


class Gone(BaseException):
    """The judged code cannot be asked any more; passes by every ``except Exception``."""


class Link:
    """Asks the judged code; the first trouble with it is the last."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._objects = Objects()
        self._classes: dict[int, type[BaseException]] = {}
        self.trouble = ""

    def ready(self) -> tuple[int, list[str]]:
        """Of its module: the number and the public names."""
        message = self._receive()
        if message[0] == "broken":
            self._lost(f"the code does not run: {message[1]}")
        if message[0] != "ready":
            self._lost("it talks nonsense")
        names = [name for name in message[2] if isinstance(name, str)]
        return message[1], names[:MAX_NAMES]

    def ask(self, name: str, *arguments: Any) -> Any:
        self._send([name, *(self._encode(item) for item in arguments)])
        while True:
            message = self._receive()
            try:
                kind, *rest = message
                if kind == "value":
                    return (
                        decode(rest[0], self._found)
                        if not _has_class(rest[0])
                        else self._class(rest[0]["x"])
                    )
                if kind == "raised":
                    text = decode(rest[1], self._found)
                    error = self._class(rest[0])
                elif kind == "back":
                    self._call_back(*rest)
                    continue
                else:
                    raise WireError("no answer")
            except (WireError, TypeError, ValueError, LookupError, RecursionError):
                self._lost("it talks nonsense")
            raise _made(error, text if isinstance(text, str) else "")

    def _call_back(self, number: int, positional: Any, named: Any) -> None:
        function = self._objects[number]
        arguments = decode(positional, self._found)
        keywords = decode(named, self._found)
        try:
            value = function(*arguments, **keywords)  # type: ignore[operator]
        except Exception as error:
            self._send(["back_raised", f"{type(error).__name__}: {error}"[:MESSAGE_CHARS]])
        else:
            self._send(["back_value", self._encode(value)])

    def _encode(self, value: Any) -> Any:
        return _encode(value, self._objects)

    def _found(self, number: Any) -> Any:
        if type(number) is not int:
            raise WireError("no object")
        return SolutionObject(self, number)

    def _class(self, lineage: list[Any]) -> type[BaseException]:
        """A class that the tests can catch; built-in exceptions are themselves."""
        found: type[BaseException] = SolutionError
        for name, number in lineage[:50]:
            if number is None:
                known = getattr(builtins, name, None)
                # SystemExit and its kin would end the tests, not the code.
                if isinstance(known, type) and issubclass(known, Exception):
                    found = known
            else:
                if number not in self._classes:
                    self._classes[number] = type(str(name)[:100], (found,), {})
                found = self._classes[number]
        return found

    def _send(self, message: Any) -> None:
        try:
            self._wire.send(message)
        except ClosedError:
            self._lost("its process ended")
        except LateError:
            self._lost("it took too long")

    def _receive(self) -> list[Any]:
        try:
            message = self._wire.receive()
        except ClosedError:
            self._lost("its process ended")
        except LateError:
            self._lost("it took too long")
        except WireError as error:
            self._lost(str(error))
        if not isinstance(message, list) or not message:
            self._lost("it talks nonsense")
        answer: list[Any] = message
        return answer

    def _lost(self, trouble: str) -> NoReturn:
        self.trouble = self.trouble or trouble
        raise Gone(trouble)


class SolutionObject:
    """An object of the judged code. Only what it gives back as data can equal anything."""

    __slots__ = ("_link", "_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._link.ask("call", self, positional, named)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.ask("set_item", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._link.ask("delete_item", self, key)

    def __len__(self) -> int:
        length = self._link.ask("length", self)
        return length if type(length) is int else 0

    def __iter__(self) -> Iterator[Any]:
        iterator = self._link.ask("iterator", self)
        while True:
            try:
                yield self._link.ask("next", iterator)
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._link.ask("next", self)

    def __contains__(self, wanted: Any) -> bool:
        return any(item is wanted or item == wanted for item in self)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if other is None or other is self:
            return other is self
        raise TypeError("an object of the solution equals nothing: compare the data that it gives")

    def __hash__(self) -> int:
        return hash(self._number)

    def __str__(self) -> str:
        text = self._link.ask("text", self)
        return text if type(text) is str else ""

    def __repr__(self) -> str:
        return "<an object of the solution>"

    def __add__(self, other: Any) -> Any:
        return self._link.ask("add", self, other)

    def __sub__(self, other: Any) -> Any:
        return self._link.ask("subtract", self, other)

    def __mul__(self, other: Any) -> Any:
        return self._link.ask("multiply", self, other)

    def __truediv__(self, other: Any) -> Any:
        return self._link.ask("divide", self, other)

    def __floordiv__(self, other: Any) -> Any:
        return self._link.ask("floor_divide", self, other)

    def __mod__(self, other: Any) -> Any:
        return self._link.ask("modulo", self, other)

    def __pow__(self, other: Any) -> Any:
        return self._link.ask("power", self, other)

    def __neg__(self) -> Any:
        return self._link.ask("negate", self)

    def __abs__(self) -> Any:
        return self._link.ask("absolute", self)


class SolutionModule(types.ModuleType):
    """``import solution`` of the tests."""

    def __init__(self, module: SolutionObject, names: list[str]) -> None:
        super().__init__("solution")
        self.__dict__["_module"] = module
        self.__dict__["__all__"] = names

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_module"], name)


def _encode(value: Any, objects: Objects) -> Any:
    """Objects of the solution go back as they came; of the tests' own, only functions may go."""
    kind: Any = type(value)
    if kind is SolutionObject:
        return {"o": object.__getattribute__(value, "_number")}
    if kind in (list, tuple, set, frozenset):
        name = {list: "l", tuple: "t", set: "e", frozenset: "z"}[kind]
        return {name: [_encode(item, objects) for item in value]}
    if kind is dict:
        return {"d": [[_encode(k, objects), _encode(v, objects)] for k, v in value.items()]}
    encoded = encode(value, objects)
    if isinstance(encoded, dict) and "o" in encoded:
        if not callable(value):
            raise TypeError(f"a {kind.__name__} cannot be handed to the solution: give it data")
        encoded["o"] = [encoded["o"]]
    return encoded


def _has_class(value: Any) -> bool:
    return isinstance(value, dict) and "x" in value


def _made(error: type[BaseException], text: str) -> BaseException:
    try:
        return error(text)
    except Exception:
        # UnicodeDecodeError and others want more than a text.
        return SolutionError(f"{error.__name__}: {text}")
