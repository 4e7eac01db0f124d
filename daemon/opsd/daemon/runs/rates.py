"""Solve counts: from a trainer to the store, and into the next run's shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from opsd.daemon.errors import TrainerFailure

RATES_NAME: Final = "solve-rates.json"

_MAX_COUNT: Final = 1 << 30


def read_rates(run_dir: Path) -> dict[str, tuple[int, int]]:
    """(attempts, solved) for each pair that the trainer attempted and verified; empty without one.

    Raises TrainerFailure when the file is not what a trainer writes.
    """
    path = run_dir / RATES_NAME
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TrainerFailure(f"{path}: cannot be read: {error}") from error
    counts: dict[str, tuple[int, int]] = {}
    for pair_id, entry in content.items() if isinstance(content, dict) else [("", None)]:
        attempts = entry.get("attempts") if isinstance(entry, dict) else None
        solved = entry.get("solved") if isinstance(entry, dict) else None
        if not (type(attempts) is int and type(solved) is int and 0 <= solved <= attempts):
            raise TrainerFailure(
                f"{path}: {pair_id or 'it'} holds {entry!r}, not counts of attempts and solved"
            )
        if attempts > _MAX_COUNT:
            raise TrainerFailure(f"{path}: {pair_id} has {attempts} attempts: that is garbage")
        counts[pair_id] = (attempts, solved)
    return counts
