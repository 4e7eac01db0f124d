"""PREPARING: the shard and ``run.json``."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from opsd.daemon.runs.ports import Canaries, HeldOut, RunsStore
from opsd.daemon.runs.rows import Rows
from opsd.daemon.runs.shard import Snapshot, refuse_canaries, take_over, take_snapshot
from opsd.daemon.runs.spec import SpecBuilder, Starting, write_spec
from opsd.daemon.types.engine import BASE
from opsd.daemon.types.pair_sets import DrawPolicy
from opsd.daemon.types.runs import Run, RunState
from opsd.v1 import training_pb2

logger = logging.getLogger(__name__)

_IMITATES = frozenset({training_pb2.METHOD_SFT, training_pb2.METHOD_STAR})
"""Methods whose student is trained on a solution's or a trace's very words."""


@dataclass(frozen=True, slots=True)
class PreparationStage:
    """Everything the trainer will read, written once and complete."""

    store: RunsStore
    rows: Rows
    held_out: HeldOut
    specs: SpecBuilder
    runs_dir: Path
    min_pairs: int
    policy: DrawPolicy
    canaries: Canaries

    async def reconcile(self, run: Run) -> Run:
        """PREPARING → TRAINING; raises TrainerFailure or InvalidInputError."""
        fields = await asyncio.to_thread(self._prepare, run)
        return await self.rows.move(run, RunState.TRAINING, "shard and run.json written", **fields)

    def plan(self, overrides_json: str) -> training_pb2.RunSpec:
        """What a run would be made with if it were prepared now, without shard and directory.

        Raises InvalidInputError. Blocks.
        """
        spec = self.specs.build(
            run_id="",
            run_dir=self.runs_dir,
            shard=training_pb2.ShardRef(),
            overrides_json=overrides_json,
            starting=self._starting(),
        )
        spec.ClearField("output_dir")
        return spec

    def _prepare(self, run: Run) -> dict[str, object]:
        run_dir = (self.runs_dir / run.id).absolute()
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        snapshot = self._snapshot(run, run_dir)
        starting = self._starting()
        spec = self.specs.build(
            run_id=run.id,
            run_dir=run_dir,
            shard=snapshot.ref,
            overrides_json=run.overrides_json,
            starting=starting,
        )
        return {
            "spec_json": write_spec(spec, run_dir),
            "run_dir": str(run_dir),
            "num_pairs": len(snapshot.pair_ids),
            "num_steps": spec.optim.num_steps,
            "incumbent_at_start": starting.adapter,
        }

    def _snapshot(self, run: Run, run_dir: Path) -> Snapshot:
        method = self.plan(run.overrides_json).objective.method
        if run.same_data_as:
            other = self.store.get_run(run.same_data_as)
            snapshot = take_over(run, run_dir, other, store=self.store, held_out=self.held_out)
            if method in _IMITATES:
                refuse_canaries(Path(snapshot.ref.path), self.canaries)
        else:
            snapshot = take_snapshot(
                run,
                run_dir,
                store=self.store,
                held_out=self.held_out,
                min_pairs=self.min_pairs,
                policy=self.policy,
                canaries=None if method in _IMITATES else self.canaries,
            )
        logger.info(
            "shard written run=%s pairs=%d held_out=%d sha256=%s",
            *(run.id, len(snapshot.pair_ids), snapshot.num_held_out, snapshot.ref.sha256),
        )
        return snapshot

    def _starting(self) -> Starting:
        name = self.store.get_incumbent().adapter
        return Starting() if name == BASE else Starting(name, self.store.get_adapter(name).path)
