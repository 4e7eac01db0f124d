"""Removing personal data from text: a hook, and a scrubber that knows the plain forms.

The built-in one rather misses something than touches a number of mathematics: it takes what has the
form *and* the check digits, or the word beside it ("phone"), of personal data.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Final, cast

from opsd.daemon.errors import ConfigError

ENTRY_POINTS: Final = "opsd.scrubbers"
BUILTIN: Final = "builtin"

Scrubber = Callable[[str], str]

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])"
)
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_CARD_GROUPED = re.compile(
    r"(?<![\d.,+*/=^-])(?<![-+*/=^] )"
    r"(?:[3-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d{2}([ -])\d{6}\2\d{5})"
    r"(?![\d.,]*\d)"
)
_CARD_PLAIN = re.compile(r"(?<![\d.,+*/=^-])[3-6]\d{12,18}(?![\d.,]*\d)")
_CARD_WORD = re.compile(
    r"\b(?:card|visa|mastercard|amex|credit|debit|kreditkarte)\b", re.IGNORECASE
)
_PHONE_INTERNATIONAL = re.compile(
    r"(?<![\w+*/=^.()-])(?<![\d)=*/(+-] )"
    r"\+[1-9]\d{0,2}[ ./-]?(?:\(\d{1,4}\)[ ./-]?)?\d{2,5}(?:[ ./-]?\d{2,5}){1,4}(?!\d)"
)
_PHONE_AFTER_WORD = re.compile(
    r"(?P<word>\b(?:(?:tele)?phone|tel|mobile|fax|whatsapp|telefon"
    r"|(?:call|text|ring|reach) (?:me|us|him|her|them)(?: (?:at|on|under))?)"
    r"(?: (?:number|no|nr|is|at|on))*\s*[.:#]*\s*)"
    r"(?P<number>(?:(?:\+|00)\d{1,3}[ ./-]?)?\(?\d{2,5}\)?(?:[ ./-]?\d{2,5}){1,4})(?!\d)",
    re.IGNORECASE,
)
_PHONE_AMERICAN = re.compile(r"(?<![\w*/=^.(-])\(\d{3}\) \d{3}-\d{4}(?!\d)")
_IPV4 = re.compile(r"(?<![\w.])(?<!v )(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:.]*[\w:])")
_VERSION_WORD = re.compile(
    r"\b(?:version|release|section|chapter|clause|paragraph)\s*$", re.IGNORECASE
)
_NEAR_CHARS = 40


def scrub(text: str) -> str:
    """Replaces e-mail addresses, phone numbers, IBANs, credit card numbers and IP addresses by
    ``[EMAIL]``, ``[PHONE]``, ``[IBAN]``, ``[CARD]`` and ``[IP]``."""
    text = _EMAIL.sub("[EMAIL]", text)
    text = _IBAN.sub(lambda m: "[IBAN]" if _is_iban(m[0]) else m[0], text)
    text = _CARD_GROUPED.sub(lambda m: "[CARD]" if _has_luhn(m[0]) else m[0], text)
    text = _CARD_PLAIN.sub(_card, text)
    text = _IPV4.sub(_ip, text)
    text = _IPV6.sub(_ip, text)
    text = _PHONE_AFTER_WORD.sub(_phone, text)
    text = _PHONE_INTERNATIONAL.sub(lambda m: "[PHONE]" if _num_digits(m[0]) >= 9 else m[0], text)
    return _PHONE_AMERICAN.sub("[PHONE]", text)


def load_scrubber(name: str) -> Scrubber | None:
    """The scrubber that ``collect.hygiene.scrubber`` names; None for "".

    ``builtin``, an entry point of the group ``opsd.scrubbers``, or ``module:function``. Raises
    ConfigError where there is none, or it does not return a text.
    """
    if not name:
        return None
    if name == BUILTIN:
        return scrub
    made = _load(name)
    if not callable(made) or not isinstance(made("text"), str):
        raise ConfigError(
            f"collect.hygiene.scrubber: {name!r} is no function from a text to a text"
        )
    return cast(Scrubber, made)


def _load(name: str) -> Any:
    found = entry_points(group=ENTRY_POINTS)
    try:
        if name in found.names:
            return found[name].load()
        module, colon, attribute = name.partition(":")
        if colon:
            return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"collect.hygiene.scrubber: {name!r} cannot be loaded: {error}; install it in the "
            "daemon's environment or mend the name"
        ) from error
    known = ", ".join([BUILTIN, *sorted(found.names)])
    raise ConfigError(
        f"collect.hygiene.scrubber: {name!r} is not known: use one of {known}, or module:function"
    )


def _is_iban(text: str) -> bool:
    """ISO 13616: moved round and read as a number, 1 modulo 97."""
    packed = text.replace(" ", "")
    if not 15 <= len(packed) <= 34:
        return False
    moved = packed[4:] + packed[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _has_luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def _card(match: re.Match[str]) -> str:
    near = match.string[max(0, match.start() - _NEAR_CHARS) : match.end() + _NEAR_CHARS]
    return "[CARD]" if _CARD_WORD.search(near) and _has_luhn(match[0]) else match[0]


def _ip(match: re.Match[str]) -> str:
    if _VERSION_WORD.search(match.string[max(0, match.start() - _NEAR_CHARS) : match.start()]):
        return match[0]
    try:
        ipaddress.ip_address(match[0])
    except ValueError:
        return match[0]
    if ":" in match[0] and not _is_telling_ipv6(match[0]):
        return match[0]
    return "[IP]"


def _is_telling_ipv6(text: str) -> bool:
    """Whether it is no time of day, ratio, or path of names such as ``a::b``."""
    groups = [group for group in text.split(":") if group]
    is_whole = "::" in text or len(groups) == 8
    return is_whole and len(groups) >= 3 and any(character.isdigit() for character in text)


def _phone(match: re.Match[str]) -> str:
    return f"{match['word']}[PHONE]" if _num_digits(match["number"]) >= 7 else match[0]


def _num_digits(text: str) -> int:
    return sum(character.isdigit() for character in text)
