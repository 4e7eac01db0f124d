"""Words of doubt in an answer: which tokens they are.

Self-distillation is known to strip them ("wait", "hmm", "maybe"): the teacher, who sees the
solution, has no doubts. They are counted apart, and can be shielded from the loss.
"""

import re
from collections.abc import Sequence
from typing import Any


class EpistemicTokens:
    """Finds the tokens of given words and phrases in a response.

    Args:
        tokenizer: of the model.
        words: matched as whole words, without regard to case, whatever tokens they are made of.
    """

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._pattern: re.Pattern[str] | None = None
        if words:
            # The longest first: of "maybe" and "maybe not" the phrase is found.
            choices = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
            self._pattern = re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE)

    def marks(self, token_ids: Sequence[int]) -> list[bool]:
        """For each token whether it holds a letter of such a word."""
        if self._pattern is None:
            return [False] * len(token_ids)
        pieces = [self._piece(token) for token in token_ids]
        text = "".join(pieces)
        inside = bytearray(len(text))
        for match in self._pattern.finditer(text):
            inside[match.start() : match.end()] = b"\1" * (match.end() - match.start())
        marks: list[bool] = []
        start = 0
        for piece in pieces:
            marks.append(any(inside[start : start + len(piece)]))
            start += len(piece)
        return marks

    def _piece(self, token: int) -> str:
        # Parts of one character become marks of their own here; no word is made of those.
        if token not in self._pieces:
            self._pieces[token] = self._tokenizer.decode([token])
        return self._pieces[token]
