"""Suites are read whole or refused with file, line and fix."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsd.daemon.config.gate import SuiteConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.gate.suites import SuiteSet, check_unchanged, check_untrained, load_suites
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.text import prompt_key

VERIFIERS = ("exact", "math", "numeric")


def line(id: str = "a", prompt: str = "What is 1+1?", **more: object) -> str:
    record = {"id": id, "prompt": prompt, "verifier": "numeric", "reference": "2", **more}
    return json.dumps({key: value for key, value in record.items() if value is not None})


def load(path: Path, text: str | bytes) -> SuiteSet:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = SuiteConfig(name="easy", path=str(path), role="guard", margin=0.05)
    return load_suites([config], verifiers=VERIFIERS)


def test_a_reference_that_cannot_be_compared_with_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(line() + "\n" + line("b", "2+3?", reference="five"))
    config = SuiteConfig(name="easy", path=str(path), role="guard")
    asked = []

    def mistake(verifier: str, reference: str) -> str:
        asked.append((verifier, reference))
        return "it is not a number; write one" if reference == "five" else ""

    said = "s.jsonl:2: 'reference' of item 'b', for the verifier numeric: it is not a number"
    with pytest.raises(ConfigError, match=said):
        load_suites([config], verifiers=VERIFIERS, reference_mistake=mistake)
    assert asked == [("numeric", "2"), ("numeric", "five")]


def test_items_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "easy.jsonl"
    text = line(stratum="s", source="else") + "\n\n" + line("b", "2+\u20283?") + "\n"
    suites = load(path, text)
    (suite,) = suites.suites
    assert suite.items == (
        SuiteItem("a", "What is 1+1?", "numeric", "2", "s"),
        SuiteItem("b", "2+\u20283?", "numeric", "2"),
    )
    assert (suite.name, suite.role, suite.margin) == ("easy", SuiteRole.GUARD, 0.05)
    assert suite.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert suite.version == f"sha-{suite.sha256[:12]}"
    assert suites.num_items() == 2
    assert suites.held_out[prompt_key("what is 1+1")].line == 1


def test_a_unicode_line_separator_is_not_a_line_end(tmp_path: Path) -> None:
    text = json.dumps(json.loads(line(prompt="1+1\u2028=?")), ensure_ascii=False)
    assert load(tmp_path / "s.jsonl", text).suites[0].items[0].prompt == "1+1\u2028=?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "suite 'easy' is empty: add at least one item"),
        ("\n \n", "is empty"),
        ("\n{", "s.jsonl:2: not JSON"),
        ("[1]", ":1: a list, not an object"),
        ("[" * 100_000, ":1: not JSON"),
        ('{"id": ' + "1" * 5000 + "}", ":1: not JSON"),
        (line(prompt=None), ":1: key 'prompt' is missing"),  # type: ignore[arg-type]
        (line(reference=2), ":1: 'reference' is a int, not a text: write it in quotes"),
        (line(stratum=[]), ":1: 'stratum' is a list"),
        (line(reference=" "), ":1: 'reference' is empty"),
        (line(prompt="?!"), ":1: 'prompt' has no word, digit or operator"),
        (line(prompt="\ud800 1"), ":1: 'prompt' holds a NUL or half a surrogate pair"),
        (line("a\0"), ":1: 'id' holds a NUL"),
        (line("a" * 257), ":1: 'id' has 257 characters: at most 256 are kept"),
        (line(verifier="maths"), "unknown verifier 'maths': use one of exact, math, numeric"),
        (line() + "\n" + line("a", "other 1"), ":2: id 'a' occurs in line 1 already"),
        (
            line() + "\n" + line("b", "WHAT is  1+1"),
            ":2: the problem of item 'b' is that of item 'a'",
        ),
        (b'{"id": "\xff"}', ":1: byte 9 is not UTF-8: save the file as UTF-8"),
        (b"\xef\xbb\xbf" + line().encode(), ":1: begins with a byte order mark"),
        (b" " * (1 << 20) + line().encode(), ":1: line of "),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "s.jsonl", text)
    assert said in str(caught.value)
    assert str(tmp_path / "s.jsonl") in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = SuiteConfig(name="easy", path=str(tmp_path / "none.jsonl"), role="guard")
    with pytest.raises(ConfigError, match=r"none.jsonl: suite 'easy' cannot be read: No such file"):
        load_suites([config], verifiers=VERIFIERS)


def test_one_problem_in_two_suites_is_refused(tmp_path: Path) -> None:
    configs = []
    for name, text in (("a", line()), ("b", line("z", "3+3") + "\n" + line("y", "what is 1+1"))):
        (tmp_path / name).write_text(text)
        configs.append(SuiteConfig(name=name, path=str(tmp_path / name), role="target"))
    with pytest.raises(ConfigError) as caught:
        load_suites(configs, verifiers=VERIFIERS)
    assert f"{tmp_path}/b:2" in str(caught.value)
    assert f"{tmp_path}/a:1" in str(caught.value)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_raise_anything_else(tmp_path: Path, noise: bytes, at: int) -> None:
    good = (line() + "\n" + line("b", "2+2") + "\n").encode()
    at = min(at, len(good))
    try:
        suites = load(tmp_path / "s.jsonl", good[:at] + noise + good[at + len(noise) :])
    except ConfigError:
        return
    assert suites.num_items() == len(suites.held_out) >= 1


class Trained:
    def __init__(self, keys: set[str]) -> None:
        self.keys = keys

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]:
        return self.keys & set(keys)


def test_no_trained_item_enters_a_suite(tmp_path: Path) -> None:
    text = "\n".join(line(f"i{number}", f"1+{number}") for number in range(8))
    suites = load(tmp_path / "s.jsonl", text)
    check_untrained(suites, Trained({prompt_key("77+1")}))
    with pytest.raises(
        ConfigError, match=r"s.jsonl:3 \(item 'i2'\). No trained item enters a suite"
    ):
        check_untrained(suites, Trained({prompt_key("1+2")}))
    with pytest.raises(ConfigError, match="and 3 more"):
        check_untrained(suites, Trained({prompt_key(f"1+{number}") for number in range(8)}))


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    suites = load(path, line())
    check_unchanged(suites)
    path.write_text(line() + "\n")
    with pytest.raises(ConfigError, match=r"s.jsonl: suite 'easy' changed since"):
        check_unchanged(suites)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        check_unchanged(suites)
