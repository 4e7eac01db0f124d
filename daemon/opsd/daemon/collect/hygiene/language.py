"""Which language a text is in, where there is enough of it to say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from opsd.daemon.errors import ConfigError

MAX_CHARS: Final = 4000
"""So much of a text tells its language."""

_NOT_PROSE = re.compile(
    r"```.*?```|`[^`]*`"  # code
    r"|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]"  # mathematics
    r"|\\[A-Za-z]+|https?://\S+|\S+@\S+"
    r"|[^\W\d_]*[\d_][\w]*",  # names with digits or underscores
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_CODE_LINE = re.compile(
    r"^[ \t]*(?:def|class|import|from|return|#include|SELECT|var|let)\b.*[(){};=*].*$", re.MULTILINE
)
_FIRST_IDEOGRAPH = "\u2e80"
_LETTERS_PER_IDEOGRAPH = 4


@dataclass(frozen=True, slots=True)
class Detected:
    language: str  # ISO 639-1
    confidence: float


def check_languages(languages: tuple[str, ...]) -> None:
    """Raises ConfigError for a code that is not known."""
    unknown = sorted(set(languages) - set(_identifier().labels))
    if unknown:
        raise ConfigError(
            f"collect.hygiene.languages: {', '.join(unknown)} is no known language code: use ISO "
            "639-1, e.g. en"
        )


def detect(text: str, *, min_letters: int) -> Detected | None:
    """The likeliest language; None where code, mathematics and names aside fewer than
    ``min_letters`` letters are left. The confidence is the likeliest language's probability."""
    prose = _CODE_LINE.sub(" ", _NOT_PROSE.sub(" ", text[: 4 * MAX_CHARS]))
    words = _WORD.findall(prose)
    letters = sum(
        len(word) * (_LETTERS_PER_IDEOGRAPH if word[0] >= _FIRST_IDEOGRAPH else 1) for word in words
    )
    if letters < min_letters:
        return None
    language, confidence = _identifier().classify(" ".join(words)[:MAX_CHARS])
    return Detected(language, confidence)


@lru_cache(1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
