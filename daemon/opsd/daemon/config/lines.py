"""Which line of a TOML text each key stands in: tomllib does not say."""

from __future__ import annotations

import re

KeyPath = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\s#]+(?: \d[^,\]}\s#]*)?")
_ESCAPES = {
    "b": "\b",
    "t": "\t",
    "n": "\n",
    "f": "\f",
    "r": "\r",
    '"': '"',
    "\\": "\\",
    "e": "\x1b",
}


def key_lines(text: str) -> dict[KeyPath, int]:
    """Maps each key path of a valid TOML text to its first line, counted from 1.

    Elements of arrays, and of arrays of tables, are addressed by their index. A table maps to its
    header.
    """
    return _Scanner(text.replace("\r\n", "\n")).scan()


class _Scanner:
    """Walks a text that tomllib has accepted, so it need not report errors of its own."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pos = 0
        self._lines: dict[KeyPath, int] = {}
        self._array_sizes: dict[KeyPath, int] = {}

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip()
        while self._pos < len(self._text):
            if self._text.startswith("[[", self._pos):
                table = self._header(2)
            elif self._peek() == "[":
                table = self._header(1)
            else:
                self._assignment(table)
            self._skip()
        return self._lines

    def _peek(self) -> str:
        return self._text[self._pos : self._pos + 1]

    def _skip(self) -> None:
        """Past white space, line ends and comments."""
        while self._pos < len(self._text):
            char = self._text[self._pos]
            if char == "#":
                end = self._text.find("\n", self._pos)
                self._pos = len(self._text) if end < 0 else end
            elif char.isspace():
                self._pos += 1
            else:
                return

    def _note(self, path: KeyPath) -> None:
        line = self._text.count("\n", 0, self._pos) + 1
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _header(self, brackets: int) -> KeyPath:
        self._pos += brackets
        self._skip()
        start = self._pos
        parts = self._key()
        end = self._pos
        self._skip()
        self._pos += brackets
        path: KeyPath = ()
        for position, part in enumerate(parts):
            path += (part,)
            last = position == len(parts) - 1
            if brackets == 2 and last:
                self._array_sizes[path] = self._array_sizes.get(path, 0) + 1
            if path in self._array_sizes:
                path += (self._array_sizes[path] - 1,)
        after, self._pos = self._pos, start
        self._note(path)
        self._pos = after
        assert end <= after
        return path

    def _assignment(self, table: KeyPath) -> None:
        start = self._pos
        path = table + tuple(self._key())
        after, self._pos = self._pos, start
        self._note(path)
        self._pos = after
        self._skip()
        self._pos += 1  # the equals sign
        self._skip()
        self._value(path)

    def _key(self) -> list[str]:
        parts = [self._simple_key()]
        while True:
            rest = re.compile(r"[ \t]*\.[ \t]*").match(self._text, self._pos)
            if rest is None:
                return parts
            self._pos = rest.end()
            parts.append(self._simple_key())

    def _simple_key(self) -> str:
        if self._peek() in ('"', "'"):
            return self._string()
        match = _BARE.match(self._text, self._pos)
        assert match is not None, "tomllib accepted what is no key"
        self._pos = match.end()
        return match.group()

    def _string(self) -> str:
        quote = self._peek()
        if self._text.startswith(quote * 3, self._pos):
            return self._multiline_string(quote)
        self._pos += 1
        out = []
        while (char := self._peek()) != quote:
            self._pos += 1
            if char == "\\" and quote == '"':
                char = self._escape()
            out.append(char)
        self._pos += 1
        return "".join(out)

    def _escape(self) -> str:
        letter = self._peek()
        self._pos += 1
        digits = {"x": 2, "u": 4, "U": 8}.get(letter, 0)
        if not digits:
            return _ESCAPES.get(letter, letter)
        code = self._text[self._pos : self._pos + digits]
        self._pos += digits
        return chr(int(code, 16))

    def _multiline_string(self, quote: str) -> str:
        self._pos += 3
        start = self._pos
        while not self._text.startswith(quote * 3, self._pos):
            self._pos += 2 if quote == '"' and self._peek() == "\\" else 1
        end = self._pos
        self._pos += 3
        # Up to two quotes may stand directly before the closing three.
        while self._peek() == quote:
            self._pos += 1
        return self._text[start:end]

    def _value(self, path: KeyPath) -> None:
        char = self._peek()
        if char in ('"', "'"):
            self._string()
        elif char == "[":
            self._array(path)
        elif char == "{":
            self._inline_table(path)
        else:
            match = _SCALAR.match(self._text, self._pos)
            assert match is not None, "tomllib accepted what is no value"
            self._pos = match.end()

    def _array(self, path: KeyPath) -> None:
        self._pos += 1
        index = 0
        self._skip()
        while self._peek() != "]":
            self._note((*path, index))
            self._value((*path, index))
            index += 1
            self._separator()
        self._pos += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._pos += 1
        self._skip()
        while self._peek() != "}":
            self._assignment(path)
            self._separator()
        self._pos += 1

    def _separator(self) -> None:
        self._skip()
        if self._peek() == ",":
            self._pos += 1
            self._skip()
