"""What a tiny model is made with, and whether a directory holds it. Imports nothing heavy."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ABOUT = "about.json"
"""Written last: a directory that has it is complete."""


@dataclass(frozen=True)
class PretrainConfig:
    """What decides the pretrained weights, beside the seed."""

    num_steps: int = 1100
    batch_size: int = 64
    num_blocks: int = 8
    """Blocks of similar length that a batch is laid out in."""
    curriculum: tuple[float, ...] = (0.12, 0.25, 0.40)
    """Shares of the steps after which one more operation is allowed, starting at one."""
    aided_share: float = 0.5
    hard_share: float = 0.02
    """Share of the unaided examples with two-digit operands: a seed of the skill, not more."""
    word_share: float = 0.6
    muon_lr: float = 0.02
    adamw_lr: float = 4e-3
    adamw_betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 40
    flat_share: float = 0.4
    """Share of the steps after which the learning rate falls linearly."""
    final_lr_share: float = 0.02


@dataclass(frozen=True)
class DatasetConfig:
    """How many problems of each kind are drawn."""

    num_pairs: int = 4000
    num_per_stratum: int = 300


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, beside the seed."""

    version: int = 1
    """Goes up whenever the code changes what the same numbers below would make."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    datasets: DatasetConfig = field(default_factory=DatasetConfig)
    num_evaluated: int = 200
    """Held-out problems asked for each stratum at the end, greedily."""
    max_new_tokens: int = 96
    """Enough for the longest worked solution of a suite."""

    def as_json(self) -> dict[str, Any]:
        """Return the recipe as it reads back from JSON."""
        recipe: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return recipe


def is_complete(directory: Path, seed: int, recipe: Recipe) -> bool:
    """Tell whether the directory was finished with this seed and recipe."""
    try:
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return (
        isinstance(about, dict)
        and about.get("seed") == seed
        and about.get("recipe") == recipe.as_json()
    )
