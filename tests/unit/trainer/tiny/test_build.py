import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from opsd.trainer.tiny import build
from opsd.trainer.tiny.__main__ import main
from opsd.trainer.tiny.build import CONTENTS, make_directory
from opsd.trainer.tiny.recipe import (
    ABOUT,
    DatasetConfig,
    PretrainConfig,
    Recipe,
    is_complete,
)

RECIPE = Recipe(
    pretrain=PretrainConfig(num_steps=1, batch_size=4),
    datasets=DatasetConfig(num_pairs=20, num_per_stratum=4),
    num_evaluated=2,
    max_new_tokens=2,
)


def make(directory: Path, seed: int = 0, recipe: Recipe = RECIPE) -> bool:
    return make_directory(directory, seed, recipe, lambda message: None)


def test_makes_everything_and_then_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "tiny"
    said: list[str] = []
    assert make(out)
    assert {path.name for path in out.iterdir()} == CONTENTS
    before = (out / ABOUT).stat().st_mtime_ns
    assert not make_directory(out, 0, RECIPE, said.append)
    assert "nothing to do" in said[0]
    assert (out / ABOUT).stat().st_mtime_ns == before


def test_about_states_seed_recipe_and_accuracy(tmp_path: Path) -> None:
    make(tmp_path / "tiny", seed=5)
    about = json.loads((tmp_path / "tiny" / ABOUT).read_text(encoding="utf-8"))
    assert about["seed"] == 5
    assert about["recipe"] == RECIPE.as_json()
    assert about["num_parameters"] == 332_640
    assert set(about["held_out"]) == {"medium", "hard", "easy", "symbolic", "long"}
    assert about["held_out"]["hard"]["n"] == 2


def test_the_auto_classes_load_what_was_saved(tmp_path: Path) -> None:
    make(tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny" / "model")
    assert tokenizer.tokenize("Tom has 61") == ["Tom", "Ġhas", "Ġ", "6", "1"]
    assert tokenizer.decode(tokenizer.encode("naïve 東京\n 12")) == "naïve 東京\n 12"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.model_type == "qwen3"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: (out / ABOUT).unlink(),
        lambda out: (out / ABOUT).write_text('{"seed": 0'),
        lambda out: (out / ABOUT).write_text("[]"),
    ],
    ids=["absent", "cut", "foreign"],
)
def test_an_incomplete_directory_is_made_again(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    out = tmp_path / "tiny"
    make(out)
    spoil(out)
    assert not is_complete(out, 0, RECIPE)
    assert make(out)
    assert is_complete(out, 0, RECIPE)


def test_another_seed_or_recipe_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / "tiny"
    make(out, seed=0)
    assert make(out, seed=1)
    assert make(out, seed=1, recipe=replace(RECIPE, version=RECIPE.version + 1))


def test_fewer_steps_are_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recipe] = []

    def note(out: Path, seed: int, recipe: Recipe, say: object) -> None:
        made.append(recipe)

    monkeypatch.setattr(build, "make_directory", note)
    for more in ([], ["--steps", "7"]):
        assert main(["--out", str(tmp_path / "tiny"), "--seed", "0", *more]) == 0
    assert made == [Recipe(), Recipe(pretrain=PretrainConfig(num_steps=7))]


def test_a_crash_leaves_nothing_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(build, "_held_out_accuracy", crash)
        with pytest.raises(KeyboardInterrupt):
            make(out)
    assert not out.exists()
    assert make(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "tiny"]


def test_a_foreign_directory_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["--out", str(tmp_path), "--seed", "0"]) == 1
    assert "'thesis.tex'" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_a_complete_directory_costs_no_import_of_torch(tmp_path: Path) -> None:
    about = {"seed": 3, "recipe": Recipe().as_json()}
    (tmp_path / ABOUT).write_text(json.dumps(about))
    program = (
        "import sys; from opsd.trainer.tiny.__main__ import main; "
        f"assert main(['--out', {str(tmp_path)!r}, '--seed', '3']) == 0; "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_file_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny").write_text("")
    assert main(["--out", str(tmp_path / "tiny"), "--seed", "0"]) == 1
    assert "not a directory" in capsys.readouterr().err
    with pytest.raises(FileExistsError, match="not a directory"):
        make(tmp_path / "tiny")


@pytest.mark.parametrize("option", ["--threads", "--steps"])
def test_a_count_must_be_positive(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--seed", "0", option, "0"])
    assert f"{option} must be at least 1" in capsys.readouterr().err
