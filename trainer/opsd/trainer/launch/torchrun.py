"""`python -m opsd.trainer.launch.torchrun NUM_RANKS RUN_DIR/run.json`: ranks on this machine.

torchrun's agent without restarts; that a rank was lost is noted in `group.json` beside run.json.
"""

import sys
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from opsd.trainer.launch.ends import RankEnd, write_group_end


def main(arguments: list[str]) -> int:
    """Returns when every rank has ended: 0 when all succeeded, 1 when not, 2 for wrong usage."""
    if len(arguments) != 2 or not arguments[0].isdecimal():
        print(__doc__, file=sys.stderr)
        return 2
    num_ranks, run_json = arguments
    options = ["--standalone", "--nproc-per-node", num_ranks, "-m", "opsd.trainer", run_json]
    try:
        torchrun.run(torchrun.parse_args(options))  # type: ignore[no-untyped-call]  # torch's own
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        ends = [RankEnd(rank, failure.exitcode) for rank, failure in error.failures.items()]
        write_group_end(Path(run_json).parent, ends)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
