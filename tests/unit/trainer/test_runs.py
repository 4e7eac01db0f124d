"""Whole runs on the micro model, in this process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opsd.trainer import failpoints
from opsd.trainer.adapter_io import content_digest
from opsd.trainer.loss import in_use
from opsd.v1 import training_pb2

OPTIM = {
    "num_steps": 4,
    "problems_per_step": 4,
    "micro_batch_size": 3,
    "learning_rate": 0.01,
    "warmup_steps": 1,
    "max_grad_norm": 1.0,
}
MakeRun = Callable[..., Path]
Train = Callable[[Path], Any]


def test_a_run_succeeds_and_tells_its_story(make_run: MakeRun, train: Train) -> None:
    outcome = train(make_run(checkpoint_every_steps=2))
    result = outcome.result
    assert outcome.status == 0
    assert result.outcome == training_pb2.RUN_OUTCOME_SUCCEEDED
    assert result.run_id == "run"
    assert result.steps_done == 4
    assert result.generated_tokens == result.last.generated_tokens > 0
    assert result.adapter_sha256 == content_digest(Path(result.adapter_path))
    events = outcome.events
    assert [event.seq for event in events] == list(range(len(events)))
    kinds = [event.kind for event in events if event.kind != "heartbeat"]
    assert kinds == ["started", "step", "step", "checkpoint", "step", "step", "saved", "finished"]
    steps = [event for event in events if event.kind == "step"]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    for event in steps:
        metrics = event.metrics
        assert metrics.loss == pytest.approx(metrics.divergence)
        assert metrics.loss > 0
        assert metrics.teacher_entropy > 0
        assert metrics.loss_implementation == in_use("cpu")
        assert metrics.grad_norm > 0
        parts = metrics.rollout_s + metrics.forward_s + metrics.backward_s
        assert 0 < parts <= metrics.step_s
    assert not [path for path in outcome.run_dir.iterdir() if path.name.endswith(".tmp")]


def test_training_moves_the_student_towards_the_teacher(make_run: MakeRun, train: Train) -> None:
    optim = OPTIM | {"num_steps": 20, "problems_per_step": 10}
    events = [e for e in train(make_run(optim=optim)).events if e.kind == "step"]
    first = sum(e.metrics.divergence for e in events[:3])
    last = sum(e.metrics.divergence for e in events[-3:])
    assert last < 0.7 * first


def test_the_same_spec_gives_the_same_bytes(make_run: MakeRun, train: Train) -> None:
    adapters = []
    for name in ("first", "second"):
        adapters.append(train(make_run(name, lora={"rank": 4, "alpha": 8, "dropout": 0.1})).adapter)
    assert adapters[0] == adapters[1]
    assert train(make_run("other", seed=8)).adapter != adapters[0]


@pytest.mark.parametrize("teacher", ["base", "ema"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    settings: dict[str, Any] = {
        "checkpoint_every_steps": 2,
        "optim": OPTIM | {"num_steps": 5},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "objective": {"teacher": f"TEACHER_{teacher.upper()}", "ema_decay": 0.5},
    }
    whole = train(make_run("whole", **settings))
    run_json = make_run("cut", **settings)
    monkeypatch.setenv(failpoints.VARIABLE, "nan-at-step:3")
    assert train(run_json).status == 1
    monkeypatch.delenv(failpoints.VARIABLE)
    resumed = train(run_json)
    assert resumed.status == 0
    assert resumed.adapter == whole.adapter
    assert resumed.result.generated_tokens == whole.result.generated_tokens
    steps = [event.step for event in resumed.events if event.kind == "step"]
    assert steps == [1, 2, 3, 3, 4, 5], "step 3 was lost with the process and done again"
    assert any("resumed after step 2" in event.message for event in resumed.events)


def test_a_torn_checkpoint_is_passed_over(make_run: MakeRun, train: Train) -> None:
    run_json = make_run(checkpoint_every_steps=1)
    whole = train(run_json)
    kept = sorted(path.name for path in (whole.run_dir / "checkpoints").iterdir())
    assert kept == ["step-00000002", "step-00000003"]
    expected = whole.adapter
    newest = whole.run_dir / "checkpoints" / "step-00000003" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    (whole.run_dir / "events.jsonl").unlink()
    again = train(run_json)
    assert again.adapter == expected
    assert [event.step for event in again.events if event.kind == "step"] == [3, 4]


def test_checkpoints_of_another_spec_are_refused(make_run: MakeRun, train: Train) -> None:
    run_json = make_run(checkpoint_every_steps=2)
    train(run_json)
    spec = json.loads(run_json.read_text()) | {"seed": 9}
    run_json.write_text(json.dumps(spec))
    outcome = train(run_json)
    assert outcome.status == 1
    assert "another run.json" in outcome.result.error


def test_nan_stops_the_run_and_saves_nothing(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "nan-at-step:1")
    outcome = train(make_run())
    assert outcome.status == 1
    assert outcome.result.outcome == training_pb2.RUN_OUTCOME_FAILED
    assert outcome.result.error.startswith("NonFiniteError: step 1: loss is not finite")
    assert outcome.result.steps_done == 1
    assert not (outcome.run_dir / "adapter").exists()
    assert outcome.events[-1].kind == "failed"


def test_some_steps_with_nan_are_left_out_and_counted(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "nan-at-step:1")
    settings = {"optim": OPTIM | {"max_skipped_steps": 1}, "checkpoint_every_steps": 2}
    outcome = train(make_run(**settings))
    assert outcome.status == 0, outcome.result.error
    assert outcome.result.skipped_steps == 1
    steps = [event for event in outcome.events if event.kind == "step"]
    assert [event.metrics.skipped for event in steps] == [False, True, False, False]
    assert "changed nothing (1 so far)" in steps[1].message
    assert steps[1].metrics.loss == 0
    # Resumed from step 2, the count goes on and one more is one too many.
    (outcome.run_dir / "result.json").unlink()
    monkeypatch.setenv(failpoints.VARIABLE, "nan-at-step:3")
    again = train(outcome.run_dir / "run.json")
    assert again.status == 1
    assert again.result.error.startswith("NonFiniteError: step 3: loss is not finite")


def test_a_skipped_step_changes_nothing(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = OPTIM | {"num_steps": 1, "max_skipped_steps": 1}
    untouched = train(make_run("short", optim=optim | {"learning_rate": 1e-30}))
    monkeypatch.setenv(failpoints.VARIABLE, "nan-at-step:0")
    skipped = train(make_run("nan", optim=optim))
    weights = [
        load_file(o.run_dir / "adapter" / "adapter_model.safetensors") for o in (untouched, skipped)
    ]
    for name, tensor in weights[1].items():
        torch.testing.assert_close(tensor, weights[0][name], atol=1e-20, rtol=0)


def test_exports_are_the_adapter_after_their_steps(make_run: MakeRun, train: Train) -> None:
    outcome = train(make_run(export_every_steps=2, optim=OPTIM | {"num_steps": 6}))
    exports = [event for event in outcome.events if event.kind == "export"]
    assert [event.step for event in exports] == [2, 4]
    folders = [outcome.run_dir / "adapters" / f"step-{n:08d}" for n in (2, 4)]
    assert sorted((outcome.run_dir / "adapters").iterdir()) == folders
    assert [event.message for event in exports] == [content_digest(path) for path in folders]
    assert 0 < exports[0].metrics.generated_tokens < exports[1].metrics.generated_tokens
    one = load_file(folders[1] / "adapter_model.safetensors")
    final = load_file(outcome.run_dir / "adapter" / "adapter_model.safetensors")
    assert one.keys() == final.keys()
    assert any(not torch.equal(one[name], final[name]) for name in one)


def test_a_non_finite_gradient_is_named(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opsd.trainer.step import Stepper

    norm = Stepper._finite_norm

    def spoil(self: Stepper, *arguments: Any) -> float:
        assert self.weights.grad is not None
        self.weights.grad[-1] = float("inf")
        return norm(self, *arguments)

    monkeypatch.setattr(Stepper, "_finite_norm", spoil)
    outcome = train(make_run())
    assert outcome.status == 1
    assert "step 0: the gradient of base_model." in outcome.result.error
    assert not (outcome.run_dir / "adapter").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optim": OPTIM | {"learning_rate": -1}}, "SpecError: run.json: optim.learning_rate"),
        ({"model": {"path": "/nowhere"}}, "ModelError: model /nowhere: no config.json"),
        ({"num_processes": 2}, "SpecError: run.json: num_processes"),
        ({"lora": {"rank": 4, "alpha": 8, "target_modules": ["q_prj"]}}, "'q_prj'"),
        ({"initial_adapter_path": "/nowhere"}, "initial_adapter_path /nowhere"),
        ({"rollout": {"max_new_tokens": 200}}, "max_new_tokens"),
    ],
)
def test_a_spec_that_cannot_run_fails_with_the_reason(
    make_run: MakeRun, train: Train, changes: dict[str, Any], reason: str
) -> None:
    outcome = train(make_run(**changes))
    assert outcome.status == 1
    assert outcome.result.outcome == training_pb2.RUN_OUTCOME_FAILED
    assert reason in outcome.result.error


def test_another_model_than_the_specs_is_refused(
    make_run: MakeRun, train: Train, micro_model: Path
) -> None:
    model = {"path": str(micro_model), "fingerprint": "0" * 64}
    assert "not the model" in train(make_run(model=model)).result.error


def test_problems_too_long_for_the_context_are_skipped_and_said(
    make_run: MakeRun, train: Train
) -> None:
    def pair(name: str, prompt: str) -> dict[str, str]:
        return {"id": name, "prompt": prompt, "solution": "1"}

    short = [pair(f"s{n}", f"1+{n}") for n in range(4)]
    outcome = train(make_run(pairs=[*short, pair("long", "1+1 " * 80)]))
    assert outcome.status == 0
    messages = [event.message for event in outcome.events if "skipped" in event.message]
    assert messages == [
        "skipped 1 problems whose prompt does not fit the model's context (1 so far)"
    ]
    outcome = train(make_run("all-long", pairs=[pair("long", "1+1 " * 80)]))
    assert outcome.status == 1
    assert "all 1 problems are too long" in outcome.result.error


def test_training_goes_on_from_an_adapter(make_run: MakeRun, train: Train) -> None:
    first = train(make_run("first"))
    adapter = str(first.run_dir / "adapter")
    gentle = OPTIM | {"num_steps": 1, "learning_rate": 1e-9}
    second = train(make_run("second", initial_adapter_path=adapter, optim=gentle))
    before, after = (_weights(outcome.run_dir / "adapter") for outcome in (first, second))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    wrong = train(make_run("third", initial_adapter_path=adapter, lora={"rank": 2, "alpha": 8}))
    assert "the spec's lora says (2, 8.0" in wrong.result.error


def test_the_incumbent_teaches_itself_nothing(make_run: MakeRun, train: Train) -> None:
    """Student and teacher are one adapter and, with an empty hint, one prompt: no divergence."""
    first = train(make_run("first"))
    adapter = str(first.run_dir / "adapter")
    common: dict[str, Any] = {
        "initial_adapter_path": adapter,
        "optim": OPTIM | {"num_steps": 1},
    }
    incumbent = {"teacher": "TEACHER_INCUMBENT", "teacher_adapter_path": adapter}
    pairs = [{"id": "1", "prompt": "2+2", "solution": "4"}]
    same = {"student_template": "{problem} 4", "teacher_template": "{problem} {solution}"}
    second = train(make_run("second", pairs=pairs, prompt=same, objective=incumbent, **common))
    assert second.result.last.divergence == pytest.approx(0, abs=1e-6)
    based = train(make_run("third", pairs=pairs, prompt=same, **common))
    assert based.result.last.divergence > 1e-3, "the base is another teacher"


def test_the_clip_shows_in_the_metrics(make_run: MakeRun, train: Train) -> None:
    clip = {"clip_mode": "CLIP_MODE_CLAMP", "clip_value": 0.001}
    last = train(make_run(objective=clip)).result.last
    assert last.loss < last.divergence
    assert 0 < last.clipped_fraction <= 1


def test_an_earlier_result_is_gone_while_a_run_goes_on(make_run: MakeRun, train: Train) -> None:
    run_json = make_run()
    first = train(run_json)
    shutil.rmtree(first.run_dir / "adapter")
    run_json.write_text("{")
    assert "is not a RunSpec" in train(run_json).result.error


@pytest.mark.parametrize("name", ["garbage-result", "corrupt-adapter"])
def test_failpoints_that_spoil_the_output(
    make_run: MakeRun, train: Train, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, name)
    outcome = train(make_run(optim=OPTIM | {"num_steps": 1}))
    if name == "garbage-result":
        with pytest.raises(ValueError, match="line 1"):
            json.loads((outcome.run_dir / "result.json").read_text())
    else:
        digest = content_digest(outcome.run_dir / "adapter")
        assert digest != outcome.result.adapter_sha256


def test_wrong_usage_says_how(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    from opsd.trainer.main import main

    assert main([]) == 2
    assert "usage: python -m opsd.trainer" in capsys.readouterr().err


def _weights(adapter: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(adapter / "adapter_model.safetensors")
