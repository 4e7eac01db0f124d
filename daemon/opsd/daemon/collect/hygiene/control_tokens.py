"""Chat-control tokens in given text: told apart from text by the tokenizer, so made text of.

A prompt that holds ``<|im_end|>`` as text would end the user's turn where it is tokenised. A space
after the token's first character keeps it readable and makes it no token.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

from opsd.daemon.errors import ConfigError

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_MARKUP = re.compile(r"[<\[{(|].*[>\]})|]", re.DOTALL)
_MAX_PASSES = 8


def read_control_tokens(model_dir: Path) -> frozenset[str]:
    """The control tokens of a model in Hugging Face format, from its tokenizer files.

    These are the tokens added to the vocabulary that are special or look like markup
    (``<think>``); runs of white space are not. Raises ConfigError for a file that cannot be read.
    """
    found: set[str] = set()
    for name in TOKENIZER_FILES:
        path = model_dir / name
        if path.exists():
            found.update(_tokens(name, _read(path)))
    return frozenset(token for token in found if len(token.strip()) > 1)


class ControlTokens:
    """Finds control tokens as a tokenizer might: also in look-alikes that Unicode normalisation
    (NFKC), case folding or the removal of invisible characters turns into one."""

    def __init__(self, tokens: Collection[str]) -> None:
        """``tokens`` of fewer than two characters are left alone."""
        folded = {_fold(token)[0]: token for token in tokens if len(token.strip()) > 1}
        folded = {key: token for key, token in folded.items() if len(key) > 1}
        self._tokens = folded
        longest_first = sorted(folded, key=lambda token: (-len(token), token))
        pattern = "|".join(re.escape(token) for token in longest_first)
        # A lookahead finds tokens that overlap, too.
        self._pattern = re.compile(f"(?=({pattern}))") if folded else None
        self._may_be = _first_characters(folded)

    def find(self, text: str) -> tuple[str, ...]:
        """The control tokens in a text, as the tokenizer spells them, each once."""
        if self._pattern is None:
            return ()
        folded, _ = _fold(text)
        return tuple(dict.fromkeys(self._tokens[hit[1]] for hit in self._pattern.finditer(folded)))

    def neutralise(self, text: str) -> str:
        """The text with a space after the first character of each control token.

        Nothing is taken out, so that nothing can be put together by it; what is visible stays.
        The result holds no control token, and is the same when it is neutralised again.
        """
        if self._pattern is None or (text.isascii() and not self._may_be.search(text)):
            return text
        for _ in range(_MAX_PASSES):
            folded, origin = _fold(text)
            cuts = sorted({_cut(hit, origin) for hit in self._pattern.finditer(folded)})
            if not cuts:
                return text
            text = _cut_at(text, cuts)
        # Spaces cannot make new tokens without end, unless a token is made of spaces.
        raise AssertionError("control tokens remain after being neutralised")


def _cut(hit: re.Match[str], origin: list[int]) -> int:
    """The place in the text, in front of which the token is cut: after the character that its
    first one comes from; or the character itself where the whole token comes from one."""
    first, last = hit.start(), hit.start() + len(hit[1]) - 1
    for place in range(first, last):
        if origin[place + 1] != origin[place]:
            return origin[place + 1]
    return -1 - origin[first]


def _cut_at(text: str, cuts: list[int]) -> str:
    spaced = {cut for cut in cuts if cut >= 0}
    replaced = {-1 - cut for cut in cuts if cut < 0}
    parts = []
    for place, character in enumerate(text):
        if place in spaced:
            parts.append(" ")
        if place in replaced:
            character = " ".join(unicodedata.normalize("NFKC", character))
        parts.append(character)
    return "".join(parts)


def _fold(text: str) -> tuple[str, list[int]]:
    """The text without case, compatibility forms and invisible characters; and for each character
    of it, where in the text it comes from."""
    if text.isascii():
        return text.casefold(), list(range(len(text)))
    folded: list[str] = []
    origin: list[int] = []
    for place, character in enumerate(text):
        for one in unicodedata.normalize("NFKC", character).casefold():
            if not _is_invisible(one):
                folded.append(one)
                origin.append(place)
    return "".join(folded), origin


def _is_invisible(character: str) -> bool:
    """Format characters, controls other than white space, and marks: normalisers drop them."""
    category = unicodedata.category(character)
    return category in ("Cf", "Mn", "Me") or (category == "Cc" and not character.isspace())


def _first_characters(tokens: Collection[str]) -> re.Pattern[str]:
    firsts = sorted({token[:2] for token in tokens})
    return re.compile("|".join(re.escape(first) for first in firsts) or r"(?!)", re.IGNORECASE)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; mend model.path") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); fetch the model's files again") from None


def _tokens(name: str, content: Any) -> Iterator[str]:
    if not isinstance(content, dict):
        return
    if name == "tokenizer.json":
        yield from _added(content.get("added_tokens") or ())
    elif name == "tokenizer_config.json":
        yield from _added((content.get("added_tokens_decoder") or {}).values())
        yield from _named(content)
    elif name == "added_tokens.json":
        yield from (token for token in content if _MARKUP.fullmatch(token))
    else:
        yield from _named(content)


def _added(entries: Collection[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            token = entry["content"]
            if entry.get("special") or _MARKUP.fullmatch(token):
                yield token


def _named(content: dict[str, Any]) -> Iterator[str]:
    """``eos_token`` and the like: a text or an object, or a list of either."""
    for key, value in content.items():
        if not key.endswith(("_token", "special_tokens")):
            continue
        for entry in value if isinstance(value, list) else [value]:
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                yield text
