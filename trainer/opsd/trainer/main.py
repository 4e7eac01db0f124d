"""One trainer process: reads run.json, trains, and says how it ended.

Exit status: 0 succeeded, 1 failed, 2 wrong usage, 143 cancelled.
"""

import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

from opsd.trainer import environment, failpoints
from opsd.trainer.cancel import Cancellation
from opsd.trainer.errors import CancelledRun, PeerFailedError, TrainerError
from opsd.trainer.events import EventLog, to_json
from opsd.trainer.files import replace_file
from opsd.trainer.spec import load_spec, peek_output_dir
from opsd.v1 import training_pb2

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CANCELLED = 143
# How long rank 0 looks for the word of another rank that failed before it.
_PEER_WAIT_S = 1.0


def main(arguments: list[str]) -> int:
    """Runs the trainer; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m opsd.trainer RUN_DIR/run.json", file=sys.stderr)
        return EXIT_USAGE
    cancellation = Cancellation()
    cancellation.install()
    process = _Process(Path(arguments[0]))
    try:
        process.run(cancellation)
        # From here on the run has succeeded: a late signal cannot make it anything else.
        cancellation.ignore_from_now_on()
        return process.finish(training_pb2.RUN_OUTCOME_SUCCEEDED)
    except BaseException as error:
        cancelled = cancellation.requested or isinstance(error, CancelledRun)
        cancellation.only_note_from_now_on()
        reason = process.peer_failure()
        cancellation.ignore_from_now_on()
        # A peer that was told to stop first breaks the collective that this rank waits in.
        cancelled |= cancellation.requested and not isinstance(error, TrainerError)
        if reason is None and cancelled:
            print("cancelled by a signal", file=sys.stderr, flush=True)
            return process.finish(training_pb2.RUN_OUTCOME_CANCELLED)
        traceback.print_exc()
        return process.finish(training_pb2.RUN_OUTCOME_FAILED, reason or _describe(error))


class _Process:
    """The outcome of this rank and where it is told."""

    def __init__(self, run_json: Path) -> None:
        self._began = time.monotonic()
        self._run_json = run_json
        self._rank = environment.rank()
        self._output_dir = peek_output_dir(run_json)
        self._events: EventLog | None = None
        self._result = training_pb2.RunResult(trainer_version=_version())

    def run(self, cancellation: Cancellation) -> None:
        self._clear_leftovers()
        spec = load_spec(self._run_json)
        self._result.run_id = spec.run_id
        self._output_dir = Path(spec.output_dir)
        self._output_dir.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()
        self._events = EventLog(
            self._output_dir / "events.jsonl" if self._rank == 0 else None,
            spec.optim.num_steps,
            spec.heartbeat_interval_s,
        )
        self._events.write("started")
        import torch  # seconds to import: "started" is out by then

        from opsd.trainer.distributed import Ranks
        from opsd.trainer.loop import train

        if spec.threads_per_process:
            torch.set_num_threads(spec.threads_per_process)
        ranks = Ranks(spec.device, spec.num_processes)
        train(spec, ranks, self._events, cancellation, self._result)
        ranks.close()

    def finish(self, outcome: training_pb2.RunOutcome.ValueType, reason: str = "") -> int:
        """Tells the outcome, result.json last; returns the exit status."""
        succeeded = outcome == training_pb2.RUN_OUTCOME_SUCCEEDED
        self._result.outcome = outcome
        self._result.error = reason
        self._result.wall_s = time.monotonic() - self._began
        if not succeeded:
            self._result.ClearField("adapter_path")
            self._result.ClearField("adapter_sha256")
        if self._rank == 0:
            if self._events is not None:
                kind = "finished" if succeeded else "failed"
                cancelled = outcome == training_pb2.RUN_OUTCOME_CANCELLED
                self._events.write(kind, "cancelled" if cancelled else reason)
                self._events.close()
            data = to_json(self._result).encode() + b"\n"
            if failpoints.armed("garbage-result"):
                data = b"{not json"
            replace_file(self._output_dir / "result.json", data)
        elif outcome == training_pb2.RUN_OUTCOME_FAILED:
            replace_file(self._failure_note(self._rank), reason.encode())
        if outcome == training_pb2.RUN_OUTCOME_CANCELLED:
            return EXIT_CANCELLED
        return 0 if succeeded else EXIT_FAILED

    def peer_failure(self) -> str | None:
        """What another rank wrote before it failed: torchrun then stops this one with SIGTERM,
        which alone would look like a cancellation."""
        if self._rank != 0 or environment.world_size() == 1:
            return None
        deadline = time.monotonic() + _PEER_WAIT_S
        while time.monotonic() < deadline:
            for rank in range(1, environment.world_size()):
                note = self._failure_note(rank)
                if note.is_file():
                    return _describe(PeerFailedError(f"rank {rank}: {note.read_text()}"))
            time.sleep(0.05)
        return None

    def _failure_note(self, rank: int) -> Path:
        return self._output_dir / f"rank-{rank}-failure.txt"

    def _clear_leftovers(self) -> None:
        # Of an earlier process of this run: a reader must not take them for this one's.
        if self._rank == 0:
            (self._output_dir / "result.json").unlink(missing_ok=True)
        else:
            self._failure_note(self._rank).unlink(missing_ok=True)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _version() -> str:
    try:
        return metadata.version("opsd")
    except metadata.PackageNotFoundError:
        return "unknown"
