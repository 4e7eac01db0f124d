"""What is wrong with a configuration, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from opsd.daemon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend. ``where`` is ``file:line``, an environment variable, or "" (a default)."""

    key: str
    where: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        name = f"{self.key}: " if self.key else ""
        return f"{place}{name}{self.message}" + (f"; {self.fix}" if self.fix else "")


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raises a ConfigError that holds them all, if there are any."""
    if len(problems) == 1:
        raise ConfigError(str(problems[0]))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(f"{len(problems)} problems in the configuration:\n{lines}")


_PASSWORD = re.compile(r"(://[^/:@\s]*):[^@\s]*@")
_PARAMETER = re.compile(r"(?i)([?&](?:password|passwd|pwd|secret|token|sslpassword)=)[^&\s]*")


def hide_secrets(url: str) -> str:
    """A database URL without its password."""
    return _PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1:***@", url))


def shown(key: str, value: object) -> str:
    """A value as a message may quote it: short, and without a password."""
    if isinstance(value, bool):
        return str(value).lower()
    text = hide_secrets(repr(value)) if key == "store.url" else repr(value)
    if isinstance(value, str):
        text = '"' + text[1:-1] + '"'
    return text if len(text) <= 80 else text[:77] + "..."
