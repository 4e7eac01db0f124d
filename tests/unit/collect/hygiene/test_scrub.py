"""Personal data goes; the numbers of mathematics stay."""

from __future__ import annotations

import pytest

from opsd.daemon.collect.hygiene.scrub import load_scrubber, scrub
from opsd.daemon.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Write to ada.b+c@mail.example.org.", "Write to [EMAIL]."),
        ("Phone: +49 30 901820-44, thanks", "Phone: [PHONE], thanks"),
        ("I live in Bonn, +49 (228) 1234567.", "I live in Bonn, [PHONE]."),
        ("Call me at 555-123-4567 tonight", "Call me at [PHONE] tonight"),
        ("My number is (415) 555-0134!", "My number is [PHONE]!"),
        ("tel. 030 1234567", "tel. [PHONE]"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [IBAN]."),
        ("GB82WEST12345698765432", "[IBAN]"),
        ("Paid with 4111 1111 1111 1111.", "Paid with [CARD]."),
        ("my visa 4111111111111111, exp", "my visa [CARD], exp"),
        ("amex 3782 822463 10005", "amex [CARD]"),
        ("The host 192.168.17.4 is down", "The host [IP] is down"),
        ("ping 2001:db8::8a2e:370:7334 now", "ping [IP] now"),
    ],
)
def test_what_goes(given: str, expected: str) -> None:
    assert scrub(given) == expected
    assert scrub(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Compute 555-123-4567.",
        "What is 61 - 40 - 19?",
        "4111111111111111 mod 97",
        "Is 4111111111111112 divisible by 4?",
        "x = +12345678901 - 5",
        "3 +12345678901",
        "123456789012345678901234567890 + 1",
        "1,234,567,890.25 / 3.14159265358979",
        "The ratio is 2:3:4 and 1:2:3:4:5.",
        "At 10:15:30 the clock stops.",
        "Section 1.2.3.4 says so; version 10.0.0.1 too.",
        "Is 256.300.1.2 an address?",
        "a @ b is a matrix product; f(x)@g",
        "std::vector<int>::iterator it; a::b",
        "001010110100110 in binary",
        "0010 1010 1101 0110 1111",
        "(123) 456 - 7890",
        "The phone costs 1200 dollars.",
        "2^10 = 1024, 10^-9",
        "5 numbers: 1234 5678 9012 3456 7890",
        "A0B1 C2D3 E4F5 are hexadecimal",
        "DE12 is a road",
        "DE88 3704 0044 0532 0130 00 has wrong check digits",
    ],
)
def test_what_stays(text: str) -> None:
    assert scrub(text) == text


def shout(text: str) -> str:
    return text.upper()


def length(text: str) -> int:
    return len(text)


def test_a_scrubber_is_named_in_the_configuration() -> None:
    assert load_scrubber("") is None
    assert load_scrubber("builtin") is scrub
    own = load_scrubber("string:capwords")
    assert own is not None
    assert own("a b") == "A B"
    with pytest.raises(ConfigError, match="builtin"):
        load_scrubber("nobody")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_scrubber("no_such_module:f")
    with pytest.raises(ConfigError, match="no function from a text to a text"):
        load_scrubber("builtins:len")
