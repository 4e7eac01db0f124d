"""What the demonstration can be told."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


def default_cache_dir() -> Path:
    """Where made models are kept between demonstrations."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "opsd" / "demo"


@dataclass(frozen=True, slots=True)
class Options:
    seed: int
    json_path: Path | None
    wrong_references: bool
    num_steps: int
    num_pairs: int
    cache_dir: Path
    work_dir: Path | None  # None: a temporary one, removed when all went well
    keep: bool


def parse(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="opsd demo",
        description="Shows the whole loop with a tiny model on this machine: serve, collect, "
        "train, gate, approve, swap under traffic, roll back and forward.",
        epilog="Exit status: 0 the gate passed and no request failed (with --wrong-references: the "
        "gate refused); 1 otherwise; 2 usage.",
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, help="another model, other problems, another run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the final table there too")
    parser.add_argument(
        "--wrong-references",
        action="store_true",
        help="the control: train on another problem's solution and see what the gate says",
    )
    parser.add_argument("--steps", type=_positive, default=90, help="training steps (90)")
    parser.add_argument("--pairs", type=_positive, default=1500, help="pairs submitted (1500)")
    parser.add_argument(
        "--cache-dir", type=Path, default=default_cache_dir(), help="where made models are kept"
    )
    parser.add_argument(
        "--work-dir", type=Path, default=None, help="where the daemon's state goes; kept"
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary work directory")
    values = parser.parse_args(argv)
    return Options(
        seed=values.seed,
        json_path=values.json,
        wrong_references=values.wrong_references,
        num_steps=values.steps,
        num_pairs=values.pairs,
        cache_dir=values.cache_dir.absolute(),
        work_dir=values.work_dir.absolute() if values.work_dir else None,
        keep=values.keep,
    )


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError("a whole number from 0 to 2147483647")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number of at least 1")
    return value
