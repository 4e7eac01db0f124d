"""Adapters on trial come in verified, one at a time, and leave nothing behind."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from opsd.daemon.adapters.files import CONFIG_NAME, WEIGHTS_NAME, content_digest
from opsd.daemon.adapters.intake import ServedModel, adapter_name
from opsd.daemon.adapters.trial import Trials
from opsd.daemon.errors import AdapterError, EngineError, NotFoundError
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import AdapterHandle

FINGERPRINT = "f" * 64


class FakeStore:
    def __init__(self) -> None:
        self.rows: dict[str, Adapter] = {}
        self.last_id = 40

    def get_adapter(self, name: str) -> Adapter:
        if name not in self.rows:
            raise NotFoundError(name)
        return self.rows[name]

    def allot_lora_id(self) -> int:
        self.last_id += 1
        return self.last_id


class FakeResidency:
    def __init__(self) -> None:
        self.held: dict[AdapterHandle, str] = {}
        self.most = 0
        self.broken = False

    def handles(self) -> list[AdapterHandle]:
        return list(self.held)

    async def ensure(self, handle: AdapterHandle, role: str) -> None:
        if self.broken:
            raise EngineError("engine down")
        assert (Path(handle.path) / WEIGHTS_NAME).is_file()
        self.held[handle] = role
        self.most = max(self.most, len(self.held))

    async def retire(self, name: str) -> None:
        self.held = {handle: role for handle, role in self.held.items() if handle.name != name}


class Desk:
    def __init__(self, root: Path) -> None:
        self.root = root
        model = root / "model"
        model.mkdir()
        save_file({"l.q_proj.weight": np.zeros((4, 6), np.float32)}, model / "m.safetensors")
        self.store = FakeStore()
        self.residency = FakeResidency()
        self.verified: list[str] = []
        self.model = ServedModel(model, FINGERPRINT, 8)
        self.trials = self.new()

    def new(self) -> Trials:
        return Trials(
            self.store,
            state_dir=self.root,
            model=self.model,
            residency=self.residency,
            verify_known=lambda adapter: self.verified.append(adapter.name),
        )

    def write(self, name: str, value: float, base_model: str = FINGERPRINT) -> tuple[Path, str]:
        directory = self.root / "run" / name
        directory.mkdir(parents=True)
        prefix = "base_model.model.l.q_proj.lora"
        tensors = {
            f"{prefix}_A.weight": np.full((2, 6), value, np.float32),
            f"{prefix}_B.weight": np.full((4, 2), value, np.float32),
        }
        save_file(tensors, directory / WEIGHTS_NAME)
        config = {
            "base_model_name_or_path": base_model,
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4.0,
            "target_modules": ["q_proj"],
        }
        (directory / CONFIG_NAME).write_text(json.dumps(config))
        return directory, content_digest(directory)

    def copies(self) -> list[Path]:
        return list((self.root / "trials").glob("*"))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_a_trial_is_loaded_from_a_copy_and_leaves_nothing(desk: Desk) -> None:
    source, sha256 = desk.write("step-00000010", 1.0)
    async with desk.trials.on_trial(source, sha256) as handle:
        assert (handle.name, handle.lora_id) == (adapter_name(sha256), 41)
        assert desk.residency.held == {handle: "candidate"}
        assert Path(handle.path).parent == desk.root / "trials"
    assert desk.residency.held == {}
    assert desk.copies() == []
    async with desk.trials.on_trial(source, sha256) as again:
        assert again.lora_id == 42  # the engine keys its weights by it


async def test_trials_take_turns(desk: Desk) -> None:
    async def one(number: int) -> None:
        source, sha256 = desk.write(f"step-{number}", float(number + 1))
        async with desk.trials.on_trial(source, sha256):
            await asyncio.sleep(0.01)

    await asyncio.gather(*map(one, range(4)))
    assert desk.residency.most == 1


@pytest.mark.parametrize("case", ["other digest", "other model", "not finite", "a link"])
async def test_what_is_not_as_promised_is_refused_unloaded(desk: Desk, case: str) -> None:
    value = float("nan") if case == "not finite" else 1.0
    base_model = "e" * 64 if case == "other model" else FINGERPRINT
    source, sha256 = desk.write("step", value, base_model)
    if case == "other digest":
        sha256 = "0" * 64
    if case == "a link":
        (source / CONFIG_NAME).rename(desk.root / "elsewhere.json")
        (source / CONFIG_NAME).symlink_to(desk.root / "elsewhere.json")
    with pytest.raises(AdapterError):
        async with desk.trials.on_trial(source, sha256):
            raise AssertionError("loaded")
    assert desk.residency.most == 0
    assert desk.copies() == []


async def test_an_engine_that_is_down_leaves_no_copy(desk: Desk) -> None:
    source, sha256 = desk.write("step", 1.0)
    desk.residency.broken = True
    with pytest.raises(EngineError):
        async with desk.trials.on_trial(source, sha256):
            raise AssertionError("loaded")
    assert desk.copies() == []


@pytest.mark.parametrize("loaded", [True, False])
async def test_the_bytes_of_a_stored_adapter_are_that_adapter(desk: Desk, loaded: bool) -> None:
    source, sha256 = desk.write("step", 1.0)
    state = AdapterState.INCUMBENT
    row = Adapter(
        adapter_name(sha256), sha256, 7, state, "r", str(source), 2, 4.0, 1, FINGERPRINT, 0.0
    )
    desk.store.rows[row.name] = row
    if loaded:
        await desk.residency.ensure(row.handle(), "incumbent")
    async with desk.trials.on_trial(source, sha256) as handle:
        assert handle == row.handle()
    assert desk.verified == [row.name]
    assert desk.residency.held == ({row.handle(): "incumbent"} if loaded else {})
    assert source.is_dir()


async def test_what_a_killed_daemon_left_goes(desk: Desk) -> None:
    (desk.root / "trials" / "half").mkdir(parents=True)
    desk.new()
    assert desk.copies() == []
