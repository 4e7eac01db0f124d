"""What the person in front of the terminal sees, on stderr; the final table goes to stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from opsd.v1 import admin_pb2


def state_name(run: admin_pb2.Run) -> str:
    return admin_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()


def verdict_name(verdict: admin_pb2.GateVerdict.ValueType) -> str:
    return admin_pb2.GateVerdict.Name(verdict).removeprefix("GATE_VERDICT_").lower()


class Screen:
    """Headlines, bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def headline(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/bold]")

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A bar; its function takes done and total."""
        with self._progress() as progress:
            task = progress.add_task(label, total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            yield show
        self._after_bar(label, progress)

    @contextmanager
    def run_progress(self) -> Iterator[Callable[[admin_pb2.Run], None]]:
        """Bars of training and evaluation; its function takes the run as it changes."""
        last_state = ""
        with self._progress() as progress:
            training = progress.add_task("training", total=None)
            evaluation = progress.add_task("evaluation", total=None, visible=False)

            def show(run: admin_pb2.Run) -> None:
                nonlocal last_state
                if state_name(run) != last_state:
                    last_state = state_name(run)
                    progress.console.print(f"  {last_state}: {run.reason}", highlight=False)
                loss = f"training, loss {run.metrics.loss:.3f}" if run.step else "training"
                if run.num_steps:
                    progress.update(
                        training, completed=run.step, total=run.num_steps, description=loss
                    )
                if run.eval_total:
                    progress.update(
                        evaluation, completed=run.eval_done, total=run.eval_total, visible=True
                    )

            yield show
        self._after_bar("run", progress)

    def gate(self, report: admin_pb2.GateReport) -> None:
        """The gate's report as an operator sees it."""
        table = Table(title=f"gate: {verdict_name(report.verdict)}", title_justify="left")
        for column in ("suite", "role", "n", "incumbent", "candidate", "difference", "95 % CI"):
            table.add_column(column, justify="left" if column in {"suite", "role"} else "right")
        table.add_column("verdict")
        for suite in report.suites:
            table.add_row(
                suite.name,
                admin_pb2.SuiteRole.Name(suite.role).removeprefix("SUITE_ROLE_").lower(),
                str(suite.n),
                f"{suite.incumbent_accuracy:.1%}",
                f"{suite.candidate_accuracy:.1%}",
                f"{100 * suite.difference:+.1f}",
                f"[{100 * suite.ci_low:+.1f}, {100 * suite.ci_high:+.1f}]".replace("[", r"\["),
                verdict_name(suite.verdict),
            )
        self._console.print(table)
        self.say(report.explanation)

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def _after_bar(self, label: str, progress: Progress) -> None:
        if self._console.is_terminal:
            return
        for task in progress.tasks:
            if task.total:
                self.say(f"  {label}: {task.completed:.0f} of {task.total:.0f}")
