"""``python -m opsd.trainer.tiny --out DIR --seed N``: make the tiny model and its problems."""

import argparse
import sys
from pathlib import Path

from opsd.trainer.tiny.recipe import PretrainConfig, Recipe, is_complete


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m opsd.trainer.tiny", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, required=True, metavar="N")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="K",
        help="CPU threads (another number may change the weights in the last bits)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=PretrainConfig.num_steps,
        metavar="N",
        help="steps of pretraining: fewer make a model that knows less, sooner (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    recipe = Recipe(pretrain=PretrainConfig(num_steps=options.steps))
    if is_complete(options.out, options.seed, recipe):
        _say(f"{options.out} is complete for seed {options.seed}: nothing to do")
        return 0
    # They take seconds to import, and a model that was made before needs neither.
    import torch
    from transformers.utils import logging as transformers_logging

    from opsd.trainer.tiny.build import make_directory

    torch.set_num_threads(options.threads)
    transformers_logging.disable_progress_bar()
    try:
        make_directory(options.out, options.seed, recipe, _say)
    except OSError as error:
        _say(f"error: {error}")
        return 1
    return 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
