"""The trainer as its own process group: ranks, signals, crashes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from safetensors.torch import load_file

from opsd.trainer import failpoints
from opsd.v1 import training_pb2

MakeRun = Callable[..., Path]
Train = Callable[[Path], Any]

pytestmark = pytest.mark.slow


def start(
    run_json: Path, ranks: int = 1, failpoint: str = "", **variables: str
) -> "subprocess.Popen[str]":
    """Starts the trainer the way the daemon does, in a process group of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(launcher if ranks > 1 else []), "-m", "opsd.trainer"]
    fixed = {"OMP_NUM_THREADS": "1", failpoints.VARIABLE: failpoint}
    process = subprocess.Popen(
        [*command, str(run_json)],
        env=os.environ | fixed | variables,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started.append((process, run_json))
    return process


_started: "list[tuple[subprocess.Popen[str], Path]]" = []


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """A test that fails must not leave an endless trainer to slow down all that follow."""
    yield
    while _started:
        process, run_json = _started.pop()
        # Ranks are in sessions of their own, with the run's directory in their command line.
        for line in subprocess.run(
            ["pgrep", "-f", str(run_json)], capture_output=True, text=True, check=False
        ).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(line), signal.SIGKILL)
        process.communicate()


def finish(process: "subprocess.Popen[str]") -> str:
    """Its stderr, once it has ended."""
    _, errors = process.communicate(timeout=120)
    return errors


def result(run_json: Path) -> training_pb2.RunResult:
    text = (run_json.parent / "result.json").read_text()
    return json_format.Parse(text, training_pb2.RunResult())


def wait_for_event(run_json: Path, kind: str, process: "subprocess.Popen[str]") -> None:
    events = run_json.parent / "events.jsonl"
    for _ in range(2400):
        if events.exists() and f'"kind": "{kind}"' in events.read_text():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"no event {kind!r}")


def test_two_ranks_train_what_one_trains(make_run: MakeRun, train: Train) -> None:
    two_json = make_run("two", num_processes=2)
    process = start(two_json, ranks=2)
    alone = train(make_run("one"))
    errors = finish(process)
    assert process.returncode == 0, errors
    two = result(two_json)
    assert two.outcome == training_pb2.RUN_OUTCOME_SUCCEEDED
    assert two.generated_tokens == alone.result.generated_tokens
    assert two.last.loss == pytest.approx(alone.result.last.loss, rel=1e-4)
    assert two.last.grad_norm == pytest.approx(alone.result.last.grad_norm, rel=1e-4)
    one_weights = load_file(alone.run_dir / "adapter" / "adapter_model.safetensors")
    two_weights = load_file(Path(two.adapter_path) / "adapter_model.safetensors")
    for name, tensor in one_weights.items():
        torch.testing.assert_close(two_weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_failing_rank_is_named_not_taken_for_a_cancellation(make_run: MakeRun) -> None:
    run_json = make_run("run", num_processes=2, checkpoint_every_steps=1)
    # Rank 1 alone cannot read the shard: a fault that rank 0 does not see.
    site = run_json.parent / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import opsd.trainer.data as data\n"
        "    def broken(ref):\n"
        "        raise data.ShardError('rank 1 cannot read the shard')\n"
        "    data.load_shard = broken\n"
    )
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    process = start(run_json, ranks=2, PYTHONPATH=path)
    errors = finish(process)
    assert process.returncode != 0
    found = result(run_json)
    assert found.outcome == training_pb2.RUN_OUTCOME_FAILED, errors
    assert "rank 1: ShardError: rank 1 cannot read the shard" in found.error


def test_sigterm_cancels_within_two_seconds(make_run: MakeRun) -> None:
    run_json = make_run("run", optim=_endless())
    process = start(run_json)
    wait_for_event(run_json, "step", process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    errors = finish(process)
    assert time.monotonic() - began < 2
    assert process.returncode == 143, errors
    assert result(run_json).outcome == training_pb2.RUN_OUTCOME_CANCELLED
    assert result(run_json).steps_done >= 1
    assert not (run_json.parent / "adapter").exists()
    last = json.loads((run_json.parent / "events.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["message"]) == ("failed", "cancelled")


def test_sigterm_to_the_whole_group_of_two_ranks_cancels(make_run: MakeRun) -> None:
    run_json = make_run("run", optim=_endless(), num_processes=2)
    process = start(run_json, ranks=2)
    wait_for_event(run_json, "step", process)
    os.killpg(process.pid, signal.SIGTERM)
    finish(process)
    assert process.returncode != 0
    assert result(run_json).outcome == training_pb2.RUN_OUTCOME_CANCELLED


def test_a_rank_whose_peer_was_cancelled_before_it_is_cancelled_too(make_run: MakeRun) -> None:
    run_json = make_run("run", optim=_endless(), num_processes=2)
    process = start(run_json, ranks=2)
    wait_for_event(run_json, "step", process)
    # torchrun sees it end and sends the other one its own signal a moment later.
    os.kill(pid_of_rank(run_json, 1), signal.SIGTERM)
    errors = finish(process)
    assert result(run_json).outcome == training_pb2.RUN_OUTCOME_CANCELLED, errors


def pid_of_rank(run_json: Path, rank: int) -> int:
    found = subprocess.run(
        ["pgrep", "-f", f"opsd.trainer {run_json}"], capture_output=True, text=True, check=True
    )
    for pid in map(int, found.stdout.split()):
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return pid
    raise AssertionError(f"no rank {rank}")


def test_a_hang_is_silence(make_run: MakeRun) -> None:
    run_json = make_run("run", heartbeat_interval_s=0.05)
    process = start(run_json, failpoint="hang-at-step:1")
    wait_for_event(run_json, "step", process)
    before = (run_json.parent / "events.jsonl").read_bytes()
    time.sleep(0.5)
    assert (run_json.parent / "events.jsonl").read_bytes() == before
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 143


@pytest.mark.parametrize(
    ("failpoint", "status"), [("crash-before-result", -signal.SIGKILL), ("exit-at-step:1", 3)]
)
def test_a_crash_leaves_no_result_and_the_next_start_finishes(
    make_run: MakeRun, train: Train, failpoint: str, status: int
) -> None:
    run_json = make_run("run", checkpoint_every_steps=1)
    process = start(run_json, failpoint=failpoint)
    finish(process)
    assert process.returncode == status
    assert not (run_json.parent / "result.json").exists()
    # What a power cut leaves of the last line.
    with (run_json.parent / "events.jsonl").open("ab") as events:
        events.write(b'{"seq": "99", "ki')
    again = train(run_json)
    assert again.status == 0
    assert again.adapter == train(make_run("whole")).adapter
    assert again.events[-1].kind == "finished", "every line is whole again"


def _endless() -> dict[str, Any]:
    return {
        "num_steps": 100_000,
        "problems_per_step": 4,
        "learning_rate": 0.001,
        "micro_batch_size": 4,
    }
