"""An adapter enters verified, whole and once, or not at all."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from opsd.daemon.adapters.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    content_digest,
    model_fingerprint,
)
from opsd.daemon.adapters.intake import AdapterIntake, adapter_name
from opsd.daemon.errors import AdapterError, EngineError, NotFoundError, StateError, StoreError
from opsd.daemon.store.api import Change
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.gate import GateReport
from opsd.daemon.types.runs import Run, RunState, TriggerKind

RUN = Run("run-1", RunState.EVALUATING, TriggerKind.OPERATOR, "me", "", 0.0, 0.0)
OTHER_RUN = replace(RUN, id="run-2")


class FakeStore:
    """Adapters in a dictionary; the rest of the contract is not used here."""

    def __init__(self) -> None:
        self.rows: dict[str, Adapter] = {}

    def add_adapter(self, adapter: Adapter) -> Adapter:
        row = replace(adapter, lora_id=len(self.rows) + 1)
        return self.rows.setdefault(adapter.name, row)

    def get_adapter(self, name: str) -> Adapter:
        if name not in self.rows:
            raise NotFoundError(name)
        return self.rows[name]

    def set_adapter_state(self, name: str, state: AdapterState) -> None:
        self.rows[name] = replace(self.rows[name], state=state)

    def list_adapters(self) -> list[Adapter]:
        raise AssertionError

    def get_incumbent(self) -> Incumbent:
        raise AssertionError

    def start_canary(
        self,
        name: str,
        *,
        share: float,
        expected_epoch: int,
        actor: str,
        reason: str,
        plan_json: str = "{}",
    ) -> Change:
        raise AssertionError

    def promote(
        self,
        name: str,
        *,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
        raise AssertionError

    def rollback(
        self,
        *,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
        raise AssertionError

    def reject(
        self, name: str, *, actor: str, reason: str, report: GateReport | None = None
    ) -> Change:
        raise AssertionError

    def allot_lora_id(self) -> int:
        raise AssertionError


class FakeResidency:
    def __init__(self) -> None:
        self.roles: dict[str, str] = {}
        self.retired: list[str] = []
        self.broken = False

    async def ensure(self, handle: AdapterHandle, role: str) -> None:
        if self.broken:
            raise EngineError("engine down")
        assert (Path(handle.path) / WEIGHTS_NAME).is_file()
        self.roles[handle.name] = role

    async def retire(self, name: str) -> None:
        self.retired.append(name)


class Desk:
    def __init__(self, root: Path) -> None:
        self.model = root / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")
        save_file({"l.q_proj.weight": np.zeros((4, 6), np.float32)}, self.model / "m.safetensors")
        self.fingerprint = model_fingerprint(self.model)
        self.output = self.write(root / "run" / "adapter", 1.0)
        self.sha256 = content_digest(self.output)
        self.state_dir = root / "state"
        self.store = FakeStore()
        self.residency = FakeResidency()
        self.intake = AdapterIntake(
            self.store,
            state_dir=self.state_dir,
            model_dir=self.model,
            fingerprint=self.fingerprint,
            max_rank=8,
            residency=self.residency,
            clock=lambda: 12.5,
        )

    def write(self, directory: Path, value: float, base_model: str | None = None) -> Path:
        directory.mkdir(parents=True)
        name = "base_model.model.l.q_proj.lora"
        tensors = {
            f"{name}_A.weight": np.full((2, 6), value, np.float32),
            f"{name}_B.weight": np.full((4, 2), value, np.float32),
        }
        save_file(tensors, directory / WEIGHTS_NAME)
        config = {
            "base_model_name_or_path": base_model or self.fingerprint,
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4.0,
            "target_modules": ["q_proj"],
        }
        (directory / CONFIG_NAME).write_text(json.dumps(config))
        return directory

    @property
    def home(self) -> Path:
        return self.state_dir / "adapters" / adapter_name(self.sha256)

    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.state_dir / "adapters").iterdir())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


async def test_an_adapter_is_copied_stored_and_loaded(desk: Desk) -> None:
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)
    assert adapter == Adapter(
        name=f"opsd-{desk.sha256[:16]}",
        sha256=desk.sha256,
        lora_id=1,
        state=AdapterState.CANDIDATE,
        run_id="run-1",
        path=str(desk.home),
        rank=2,
        alpha=4.0,
        size_bytes=sum(file.stat().st_size for file in desk.output.iterdir()),
        model_fingerprint=desk.fingerprint,
        created_unix_s=12.5,
    )
    assert desk.residency.roles == {adapter.name: "candidate"}
    assert desk.kept() == [adapter.name]
    assert content_digest(desk.home) == desk.sha256
    assert all(file.stat().st_mode & 0o222 == 0 for file in desk.home.iterdir())
    desk.intake.verify_known(adapter)


async def test_admitting_again_needs_no_source(desk: Desk) -> None:
    first = await desk.intake.admit(RUN, desk.output, desk.sha256)
    shutil.rmtree(desk.output)
    assert await desk.intake.admit(RUN, str(desk.output), desk.sha256.upper()) == first


async def test_other_bytes_than_announced_leave_nothing_behind(desk: Desk) -> None:
    data = bytearray((desk.output / WEIGHTS_NAME).read_bytes())
    data[-1] ^= 1
    (desk.output / WEIGHTS_NAME).write_bytes(data)
    with pytest.raises(AdapterError, match="content digest"):
        await desk.intake.admit(RUN, desk.output, desk.sha256)
    assert desk.kept() == []
    assert desk.store.rows == {}
    assert desk.residency.roles == {}


async def test_extra_files_and_links_are_refused_before_the_copy(desk: Desk) -> None:
    (desk.output / "training_args.bin").touch()
    with pytest.raises(AdapterError, match=r"unexpected 'training_args.bin'"):
        await desk.intake.admit(RUN, desk.output, desk.sha256)
    (desk.output / "training_args.bin").unlink()
    moved = desk.output.parent / "weights"
    (desk.output / WEIGHTS_NAME).rename(moved)
    (desk.output / WEIGHTS_NAME).symlink_to(moved)
    with pytest.raises(AdapterError, match="not a regular file"):
        await desk.intake.admit(RUN, desk.output, desk.sha256)
    assert desk.kept() == []


@pytest.mark.parametrize("sha256", ["", "abc", "../" * 21 + "x", "g" * 64])
async def test_a_malformed_digest_is_refused(desk: Desk, sha256: str) -> None:
    with pytest.raises(AdapterError, match="64 hexadecimal digits"):
        await desk.intake.admit(RUN, desk.output, sha256)
    assert not desk.state_dir.exists()


async def test_an_adapter_for_another_model_of_equal_shape_is_refused(
    desk: Desk, tmp_path: Path
) -> None:
    foreign = desk.write(tmp_path / "foreign", 1.0, base_model="e" * 64)
    with pytest.raises(AdapterError, match="made for base model e"):
        await desk.intake.admit(RUN, foreign, content_digest(foreign))
    assert desk.kept() == []


async def test_a_path_to_the_base_model_says_nothing(desk: Desk, tmp_path: Path) -> None:
    other = desk.write(tmp_path / "other", 1.0, base_model="/somewhere/model")
    assert (await desk.intake.admit(RUN, other, content_digest(other))).lora_id == 1


async def test_a_known_directory_that_rotted_is_refused(desk: Desk) -> None:
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)
    weights = desk.home / WEIGHTS_NAME
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    with pytest.raises(AdapterError, match="content digest"):
        await desk.intake.admit(RUN, desk.output, desk.sha256)
    with pytest.raises(AdapterError, match="content digest"):
        desk.intake.verify_known(adapter)


async def test_leftovers_of_a_killed_daemon_are_removed(desk: Desk) -> None:
    leftover = desk.state_dir / "adapters" / ".incoming-1234"
    leftover.mkdir(parents=True)
    (leftover / WEIGHTS_NAME).write_bytes(b"half")
    await desk.intake.admit(RUN, desk.output, desk.sha256)
    assert desk.kept() == [adapter_name(desk.sha256)]


async def test_an_engine_that_is_down_can_be_tried_again(desk: Desk) -> None:
    desk.residency.broken = True
    with pytest.raises(EngineError):
        await desk.intake.admit(RUN, desk.output, desk.sha256)
    desk.residency.broken = False
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)
    assert desk.residency.roles == {adapter.name: "candidate"}


async def test_a_state_dir_that_cannot_be_written_is_named(desk: Desk) -> None:
    desk.state_dir.mkdir()
    (desk.state_dir / "adapters").write_text("a file")
    with pytest.raises(StoreError, match="adapters"):
        await desk.intake.admit(RUN, desk.output, desk.sha256)


@pytest.mark.parametrize(
    ("state", "role"),
    [
        (AdapterState.CANDIDATE, "candidate"),
        (AdapterState.INCUMBENT, "incumbent"),
        (AdapterState.PREVIOUS, "previous"),
        (AdapterState.CANARY, "canary"),
    ],
)
async def test_the_run_that_made_it_finds_it_in_its_role(
    desk: Desk, state: AdapterState, role: str
) -> None:
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)
    desk.store.set_adapter_state(adapter.name, state)
    assert (await desk.intake.admit(RUN, desk.output, desk.sha256)).state is state
    assert desk.residency.roles == {adapter.name: role}


@pytest.mark.parametrize(
    "state",
    [AdapterState.INCUMBENT, AdapterState.PREVIOUS, AdapterState.CANARY, AdapterState.REJECTED],
)
async def test_another_run_cannot_bring_decided_bytes_again(
    desk: Desk, state: AdapterState
) -> None:
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)
    desk.store.set_adapter_state(adapter.name, state)
    with pytest.raises(StateError, match=f"which is {state.value}: train on new pairs"):
        await desk.intake.admit(OTHER_RUN, desk.output, desk.sha256)


async def test_an_adapter_without_effect_is_admitted_and_told(
    desk: Desk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noop = desk.write(tmp_path / "noop", 0.0)
    adapter = await desk.intake.admit(RUN, noop, content_digest(noop))
    assert f"adapter_noop adapter={adapter.name}" in caplog.text


async def test_a_row_for_another_model_is_not_served(desk: Desk) -> None:
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)
    with pytest.raises(AdapterError, match="was trained on the model with fingerprint"):
        desk.intake.verify_known(replace(adapter, model_fingerprint="0" * 64))


async def test_only_candidates_are_withdrawn(desk: Desk) -> None:
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)
    for state in (AdapterState.INCUMBENT, AdapterState.PREVIOUS, AdapterState.CANARY):
        desk.store.set_adapter_state(adapter.name, state)
        await desk.intake.withdraw(adapter.name)
    await desk.intake.withdraw("opsd-unknown")
    assert desk.residency.retired == []
    for state in (AdapterState.CANDIDATE, AdapterState.REJECTED):
        desk.store.set_adapter_state(adapter.name, state)
        await desk.intake.withdraw(adapter.name)
    assert desk.residency.retired == [adapter.name] * 2


async def test_a_known_adapter_needs_its_manifest(desk: Desk) -> None:
    adapter = await desk.intake.admit(RUN, desk.output, desk.sha256)

    def refuse(found: Adapter) -> None:
        raise AdapterError(f"{found.name}: no manifest vouches for it")

    guarded = AdapterIntake(
        desk.store,
        state_dir=desk.state_dir,
        model_dir=desk.model,
        fingerprint=desk.fingerprint,
        max_rank=8,
        residency=desk.residency,
        check_manifest=refuse,
    )
    with pytest.raises(AdapterError, match="no manifest vouches"):
        guarded.verify_known(adapter)
