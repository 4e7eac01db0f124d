"""Making the tiny model's directory: all of it or nothing, and only once."""

import fcntl
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from opsd.trainer.tiny.datasets import (
    Item,
    make_pairs,
    make_suites,
    write_jsonl,
)
from opsd.trainer.tiny.evaluate import measure
from opsd.trainer.tiny.model import make_model
from opsd.trainer.tiny.pretrain import pretrain
from opsd.trainer.tiny.problems import TEACHER_PROMPT
from opsd.trainer.tiny.recipe import ABOUT, Recipe, is_complete
from opsd.trainer.tiny.tokenizer import make_tokenizer

CONTENTS = frozenset({"model", "suites", "pairs.jsonl", "wrong_pairs.jsonl", ABOUT})

Say = Callable[[str], None]


def make_directory(directory: Path, seed: int, recipe: Recipe, say: Say) -> bool:
    """Make the model, the pairs and the suites in ``directory``; False where they were there.

    The directory appears in one rename. One made with another seed or recipe, or incomplete, is
    made again. Other processes making the same directory wait for each other.

    Raises:
        FileExistsError: the path holds something that is not a tiny model's directory.
    """
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.with_name(f".{directory.name}.lock")):
        _refuse_foreign(directory)
        if is_complete(directory, seed, recipe):
            say(f"{directory} is complete for seed {seed}: nothing to do")
            return False
        # Only the holder of the lock writes here, so what lies here was left by a dead process.
        unfinished = directory.with_name(f".{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        _fill(unfinished, seed, recipe, say)
        if directory.exists():
            shutil.rmtree(directory)
        unfinished.rename(directory)
        _sync(directory.parent)
    say(f"{directory} is ready")
    return True


def _refuse_foreign(directory: Path) -> None:
    """Protect a directory that the user named by mistake from being replaced."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise FileExistsError(f"{directory} is not a directory: name another --out")
    foreign = sorted({path.name for path in directory.iterdir()} - CONTENTS)
    if foreign:
        raise FileExistsError(
            f"{directory} holds {foreign[0]!r}, which is not a tiny model's: name another --out"
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(directory: Path, seed: int, recipe: Recipe, say: Say) -> None:
    """Write everything, then the mark of completeness, each on disk before the next."""
    started_s = time.monotonic()
    pairs, wrong_pairs = make_pairs(seed, recipe.datasets)
    suites = make_suites(seed, recipe.datasets)
    write_jsonl(directory / "pairs.jsonl", pairs)
    write_jsonl(directory / "wrong_pairs.jsonl", wrong_pairs)
    (directory / "suites").mkdir()
    for name, items in suites.items():
        write_jsonl(directory / "suites" / f"{name}.jsonl", items)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, seed)
    pretrain(model, tokenizer, seed, recipe.pretrain, _progress(recipe.pretrain.num_steps, say))
    pretrained_s = time.monotonic()
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    accuracy = _held_out_accuracy(model, tokenizer, suites, seed, recipe, say)
    _sync_tree(directory)
    about = {
        "seed": seed,
        "recipe": recipe.as_json(),
        "num_parameters": model.num_parameters(),
        "pretrain_s": round(pretrained_s - started_s, 1),
        "wall_s": round(time.monotonic() - started_s, 1),
        "teacher_prompt": TEACHER_PROMPT,
        "held_out": accuracy,
    }
    (directory / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    _sync(directory / ABOUT)
    _sync(directory)


def _progress(num_steps: int, say: Say) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        if (step + 1) % 25 == 0 or step + 1 == num_steps:
            say(f"pretraining: step {step + 1}/{num_steps}, loss {loss:.3f}")

    return report


def _held_out_accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    suites: dict[str, list[Item]],
    seed: int,
    recipe: Recipe,
    say: Say,
) -> dict[str, dict[str, float | int]]:
    """Return percent correct for each stratum, alone and with the reference in the prompt."""
    by_stratum: dict[str, list[Item]] = {}
    for item in (item for items in suites.values() for item in items):
        by_stratum.setdefault(item["stratum"], []).append(item)
    accuracy: dict[str, dict[str, float | int]] = {}
    for stratum, every_item in by_stratum.items():
        # A suite may hold two kinds one after the other, so a prefix would not be fair.
        items = random.Random(seed).sample(every_item, min(recipe.num_evaluated, len(every_item)))
        references = [item["reference"] for item in items]
        alone = [item["prompt"] for item in items]
        aided = [
            TEACHER_PROMPT.format(problem=item["prompt"], solution=item["solution"])
            for item in items
        ]
        measured = [
            measure(model, tokenizer, prompts, references, recipe.max_new_tokens)
            for prompts in (alone, aided)
        ]
        accuracy[stratum] = {
            "n": len(items),
            "percent": round(measured[0].percent, 1),
            "percent_with_reference": round(measured[1].percent, 1),
        }
        say(
            f"held-out {stratum}: {measured[0].percent:.1f} %, "
            f"with the reference {measured[1].percent:.1f} % (n = {len(items)})"
        )
    return accuracy


def _sync_tree(directory: Path) -> None:
    for root, _, names in os.walk(directory):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Make a file's bytes, or a directory's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
