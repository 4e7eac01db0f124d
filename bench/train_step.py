"""One optimiser step of opsd against TRL's own on-policy distillation trainer, on the same tokens.

A Qwen3 with the full vocabulary of 151,936 and few layers, random weights, LoRA on all seven
projections with the same adapter on both sides, forward KL to the model without it over the whole
vocabulary, AdamW. The responses are given, the same to both, so that the step is what is compared:

  opsd        the trainer's own step (`Stepper.run`)
  trl         `trl.DistillationTrainer.train`, the teacher a second copy of the model, as usual
  trl-shared  the same with a teacher of the student's own base weights: its best case in memory

Each measurement is a process of its own, so that peak memory is its own; sides take turns
(ABCABC…). Seconds are the median step of a process; a ratio is that of two neighbours in time, its
median and spread over the rounds. Peak memory is what is there at most above what there was before
the model was loaded. `--sampled N` lets both sides also sample N tokens for each prompt within the
step, with transformers' cache on both sides, and trains on those.

    pip install --no-deps -r bench/loss-peers.txt
    python bench/train_step.py [--cases uneven,even] [--dtype float32] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

V = 151_936
LORA = {"rank": 64, "alpha": 128}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEQUENCES = 8
# Tokens of prompts and responses: as they come from problems of different length, and all the same.
CASES = {
    "uneven": ([24, 61, 33, 48, 17, 90, 40, 52], [37, 192, 64, 24, 110, 51, 160, 82]),
    "even": ([46] * SEQUENCES, [90] * SEQUENCES),
}
SIDES = ("opsd", "trl", "trl-shared")

Sequences = list[tuple[tuple[int, ...], tuple[int, ...]]]


def sequences(case: str, sampled: int) -> Sequences:
    """Prompts and responses as token ids."""
    draw = random.Random(0)
    prompts, responses = CASES[case]
    if sampled:
        responses = [sampled] * SEQUENCES

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1000, V) for _ in range(count))

    return [(ids(p), ids(r)) for p, r in zip(prompts, responses, strict=True)]


def make_model(folder: Path, hidden: int, layers: int) -> None:
    """Random weights, a tokenizer that nobody asks anything, and an adapter that is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = {"<eos>": 0, "a": 1}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")),
        eos_token="<eos>",
        pad_token="<eos>",
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=V,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    for path in (folder / "model", folder / "model-bf16"):
        tokenizer.save_pretrained(path)
    model.save_pretrained(folder / "model")
    adapted = get_peft_model(
        model,
        LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=PROJECTIONS),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero, as peft begins: teacher and student would agree
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    adapted.unload().bfloat16().save_pretrained(folder / "model-bf16")


def opsd_step(
    folder: Path, options: dict[str, Any]
) -> tuple[Callable[[], None], Callable[[], Any]]:
    """The step and, after it, its loss (mean over tokens, nats)."""
    import torch
    from google.protobuf import json_format

    from opsd.trainer.distributed import Ranks
    from opsd.trainer.methods import Answer
    from opsd.trainer.model import load_base
    from opsd.trainer.rollout import sample_rollouts
    from opsd.trainer.spec import fill_defaults
    from opsd.trainer.step import Stepper
    from opsd.v1 import training_pb2

    given = sequences(options["case"], options["sampled"])
    shard = folder / f"shard-{os.getpid()}.jsonl"
    line = json.dumps({"id": "1", "prompt": "a", "solution": "a"}) + "\n"
    shard.write_text(line)
    document = {
        "model": {"path": str(model_path(folder, options)), "dtype": options["dtype"]},
        "shard": {
            "path": str(shard),
            "sha256": hashlib.sha256(line.encode()).hexdigest(),
            "num_pairs": 1,
        },
        "rollout": {"max_new_tokens": options["sampled"] or 1},
        "lora": LORA | {"target_modules": PROJECTIONS},
        "optim": {
            "num_steps": 100,
            "problems_per_step": SEQUENCES,
            "micro_batch_size": SEQUENCES,
            "learning_rate": 5e-6,
            "max_grad_norm": 0.1,
        },
        "parallel": {"gradient_checkpointing": options["checkpointing"]},
        "initial_adapter_path": str(folder / "adapter"),
    }
    spec = json_format.ParseDict(document, training_pb2.RunSpec())
    fill_defaults(spec)
    base = load_base(spec.model, torch.device("cpu"))

    class GivenResponses(Stepper):
        def _answers(
            self, step: int, epoch: int, pairs: Any, durations: Any, metrics: Any
        ) -> list[Answer]:
            responses = [response for _, response in given]
            if options["sampled"]:
                with self.network.rollout_network() as network:
                    rollouts = sample_rollouts(
                        network,
                        [prompt for prompt, _ in given],
                        range(SEQUENCES),
                        spec.rollout,
                        seed=0,
                        step=step,
                        eos_ids=frozenset(),
                        pad_id=0,
                    )
                responses = [rollout.token_ids for rollout in rollouts]
            return [
                Answer(prompt, prompt, response, False)
                for (prompt, _), response in zip(given, responses, strict=True)
            ]

    stepper = GivenResponses(spec, Ranks("cpu", 1), base, lambda: None)
    losses: list[float] = []

    def step() -> None:
        losses.append(stepper.run(len(losses)).loss)

    return step, lambda: losses[0]


