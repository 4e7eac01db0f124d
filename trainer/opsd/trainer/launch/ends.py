"""`group.json`: how the ranks ended that did not end well.

A rank that is killed writes nothing, and what its peers write is only that they lost it. So the
process that started the ranks says it, beside `result.json`.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from opsd.trainer.files import replace_file

GROUP_NAME = "group.json"


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended.

    Args:
        rank: in the whole group; None for a worker that was lost before it had one.
        exit_status: 0 for success, negative for a signal; None where nobody saw the end, as when
            its machine is lost.
        host: where it ran; empty for this machine.
    """

    rank: int | None
    exit_status: int | None
    host: str = ""


def write_group_end(run_dir: Path, ends: Iterable[RankEnd]) -> None:
    """Writes the ends that are not a success, by rank; tells them on stderr too."""
    bad = sorted(
        (end for end in ends if end.exit_status != 0),
        key=lambda end: -1 if end.rank is None else end.rank,
    )
    for end in bad:
        who = "a worker without a rank" if end.rank is None else f"rank {end.rank}"
        where = f" on {end.host}" if end.host else ""
        status = "lost" if end.exit_status is None else f"exit status {end.exit_status}"
        print(f"{who}{where}: {status}", file=sys.stderr, flush=True)
    data = json.dumps({"ranks": [asdict(end) for end in bad]}, indent=2)
    replace_file(run_dir / GROUP_NAME, data.encode() + b"\n")
