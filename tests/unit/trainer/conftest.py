"""A model of a few thousand parameters with a byte tokenizer, and runs on it."""

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import json_format

from opsd.v1 import training_pb2

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<nothink>{% endif %}{% endif %}"
)
PAIRS = [
    {
        "id": f"p{number}",
        "prompt": f"{number}+{number * 7 % 10}" + "?" * (number % 3),
        "solution": str(number + number * 7 % 10),
        "reference": "",
        "verifier": "exact",
        "stratum": "easy",
    }
    for number in range(10)
]


OPTIM = {
    "num_steps": 4,
    "problems_per_step": 4,
    "micro_batch_size": 3,
    "learning_rate": 0.01,
    "warmup_steps": 1,
    "max_grad_norm": 1.0,
}


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random Qwen3 model; its answers are noise, its mechanics are real."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("micro-model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>", "<nothink>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=160,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def write_shard(path: Path, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes the shard; returns its ShardRef as JSON."""
    data = "".join(json.dumps(pair) + "\n" for pair in pairs).encode()
    path.write_bytes(data)
    return {
        "path": str(path),
        "sha256": hashlib.sha256(data).hexdigest(),
        "num_pairs": len(pairs),
    }


SpecMaker = Callable[..., Path]


@pytest.fixture
def make_run(micro_model: Path, tmp_path: Path) -> SpecMaker:
    """Makes a run directory with its run.json.

    Keyword arguments replace whole top-level fields; `pairs` replaces the shard's lines.
    """

    def make(name: str = "run", pairs: list[dict[str, Any]] = PAIRS, **changes: Any) -> Path:
        run_dir = tmp_path / name
        run_dir.mkdir()
        spec: dict[str, Any] = {
            "run_id": name,
            "model": {"path": str(micro_model), "dtype": "float32"},
            "shard": write_shard(run_dir / "shard.jsonl", pairs),
            "rollout": {"max_new_tokens": 8, "temperature": 1.0},
            "lora": {"rank": 4, "alpha": 8},
            "optim": dict(OPTIM),
            "seed": 7,
            "heartbeat_interval_s": 0.2,
            "output_dir": str(run_dir),
            "threads_per_process": 1,
        }
        spec.update(changes)
        path = run_dir / "run.json"
        path.write_text(json.dumps(spec))
        return path

    return make


@dataclass(frozen=True)
class Outcome:
    """What a finished trainer left behind."""

    status: int
    run_dir: Path

    @property
    def result(self) -> training_pb2.RunResult:
        text = (self.run_dir / "result.json").read_text()
        return json_format.Parse(text, training_pb2.RunResult())

    @property
    def events(self) -> list[training_pb2.TrainingEvent]:
        lines = (self.run_dir / "events.jsonl").read_text().splitlines()
        return [json_format.Parse(line, training_pb2.TrainingEvent()) for line in lines]

    @property
    def adapter(self) -> bytes:
        names = ("adapter_config.json", "adapter_model.safetensors")
        return b"".join((self.run_dir / "adapter" / name).read_bytes() for name in names)


@pytest.fixture
def train() -> Iterator[Callable[[Path], Outcome]]:
    """Runs the trainer in this process; its signal handlers are put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(run_json: Path) -> Outcome:
        from opsd.trainer.main import main

        return Outcome(main([str(run_json)]), run_json.parent)

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)
