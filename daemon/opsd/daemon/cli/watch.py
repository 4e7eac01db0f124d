"""Following a run."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import Output, clean, console, emit_json, say
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import Run

RETRIES = 8
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 15.0


class View(Protocol):
    def show(self, run: Run) -> None: ...

    def close(self) -> None: ...


def watch_run(session: Session, id: str, output: Output) -> Exit:
    """Shows a run until it waits for a person or is over; a daemon that restarts is waited for.

    Returns the exit code that stands for the outcome.
    """
    view = _view(output)
    try:
        last = follow(session, id, view)
    finally:
        view.close()
    if output is Output.TABLE:
        from opsd.daemon.cli.runs import print_run

        print_run(last)
        _say_next(last)
    return outcome(last)


def follow(session: Session, id: str, view: View) -> Run:
    """Shows the run until it is settled; raises CliError when the daemon stays away."""
    from opsd.v1.admin_pb2 import GetRunRequest

    last: Run | None = None
    failures = 0
    while True:
        try:
            with session.connect() as client:
                request = GetRunRequest(id=last.id if last is not None else id)
                for run in client.stream(client.admin.WatchRun, request):
                    if run != last:
                        failures = 0
                    last = run
                    view.show(run)
            if last is not None and is_settled(last):
                return last
            failures += 1
            lost = CliError("the daemon ended the stream before the run was settled")
        except CliError as error:
            failures += 1
            # A daemon that was never there is an error at once; one that went away may come back.
            if error.code is not Exit.UNREACHABLE or last is None:
                raise
            lost = error
        if failures > RETRIES:
            raise lost
        time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1)))


def is_settled(run: Run) -> bool:
    """Whether it waits for a person, or is over."""
    from opsd.v1 import admin_pb2 as pb

    return run.state not in (
        pb.RUN_STATE_UNSPECIFIED,
        pb.RUN_STATE_QUEUED,
        pb.RUN_STATE_PREPARING,
        pb.RUN_STATE_TRAINING,
        pb.RUN_STATE_EVALUATING,
        pb.RUN_STATE_CANARY,
    )


def outcome(run: Run) -> Exit:
    """OK: promoted, or waiting for approval with a gate that passed."""
    from opsd.v1 import admin_pb2 as pb

    if run.state == pb.RUN_STATE_AWAITING_APPROVAL:
        passed = run.gate_verdict == pb.GATE_VERDICT_PASS
        return Exit.OK if passed else Exit.NEGATIVE_OUTCOME
    good = run.state in (pb.RUN_STATE_PROMOTED, pb.RUN_STATE_CANARY)
    return Exit.OK if good else Exit.NEGATIVE_OUTCOME


def _say_next(run: Run) -> None:
    from opsd.v1 import admin_pb2 as pb

    if run.state == pb.RUN_STATE_AWAITING_APPROVAL:
        name = clean(run.candidate)
        say(
            f"it waits for approval, by people or by a policy: `opsd gate show {name}`, then "
            f"`opsd adapters approve {name} --reason …` or `reject`"
        )


def _view(output: Output) -> View:
    return _JsonView() if output is Output.JSON else progress_view()


def progress_view() -> View:
    """For people, on stderr."""
    return _BarView() if sys.stderr.isatty() else _LineView()


class _JsonView:
    """Every update as a line on stdout."""

    def show(self, run: Run) -> None:
        emit_json(run, line=True)

    def close(self) -> None:
        pass


class _LineView:
    """A line on stderr for every new state, step and tenth of the evaluation."""

    def __init__(self) -> None:
        self._said = ""

    def show(self, run: Run) -> None:
        from opsd.daemon.cli.words import run_state
        from opsd.v1 import admin_pb2 as pb

        line = run_state(run.state)
        if run.state == pb.RUN_STATE_TRAINING and run.step:
            line += f" step {run.step}/{run.num_steps} loss {run.metrics.loss:.4f}"
        if run.state == pb.RUN_STATE_EVALUATING and run.eval_total:
            tenths = 10 * run.eval_done // run.eval_total
            line += f" {10 * tenths} % of {run.eval_total}"
        if line != self._said:
            say(f"{run.id[:8]} {line}")
            self._said = line

    def close(self) -> None:
        pass


class _BarView:
    """Bars on the terminal: state, steps with the loss, evaluation."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            TimeElapsedColumn(),
            console=console(stderr=True),
        )
        self._steps = self._progress.add_task("waiting", total=None, note="")
        self._eval = self._progress.add_task("evaluation", total=None, visible=False, note="")
        self._progress.start()

    def show(self, run: Run) -> None:
        from opsd.daemon.cli.words import run_state

        note = f"loss {run.metrics.loss:.4f}" if run.step else ""
        self._progress.update(
            self._steps,
            description=run_state(run.state),
            completed=run.step,
            total=run.num_steps or None,
            note=note,
        )
        if run.eval_total:
            self._progress.update(
                self._eval, completed=run.eval_done, total=run.eval_total, visible=True
            )

    def close(self) -> None:
        self._progress.stop()
