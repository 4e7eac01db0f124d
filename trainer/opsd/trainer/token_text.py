"""What each token adds to a text, where characters may be spread over tokens."""

import codecs
import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"


class TokenTexts:
    """Texts of single tokens, in the place where they stand.

    A character that several tokens make stands with the token that completes it; the bytes of the
    others are shown as `⟨f0 9f⟩`.

    Args:
        tokenizer: of the model; byte-level, or with byte tokens such as `<0xF0>`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers drop the space before the first token: something stands before each.
        self._anchor: list[int] = tokenizer("a", add_special_tokens=False).input_ids[-1:]
        self._anchor_chars = len(self.decode(self._anchor))
        self._pieces: dict[int, str] = {}

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, special tokens by their names."""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def next(self, token: int, pending: bytes = b"") -> tuple[str, bytes]:
        """The token's text, and the bytes of a character that it leaves unfinished.

        Args:
            token: its id.
            pending: bytes that the tokens before it left unfinished.
        """
        piece = self._piece(token)
        if _UNREADABLE not in piece and not pending:
            return piece, b""
        raw = self._raw(token, piece)
        if raw is None:
            return piece, b""
        # What was begun may never be finished: then the token stands for itself.
        for before in (pending, b""):
            try:
                text, left = _decode_begun(before + raw)
            except UnicodeDecodeError:
                continue
            return text + _shown(left[-len(raw) :]), left
        return _with_shown_bytes(raw), b""

    def sequence(self, tokens: tuple[int, ...]) -> list[tuple[str, bytes]]:
        """For each token its text, and what was pending before it."""
        found: list[tuple[str, bytes]] = []
        pending = b""
        for token in tokens:
            text, left = self.next(token, pending)
            found.append((text, pending))
            pending = left
        return found

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.decode([*self._anchor, token])[self._anchor_chars :]
        return self._pieces[token]

    def _raw(self, token: int, piece: str) -> bytes | None:
        """The token's bytes, where they can be told and say the same as its text."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        candidates = []
        if name is not None and all(char in _BYTE_OF for char in name):
            candidates.append(bytes(_BYTE_OF[char] for char in name))
        match = _BYTE_TOKEN.fullmatch(name or "")
        if match:
            candidates.append(bytes([int(match[1], 16)]))
        for raw in candidates:
            if raw.decode("utf-8", "replace") == piece:
                return raw
        return None


def _decode_begun(data: bytes) -> tuple[str, bytes]:
    """The whole characters, and the beginning of one at the end."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = decoder.decode(data)
    return text, decoder.getstate()[0]


def _shown(data: bytes) -> str:
    return f"⟨{data.hex(' ')}⟩" if data else ""


def _with_shown_bytes(data: bytes) -> str:
    """As UTF-8 where it is, each other byte shown."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(
        _shown(bytes([ord(char) - 0xDC00])) if 0xDC80 <= ord(char) <= 0xDCFF else char
        for char in text
    )


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write for bytes (GPT-2's): printable ones stand for
    themselves, the others are numbered from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + number): byte for number, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()
