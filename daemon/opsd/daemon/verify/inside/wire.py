"""Values between the tests and the judged code, which live in two sandboxes.

A message is four bytes of length (big endian) and so many bytes of JSON. A value is either data
(None, booleans, numbers, text, bytes, and lists, tuples, sets and dictionaries of data), rebuilt on
the other side as exactly those types, or an object, of which only a number crosses. So nothing that
the judged code makes can bring an ``__eq__`` of its own to a comparison.
"""

from __future__ import annotations

import json
import os
import select
import struct
import time
from typing import Any

MAX_MESSAGE_BYTES = 8 << 20
MAX_DEPTH = 100

_HEADER = struct.Struct(">I")


class WireError(Exception):
    """What came is no message, or what should go cannot."""


class ClosedError(WireError):
    """The other side is gone."""


class LateError(WireError):
    """The other side took too long."""


class Wire:
    """Messages over two pipes; ``deadline`` is a time of the monotonic clock."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self.deadline = float("inf")
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)

    def send(self, message: object) -> None:
        body = json.dumps(message).encode()
        if len(body) > MAX_MESSAGE_BYTES:
            raise WireError(f"a value of more than {MAX_MESSAGE_BYTES >> 20} MiB")
        rest = memoryview(_HEADER.pack(len(body)) + body)
        while rest:
            self._wait(writing=True)
            try:
                rest = rest[os.write(self._writing, rest) :]
            except BrokenPipeError:
                raise ClosedError("the other side is gone") from None

    def receive(self) -> Any:
        (size,) = _HEADER.unpack(self._read(_HEADER.size))
        if size > MAX_MESSAGE_BYTES:
            raise WireError(f"a value of more than {MAX_MESSAGE_BYTES >> 20} MiB")
        try:
            return json.loads(self._read(size))
        except (ValueError, RecursionError):
            raise WireError("no message") from None

    def _read(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            self._wait(writing=False)
            chunk = os.read(self._reading, min(size - len(got), 1 << 16))
            if not chunk:
                raise ClosedError("the other side is gone")
            got += chunk
        return bytes(got)

    def _wait(self, *, writing: bool) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise LateError("the other side took too long")
        timeout = None if left == float("inf") else left
        reads = [] if writing else [self._reading]
        writes = [self._writing] if writing else []
        if not any(select.select(reads, writes, [], timeout)):
            raise LateError("the other side took too long")


class Objects:
    """Numbers for the objects of one side that the other side holds."""

    def __init__(self, limit: int = 100_000) -> None:
        self._held: dict[int, object] = {}
        self._limit = limit

    def number_of(self, value: object) -> int:
        number = id(value)
        if number not in self._held and len(self._held) >= self._limit:
            raise WireError(f"more than {self._limit} objects")
        self._held[number] = value
        return number

    def __getitem__(self, number: object) -> object:
        try:
            return self._held[number]  # type: ignore[index]
        except (KeyError, TypeError):
            raise WireError("an object that was never handed out") from None


def encode(value: Any, objects: Objects, depth: int = 0) -> Any:
    """``value`` as JSON. Only the built-in types themselves are data, not their subclasses."""
    if depth > MAX_DEPTH:
        raise WireError("a value nested too deeply")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return {"s": value.encode("utf-8", "surrogatepass").hex()} if _odd(value) else value
    if kind is int:
        if abs(value) < 1 << 53:
            return value
        return {"i": hex(value)}
    if kind is float:
        return {"f": value.hex()}
    if kind is complex:
        return {"c": [value.real.hex(), value.imag.hex()]}
    if kind in (bytes, bytearray):
        return {"b": value.hex(), "m": kind is bytearray}
    if kind in _SEQUENCES:
        name = _SEQUENCES[kind]
        return {name: [encode(item, objects, depth + 1) for item in value]}
    if kind is dict:
        pairs = value.items()
        return {
            "d": [
                [encode(key, objects, depth + 1), encode(item, objects, depth + 1)]
                for key, item in pairs
            ]
        }
    return {"o": objects.number_of(value)}


def decode(value: Any, found: Any, depth: int = 0) -> Any:
    """The value that JSON stands for; ``found(number)`` gives the object of a number."""
    if depth > MAX_DEPTH:
        raise WireError("a value nested too deeply")
    if value is None or type(value) in (bool, str, int):
        return value
    if not isinstance(value, dict) or not value:
        raise WireError("no value")
    try:
        (name, inner), *_ = value.items()
        if name == "o":
            return found(inner)
        if name == "s":
            return bytes.fromhex(inner).decode("utf-8", "surrogatepass")
        if name == "i":
            return int(inner, 16)
        if name == "f":
            return float.fromhex(inner)
        if name == "c":
            return complex(float.fromhex(inner[0]), float.fromhex(inner[1]))
        if name == "b":
            raw = bytes.fromhex(inner)
            return bytearray(raw) if value.get("m") else raw
        if name == "d":
            return {decode(k, found, depth + 1): decode(v, found, depth + 1) for k, v in inner}
        made = {short: kind for kind, short in _SEQUENCES.items()}[name]
        return made(decode(item, found, depth + 1) for item in inner)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise WireError("no value") from None


_SEQUENCES: dict[Any, str] = {list: "l", tuple: "t", set: "e", frozenset: "z"}


def _odd(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
