"""The controller, the SQLite store and the real trainer under torchrun, on a model of no sense."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from opsd.daemon.adapters.files import content_digest
from opsd.daemon.runs.launcher import TorchrunLauncher
from opsd.daemon.runs.processes import run_processes
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pairs import Pair, PairInput, PairStatus, Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState

pytestmark = pytest.mark.slow

DAEMON = Path(__file__).parents[2] / "faults" / "runs_daemon.py"
NUM_STEPS = 100
SETTINGS = {
    "pool": {"device": "cpu", "num_devices": 1, "threads_per_process": 1},
    "runs": {"min_pairs": 3, "poll_interval_s": 0.1},
    "training": {
        "rollout": {"max_new_tokens": 8},
        "objective": {"clip_mode": "none"},
        "teacher_check": {"num_problems": 0},
        "lora": {"rank": 4, "alpha": 8.0},
        "optim": {
            "num_steps": NUM_STEPS,
            "problems_per_step": 4,
            "warmup_steps": 1,
            "learning_rate": 0.01,
        },
        "heartbeat_interval_s": 1.0,
        "checkpoint_every_steps": 5,
    },
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 model of a few thousand parameters with a byte tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("micro-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=264,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


class Machine:
    """A state directory with pairs, the daemon on it, and a look at its one run."""

    def __init__(self, state_dir: Path, model_dir: Path) -> None:
        self.state_dir = state_dir
        self.model_dir = model_dir
        self.url = f"sqlite:///{state_dir}/opsd.db"
        self.daemon: subprocess.Popen[str] | None = None
        store = open_store(self.url)
        for number in range(6):
            given = PairInput(
                str(uuid4()), f"{number}+1", str(number + 1), "exact", str(number + 1)
            )
            verdict = Verdict(VerdictKind.PASS, "exact", "")
            store.add_pair(
                Pair(given, PairStatus.VERIFIED, verdict, "t", 1.0, uuid4().hex, uuid4().hex)
            )
        store.close()

    def start(self) -> None:
        command = [sys.executable, str(DAEMON), str(self.state_dir), str(self.model_dir)]
        command += [json.dumps(SETTINGS), "--trigger", "the-one"]
        self.daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.daemon.stdout is not None
        assert self.daemon.stdout.readline() == "ready\n"

    def kill(self) -> None:
        if self.daemon is not None and self.daemon.stdout is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon.stdout.close()
            self.daemon = None

    def run(self) -> Run:
        store = open_store(self.url, exclusive=False)
        try:
            (run,) = store.list_runs(limit=2).items
            return store.get_run(run.id)
        finally:
            store.close()

    def until(self, holds: Callable[[Run], bool]) -> Run:
        deadline = time.monotonic() + 180
        while not holds(run := self.run()):
            assert run.state is not RunState.FAILED, f"{run.error}\n{run.log_tail}"
            assert time.monotonic() < deadline, f"never came true: {run}"
            time.sleep(0.1)
        return run


@pytest.fixture
def machine(tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.delenv("OPSD_TRAINER_FAILPOINT", raising=False)
    made = Machine(tmp_path, model_dir)
    made.start()
    yield made
    made.kill()
    run = made.run()
    if run.run_dir:
        TorchrunLauncher().terminate(run.id, Path(run.run_dir), grace_s=0.0)


def test_training_survives_the_daemon_and_ends_with_an_adapter_to_approve(
    machine: Machine,
) -> None:
    run = machine.until(lambda row: row.step >= 1)
    assert run.state is RunState.TRAINING
    machine.kill()
    trainers = set(run_processes(run.id, None))
    assert len(trainers) == 2, "torchrun's agent and its one rank"
    assert len({os.getsid(pid) for pid in trainers}) == 2, "ranks have sessions of their own"

    machine.start()
    assert set(run_processes(run.id, None)) <= trainers
    run = machine.until(lambda row: row.state is RunState.AWAITING_APPROVAL)

    assert (run.launches, run.step, run.num_steps) == (1, NUM_STEPS, NUM_STEPS)
    assert run.generated_tokens > 0
    assert json.loads(run.metrics_json)["learning_rate"] > 0
    assert run.candidate == f"opsd-{content_digest(Path(run.run_dir) / 'adapter')[:16]}"
    assert run_processes(run.id, None) == []


def test_a_lost_trainer_goes_on_from_its_checkpoint(machine: Machine) -> None:
    run = machine.until(lambda row: row.step >= 6)
    machine.kill()
    for pid in run_processes(run.id, None):
        os.kill(pid, signal.SIGKILL)
    assert not (Path(run.run_dir) / "result.json").exists(), "the trainer was too fast to be lost"
    machine.start()
    run = machine.until(lambda row: row.state is RunState.AWAITING_APPROVAL)
    assert (run.launches, run.step) == (2, NUM_STEPS)
    lines = (Path(run.run_dir) / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    restart = max(i for i, event in enumerate(events) if event["kind"] == "started")
    later = [event["step"] for event in events[restart:] if event["kind"] == "step"]
    assert min(later) > 5
