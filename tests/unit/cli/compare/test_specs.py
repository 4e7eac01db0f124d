"""What is compared is checked, key by key and line by line, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from opsd.daemon.cli.compare.specs import parse_seeds, read_methods
from opsd.daemon.cli.exits import CliError, Exit
from opsd.v1 import training_pb2 as pb

GRPO_TOML = """\
name = "grpo, 8 attempts"
seeds = [1, 2]

[training.objective]
method = "grpo"
epistemic_weight = 0

[training]
checkpoint_every_steps = 0
rollout = { rollouts_per_problem = 8, temperature = 1 }
prompt.contexts = ["solution", "answer"]
prompt.student_thinking = false
"""

GRPO_JSON = """\
{
  "name": "grpo, 8 attempts",
  "seeds": [1, 2],
  "training": {
    "objective": {"method": "grpo", "epistemic_weight": 0},
    "checkpoint_every_steps": 0,
    "rollout": {
      "rollouts_per_problem": 8, "temperature": 1
    },
    "prompt": {"contexts": ["solution", "answer"], "student_thinking": false}
  }
}
"""


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "text"), [("a.toml", GRPO_TOML), ("a.json", GRPO_JSON)])
def test_a_file_sets_values_and_says_which(tmp_path: Path, name: str, text: str) -> None:
    [found] = read_methods([write(tmp_path, name, text)], [])
    assert (found.name, found.seeds) == ("grpo, 8 attempts", (1, 2))
    assert set(found.overridden) == {
        "objective.method",
        "objective.epistemic_weight",
        "checkpoint_every_steps",
        "rollout.rollouts_per_problem",
        "rollout.temperature",
        "prompt.contexts",
        "prompt.student_thinking",
    }
    spec = found.overrides
    assert spec.objective.method == pb.METHOD_GRPO
    assert spec.objective.HasField("epistemic_weight")
    assert (spec.rollout.rollouts_per_problem, spec.rollout.temperature) == (8, 1.0)
    assert list(spec.prompt.contexts) == [pb.CONTEXT_SOLUTION, pb.CONTEXT_ANSWER]


def test_a_file_may_be_empty_and_is_named_by_its_own_name(tmp_path: Path) -> None:
    [found] = read_methods([write(tmp_path, "as-configured.toml", "")], [])
    assert (found.name, found.seeds, found.overridden) == ("as-configured", (None,), ())


def test_seeds_of_the_command_line_win(tmp_path: Path) -> None:
    [found] = read_methods([write(tmp_path, "a.toml", "seeds = [1]")], [7, 8])
    assert found.seeds == (7, 8)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("[training.objective]\nmehtod = 1", ":2: training.objective.mehtod", "objective.method?"),
        (
            "[training]\nobjective.method = 'x'",
            ":2: training.objective.method",
            "one of opsd, sdpo",
        ),
        ("[training]\noptim.num_steps = '5'", ":2: training.optim.num_steps", '"5" is not a whole'),
        ("[training]\noptim.num_steps = true", ":2: training.optim.num_steps", "is not a whole"),
        ("[training]\noptim.num_steps = -1", ":2: training.optim.num_steps", "at least 0"),
        ("[training]\noptim.num_steps = 1.5", ":2: training.optim.num_steps", "1.5 is not"),
        ("[training]\noptim.learning_rate = nan", ":2: training.optim.learning_rate", "a number"),
        ("[training]\nprompt.contexts = ['x']", ":2: training.prompt.contexts", "a list of some"),
        ("[training]\nprompt.contexts = 'answer'", ":2: training.prompt.contexts", "a list"),
        ("[training]\nlora.target_modules = [1]", ":2: training.lora.target_modules", "a list"),
        ("[training]\nprompt.system = 3", ":2: training.prompt.system", "not text"),
        ("[training]\nprompt.student_thinking = 1", ":2: training.prompt", "true or false"),
        ("[training]\noptim = 3", ":2: training.optim", "no such key"),
        ("[training]\nmodel.path = 'x'", ":2: training.model.path", "no such key"),
        ("seed = [1]", ":1: seed", "did you mean seeds?"),
        ("\n[objective]\nmethod = 'grpo'", ":2: objective", "stand under training"),
        ("training = 3", ":1: training", "not a table"),
        ("source = 3", ":1: source", "not a text"),
        ("name = ''", ":1: name", "not a printable text"),
        ("name = 5", ":1: name", "not a printable text"),
        (f"name = '{'n' * 61}'", ":1: name", "61 characters"),
        ("\nseeds = []", ":2: seeds", "not a list of seeds"),
        ("seeds = [1, 1]", ":1: seeds", "twice"),
        ("seeds = [true]", ":1: seeds", "not a whole number"),
        ("seeds = [1]\n[training]\nseed = 3", ":3: training.seed", "seeds gives the seed already"),
        ("name = 'a'\nname = 'b'", ":2", "not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, text: str, where: str, what: str
) -> None:
    path = write(tmp_path, "a.toml", text)
    with pytest.raises(CliError) as caught:
        read_methods([path], [])
    assert caught.value.code is Exit.INVALID_INPUT
    assert f"{path}{where}" in caught.value.message
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('{\n "training":\n {"optim": {"a": [1, {"b": 2}],\n "num_steps": "5"}}}', ":4: ", '"5"'),
        ('{"name": "a",\n "name": "b"}', ":2: name", "twice"),
        ('{"name": "a",\n}', ":2", "not JSON"),
        ("[]", "", "an object"),
        ("\ufeff{}x", ":1", "not JSON"),
    ],
)
def test_json_is_read_as_closely(tmp_path: Path, text: str, where: str, what: str) -> None:
    path = write(tmp_path, "a.json", text)
    with pytest.raises(CliError) as caught:
        read_methods([path], [])
    assert f"{path}{where}" in caught.value.message
    assert what in caught.value.message


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    first = write(tmp_path, "a.toml", "seeds = 1\n[training]\noptim.x = 1")
    second = write(tmp_path, "b.toml", "[training]\nlora.rank = 'big'")
    with pytest.raises(CliError) as caught:
        read_methods([first, second], [])
    assert caught.value.message.startswith("3 things to mend:")
    for place in (
        f"{first}:1: seeds",
        f"{first}:3: training.optim.x",
        f"{second}:2: training.lora",
    ):
        assert place in caught.value.message


def test_names_must_differ(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a.toml", ""), write(tmp_path, "b.toml", "name = 'a'")
    with pytest.raises(CliError, match=f"{second}: name 'a' is that of {first} too"):
        read_methods([first, second], [])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="no such file") as caught:
        read_methods([tmp_path / "none.toml"], [])
    assert caught.value.code is Exit.NOT_FOUND
    (tmp_path / "a.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(CliError, match="not UTF-8"):
        read_methods([tmp_path / "a.toml"], [])
    with pytest.raises(CliError, match="cannot be read"):
        read_methods([tmp_path], [])


@pytest.mark.parametrize("text", ["x", "1,", "1,1", "-1", str(2**63)])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(CliError) as caught:
        parse_seeds(text)
    assert caught.value.code is Exit.USAGE
    assert parse_seeds("") == []
    assert parse_seeds("3, 1") == [3, 1]
