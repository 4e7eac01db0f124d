"""What runs need of the rest of the daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from opsd.daemon.store.api import RunStore
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.gate import GateReport, Measurement
from opsd.daemon.types.pair_sets import Draw, DrawPolicy
from opsd.daemon.types.pairs import Pair, PairCounts
from opsd.daemon.types.runs import Run


class RunsStore(RunStore, Protocol):
    """The part of the store that runs use; ``opsd.daemon.store.api.Store`` has all of it."""

    def count_pairs(self) -> PairCounts: ...

    def trainable_pairs(self, *, source: str = "", limit: int = 0) -> list[Pair]: ...

    def draw_pairs(
        self,
        run_id: str,
        policy: DrawPolicy,
        *,
        source: str = "",
        held_out: Callable[[Sequence[str]], set[str]],
    ) -> Draw: ...

    def get_adapter(self, name: str) -> Adapter: ...

    def list_adapters(self) -> list[Adapter]: ...

    def get_incumbent(self) -> Incumbent: ...

    def set_adapter_state(self, name: str, state: AdapterState) -> None: ...

    def reject(
        self, name: str, *, actor: str, reason: str, report: GateReport | None = None
    ) -> object: ...

    def save_gate(self, report: GateReport) -> None: ...

    def add_audit(
        self, *, actor: str, action: str, subject: str, reason: str, detail_json: str = "{}"
    ) -> int: ...


class HeldOut(Protocol):
    """Which problems the suites hold: the same rule as for a pair that comes in."""

    def is_held_out(self, prompt: str) -> str | None:
        """The suite that holds this problem, word for word or nearly; None when none does."""
        ...


class Canaries(Protocol):
    """Strings that privileged text carries, to be found where it leaks."""

    def planted(self, pair_id: str, solution: str) -> str:
        """The solution as the teacher is to see it."""
        ...

    def find(self, text: str) -> tuple[str, ...]: ...


class NoCanaries:
    """Nothing is planted."""

    def planted(self, pair_id: str, solution: str) -> str:
        return solution

    def find(self, text: str) -> tuple[str, ...]:
        return ()


class Intake(Protocol):
    """Where a finished run's adapter enters the daemon."""

    async def admit(self, run: Run, adapter_dir: Path, sha256: str) -> Adapter:
        """Verifies the files byte by byte, stores them and loads them beside the incumbent.

        Admitting the same adapter again returns the same row. Raises AdapterError when the files
        are not what they should be, EngineError when the engine could not load them.
        """
        ...

    async def withdraw(self, name: str) -> None:
        """The candidate will not be promoted: unload it once nothing uses it.

        A no-op the second time, and for an adapter that serves.
        """
        ...


class Trials(Protocol):
    """Where an adapter is loaded to be measured, and for nothing else."""

    def on_trial(
        self, adapter_dir: Path, sha256: str
    ) -> AbstractAsyncContextManager[AdapterHandle]:
        """Verifies the files byte by byte; within, the adapter is loaded in the candidate's role.

        Raises AdapterError when the files are not what they should be, EngineError when the engine
        could not load them.
        """
        ...


class Evaluator(Protocol):
    """The gate."""

    def num_items(self) -> int:
        """Of all suites; ``evaluate`` asks for at least twice as many answers."""
        ...

    def num_target_items(self) -> int:
        """Answers that ``measure`` asks for: to the target suites that are not sealed."""
        ...

    async def measure(
        self, run: Run, adapter: AdapterHandle | None, on_progress: Callable[[int, int], None]
    ) -> Sequence[Measurement]:
        """One adapter (None: base) alone on the target suites; goes on where an interrupted call
        stopped, and takes what ``evaluate`` had from it already.

        Raises EngineError or NotReadyError for what may be tried again.
        """
        ...

    async def evaluate(
        self, run: Run, candidate: Adapter, on_progress: Callable[[int, int], None]
    ) -> GateReport:
        """Compares the candidate with the incumbent; goes on where an interrupted call stopped.

        ``on_progress(done, total)`` counts suite items over both adapters. Raises EngineError or
        NotReadyError for what may be tried again.
        """
        ...