def trl_step(folder: Path, options: dict[str, Any]) -> tuple[Callable[[], None], Callable[[], Any]]:
    """As `opsd_step`; the step runs all steps there are, and `seconds` takes their times."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.utils import logging as transformers_logging
    from trl import DistillationConfig, DistillationTrainer

    transformers_logging.disable_progress_bar()
    path = model_path(folder, options)
    dtype = getattr(torch, options["dtype"])
    given = sequences(options["case"], options["sampled"])

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")

    base = load()
    if options["side"] == "trl":
        teacher = load()
    else:
        with torch.device("meta"):
            teacher = AutoModelForCausalLM.from_config(
                base.config, dtype=dtype, attn_implementation="sdpa"
            )
        teacher.load_state_dict(base.state_dict(), assign=True)
        teacher.model.rotary_emb = base.model.rotary_emb
        teacher.tie_weights()
    teacher.eval().requires_grad_(False)
    student = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)

    class GivenResponses(DistillationTrainer):  # type: ignore[misc]
        def _tokenize_prompts(self, prompts: list[Any]) -> Any:
            return [list(prompt) for prompt, _ in given], None, {}

        def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **more: Any) -> Any:
            if options["sampled"]:
                return super()._generate_single_turn(prompt_ids, *rest, **more)
            return [list(response) for _, response in given]

    seconds: list[tuple[float, float]] = []
    losses: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            wall, cpu = self.began
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    config = DistillationConfig(
        output_dir=str(folder / f"trl-{os.getpid()}"),
        per_device_train_batch_size=SEQUENCES,
        max_steps=1 + options["repeats"],
        learning_rate=5e-6,
        lr_scheduler_type="constant",
        max_grad_norm=0.1,
        optim="adamw_torch_fused",
        beta=0.0,
        temperature=1.0,
        max_completion_length=options["sampled"] or 512,
        generation_kwargs={"min_new_tokens": options["sampled"]} if options["sampled"] else None,
        gradient_checkpointing=options["checkpointing"],
        bf16=False,  # autocast; the model is in the dtype that was asked for
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        shuffle_dataset=False,
    )
    trainer = GivenResponses(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=[{"prompt": "a"}] * SEQUENCES,
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
        callbacks=[Watch()],
    )

    def run() -> None:
        trainer.train()
        options["seconds"] = seconds

    return run, lambda: losses[0]


def model_path(folder: Path, options: dict[str, Any]) -> Path:
    return folder / ("model" if options["dtype"] == "float32" else "model-bf16")


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Runs in a process of its own; the first step warms up and is left out of the seconds."""
    import torch

    torch.set_num_threads(options["threads"])
    folder = Path(options["folder"])
    if options["side"] == "opsd":
        import peft  # noqa: F401

        import opsd.trainer.step  # noqa: F401
    else:
        import trl.trainer.distillation_trainer  # noqa: F401
    before = _status_bytes("VmRSS")
    make = opsd_step if options["side"] == "opsd" else trl_step
    step, loss = make(folder, options)
    Path("/proc/self/clear_refs").write_text("5")  # loading has its own peak
    step()
    seconds: list[tuple[float, float]] = options.get("seconds", [])[1:]
    if not seconds:
        for _ in range(options["repeats"]):
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        "seconds": statistics.median(wall for wall, _ in seconds),
        "cpu_seconds": statistics.median(cpu for _, cpu in seconds),
        "peak_bytes": _status_bytes("VmHWM") - before,
        "loss": loss(),
    }


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_a_process(options: dict[str, Any]) -> dict[str, Any]:
    """What `measure` found, or a note why there is nothing."""
    command = [sys.executable, __file__, "--measure", json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if options["side"] == "opsd" or "ModuleNotFoundError" not in last:
        raise SystemExit(f"{options['side']} failed:\n{done.stderr}")
    return {"note": f"not installed ({last.split(':')[-1].strip()})"}


def compare(options: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """A row per side."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            found[side].append(in_a_process(options | {"side": side}))
    tokens = sum(len(response) for _, response in sequences(options["case"], options["sampled"]))
    rows = []
    for side, each in found.items():
        row = {key: options[key] for key in ("case", "dtype", "checkpointing", "sampled")}
        row |= {"side": side, "response_tokens": tokens}
        if "note" in each[0]:
            row |= each[0]
        else:
            for name in ("seconds", "cpu_seconds"):
                ratios = [
                    one[name] / own[name] for one, own in zip(each, found["opsd"], strict=True)
                ]
                row[name] = statistics.median(one[name] for one in each)
                row[f"{name}_to_opsd"] = statistics.median(ratios)
                row[f"{name}_spread"] = [min(ratios), max(ratios)]
            row["tokens_per_s"] = tokens / row["seconds"]
            row["peak_bytes"] = max(one["peak_bytes"] for one in each)
            row["loss"] = each[0]["loss"]
        rows.append(row)
        print(table_line(row), flush=True)
    return rows


def table_line(row: dict[str, Any]) -> str:
    case = row["case"] if not row["sampled"] else f"sampled {row['sampled']}"
    where = f"{case:<11} {row['dtype']:<8} {'yes' if row['checkpointing'] else 'no':<4}"
    where += f"{row['side']:<10}"
    if "seconds" not in row:
        return f"{where} {row['note']}"
    low, high = row["seconds_spread"]
    return (
        f"{where} {row['seconds']:>8.2f} {row['tokens_per_s']:>7.1f} "
        f"{row['seconds_to_opsd']:>6.2f} ({low:.2f}-{high:.2f}) {row['cpu_seconds_to_opsd']:>6.2f} "
        f"{row['peak_bytes'] / 2**20:>9.0f} {row['loss']:.4f}"
    )


def machine() -> str:
    import torch

    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--cases", default="uneven,even", help="of uneven, even")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true", help="gradient, on both sides")
    parser.add_argument("--sampled", type=int, default=0, help="tokens to sample for each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="steps that count, a process")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(json.loads(asked.measure))))
        return
    if asked.make:
        make_model(asked.make, asked.hidden, asked.layers)
        return
    cases = asked.cases.split(",")
    if unknown := [case for case in cases if case not in CASES]:
        parser.error(f"--cases: {unknown[0]!r} is not one of {', '.join(CASES)}")
    from opsd.trainer.loss import in_use

    print(
        f"{machine()}, {asked.threads} threads; opsd's loss is {in_use('cpu')}; hidden size "
        f"{asked.hidden}, {asked.layers} layers, V = {V}, {SEQUENCES} sequences, LoRA {LORA}"
    )
    print(
        "case        dtype    ckpt side       seconds tokens/s x opsd (spread)  x CPU peak MiB loss"
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        size = ["--hidden", str(asked.hidden), "--layers", str(asked.layers)]
        subprocess.run(
            [sys.executable, __file__, "--make", folder, *size], check=True, capture_output=True
        )
        for case in cases:
            options = {
                "case": case,
                "dtype": asked.dtype,
                "checkpointing": asked.checkpointing,
                "sampled": asked.sampled,
                "threads": asked.threads,
                "repeats": asked.repeats,
                "folder": folder,
            }
            rows += compare(options, asked.rounds)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
