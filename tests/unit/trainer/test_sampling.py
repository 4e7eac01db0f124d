"""Runs whose attempts another process samples: the right weights, stale ones, and none."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.trainer.conftest import OPTIM
from tests.unit.trainer.engine_server import Engine, sampling_engine

from opsd.trainer.mismatch import LogprobGap
from opsd.trainer.sampling import StudentSampling

MakeRun = Callable[..., Path]
Train = Callable[[Path], Any]
SETTINGS = {"optim": OPTIM | {"num_steps": 5, "learning_rate": 0.05}}


@pytest.fixture
def engine(micro_model: Path, tmp_path: Path) -> Iterator[tuple[dict[str, str], Engine]]:
    with sampling_engine(tmp_path, micro_model) as (address, made):
        yield {"address": address}, made


def rollout(**changes: Any) -> dict[str, Any]:
    return {"max_new_tokens": 8, "temperature": 1.0, "sampler": "SAMPLER_ENGINE"} | changes


def steps(outcome: Any) -> list[Any]:
    assert outcome.status == 0, outcome.result.error
    return [event.metrics for event in outcome.events if event.kind == "step"]


def test_a_run_samples_from_the_engine_with_the_weights_of_every_step(
    make_run: MakeRun, train: Train, engine: tuple[dict[str, str], Engine]
) -> None:
    support, served = engine
    metrics = steps(train(make_run(rollout=rollout(), support=support, **SETTINGS)))
    assert served.loaded == [0, 1, 2, 3, 4]
    assert all(0 < m.sampler_logprob_gap < 1e-4 for m in metrics)
    assert all(m.staleness_steps == 0 and m.grad_norm > 0 for m in metrics)


def test_an_engine_with_a_stale_adapter_stops_the_run(
    make_run: MakeRun, train: Train, engine: tuple[dict[str, str], Engine]
) -> None:
    support, served = engine
    served.stale = True
    outcome = train(make_run(rollout=rollout(max_logprob_gap=0.02), support=support, **SETTINGS))
    assert outcome.status == 1
    assert outcome.result.error.startswith("SamplerMismatchError: step 1: log-probabilities")
    assert "a stale or foreign adapter" in outcome.result.error
    assert outcome.result.steps_done == 1, "step 0 was sampled with what it should"


def test_sampling_ahead_is_a_step_old_measured_and_corrected(
    make_run: MakeRun,
    train: Train,
    engine: tuple[dict[str, str], Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support, served = engine
    weights: list[float] = []
    corrected = StudentSampling._corrected

    def spy(self: StudentSampling, batch: Any, old_T: torch.Tensor) -> Any:
        found = corrected(self, batch, old_T)
        weights.extend(weight for attempt in found for weight in attempt.importance)
        return found

    monkeypatch.setattr(StudentSampling, "_corrected", spy)
    ahead = rollout(max_staleness_steps=1, importance_cap=1.5, temperature=1.2)
    outcome = train(make_run(rollout=ahead, support=support, **SETTINGS))
    metrics = steps(outcome)
    assert [m.staleness_steps for m in metrics] == [0, 1, 1, 1, 1]
    assert all(m.sampler_logprob_gap < 1e-4 for m in metrics), "by the weights that sampled"
    assert served.loaded == [0, 1, 2, 3]
    assert 0 < min(weights) < 0.99
    assert max(weights) == pytest.approx(1.5)


@pytest.mark.parametrize("method", ["METHOD_GRPO", "METHOD_STAR", "METHOD_SDPO"])
def test_methods_take_stale_attempts(
    make_run: MakeRun, train: Train, engine: tuple[dict[str, str], Engine], method: str
) -> None:
    support, _ = engine
    ahead = rollout(max_staleness_steps=1, rollouts_per_problem=2)
    run = make_run(rollout=ahead, support=support, objective={"method": method}, **SETTINGS)
    assert [m.staleness_steps for m in steps(train(run))] == [0, 1, 1, 1, 1]


def test_nothing_is_sampled_ahead_across_a_checkpoint(
    make_run: MakeRun,
    train: Train,
    engine: tuple[dict[str, str], Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    support, _ = engine
    settings = SETTINGS | {
        "rollout": rollout(max_staleness_steps=1),
        "support": support,
        "checkpoint_every_steps": 3,
    }
    whole = train(make_run("whole", **settings))
    assert [m.staleness_steps for m in steps(whole)] == [0, 1, 1, 0, 1]
    run_json = make_run("cut", **settings)
    monkeypatch.setenv("OPSD_TRAINER_FAILPOINT", "nan-at-step:4")
    assert train(run_json).status == 1
    monkeypatch.delenv("OPSD_TRAINER_FAILPOINT")
    assert train(run_json).adapter == whole.adapter


def test_an_engine_that_is_not_there_is_named(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from opsd.trainer.samplers.engine import EngineSampler

    patient = EngineSampler.__init__

    def impatient(self: EngineSampler, *arguments: Any, **named: Any) -> None:
        patient(self, *arguments, **named, patience_s=0.2)

    monkeypatch.setattr(EngineSampler, "__init__", impatient)
    nobody = {"address": f"unix:{tmp_path}/nobody.sock"}
    outcome = train(make_run(rollout=rollout(), support=nobody, **SETTINGS))
    assert outcome.status == 1
    assert nobody["address"] in outcome.result.error


def test_a_gap_that_is_no_number_is_too_wide() -> None:
    from opsd.trainer.errors import SamplerMismatchError

    gap = LogprobGap.of(torch.tensor([-1.0, float("nan")]), torch.tensor([-1.0, -1.0]))
    with pytest.raises(SamplerMismatchError):
        gap.check(1e9, 0)
    LogprobGap().check(0.1, 0)
