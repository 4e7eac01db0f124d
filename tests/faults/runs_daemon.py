"""The runs' part of a daemon, as a process of its own that a test may kill.

    python runs_daemon.py STATE_DIR MODEL_DIR SETTINGS_JSON [--fake TRAINER] [--trigger REQUEST_ID]

SETTINGS_JSON is an OpsdConfig. It serves nothing: adapters are taken as they are, the gate passes
whatever comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from opsd.daemon.adapters.files import model_fingerprint
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.runs.controller import RunController
from opsd.daemon.runs.launcher import LaunchRequest, TorchrunLauncher
from opsd.daemon.runs.spec import ModelFacts
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.gate import GateReport, GateVerdict, Measurement
from opsd.daemon.types.runs import Run, TriggerKind


class AnyAdapter:
    def __init__(self, store: SqlStore) -> None:
        self._store = store

    async def admit(self, run: Run, adapter_dir: Path, sha256: str) -> Adapter:
        return self._store.add_adapter(
            Adapter(
                name=f"opsd-{sha256[:16]}",
                sha256=sha256,
                lora_id=0,
                state=AdapterState.CANDIDATE,
                run_id=run.id,
                path=str(adapter_dir),
                rank=4,
                alpha=8.0,
                size_bytes=1,
                model_fingerprint="f" * 64,
                created_unix_s=0.0,
            )
        )

    async def withdraw(self, name: str) -> None:
        """Nothing is loaded."""


class AnyTrial:
    @asynccontextmanager
    async def on_trial(self, adapter_dir: Path, sha256: str) -> AsyncIterator[AdapterHandle]:
        yield AdapterHandle(f"opsd-{sha256[:16]}", 99, str(adapter_dir))


class PassingGate:
    def num_items(self) -> int:
        return 1

    def num_target_items(self) -> int:
        return 1

    async def measure(
        self, run: Run, adapter: AdapterHandle | None, on_progress: Callable[[int, int], None]
    ) -> list[Measurement]:
        return [Measurement("any", 1, 1.0, 1.0)]

    async def evaluate(
        self, run: Run, candidate: Adapter, on_progress: Callable[[int, int], None]
    ) -> GateReport:
        on_progress(2, 2)
        return GateReport(
            run_id=run.id,
            candidate=candidate.name,
            incumbent="base",
            verdict=GateVerdict.PASS,
            explanation="nothing was asked",
            suites=(),
            started_unix_s=0.0,
            finished_unix_s=1.0,
        )


class NothingHeldOut:
    def is_held_out(self, prompt: str) -> str | None:
        return None


def launcher(fake: str) -> TorchrunLauncher:
    if not fake:
        return TorchrunLauncher()

    def command(request: LaunchRequest) -> list[str]:
        return [sys.executable, fake, str(request.run_dir / "run.json")]

    return TorchrunLauncher(command=command)


def fingerprint(model_dir: str) -> str:
    """Of a model that is not there, any will do: the fake trainer does not look."""
    return model_fingerprint(Path(model_dir)) if Path(model_dir).exists() else "f" * 64


async def serve(options: argparse.Namespace) -> None:
    settings = json.loads(options.settings) | {"state_dir": options.state_dir}
    store = open_store(f"sqlite:///{options.state_dir}/opsd.db")
    controller = RunController(
        store=store,
        launcher=launcher(options.fake),
        intake=AnyAdapter(store),
        trials=AnyTrial(),
        evaluator=PassingGate(),
        held_out=NothingHeldOut(),
        model=ModelFacts(
            options.model_dir, "float32", fingerprint(options.model_dir), max_lora_rank=64
        ),
        config=OpsdConfig.model_validate(settings),
    )
    await controller.start()
    if options.trigger:
        await controller.trigger(
            TriggerKind.OPERATOR, actor="test", reason="", request_id=options.trigger
        )
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state_dir")
    parser.add_argument("model_dir")
    parser.add_argument("settings")
    parser.add_argument("--fake", default="")
    parser.add_argument("--trigger", default="")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
