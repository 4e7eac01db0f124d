"""Students of a run, and what transformers says of their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from opsd.trainer.adapter_io import adapter_config, save_adapter
from opsd.trainer.rollout import Rollout
from opsd.v1 import training_pb2


def run_spec(model: Path, run_dir: Path, **rollout: object) -> training_pb2.RunSpec:
    """Of a run whose students are the random adapters of the integration tests."""
    return training_pb2.RunSpec(
        run_id="0a1b2c3d-0000-4000-8000-000000000000",
        model=training_pb2.ModelRef(path=str(model), dtype="float32"),
        rollout=training_pb2.RolloutSpec(
            **({"max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0} | rollout)  # type: ignore[arg-type]
        ),
        lora=training_pb2.LoraSpec(
            rank=8,
            alpha=8,
            target_modules=[
                *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
            ],
        ),
        seed=11,
        output_dir=str(run_dir),
        device="cpu",
        threads_per_process=1,
    )


def writer_of(adapter: Path, spec: training_pb2.RunSpec) -> Callable[[Path], str]:
    """Writes this adapter's weights as a student."""
    state = load_file(adapter / "adapter_model.safetensors")
    return lambda target: save_adapter(target, adapter_config(spec.lora, ""), state)


def with_adapter(model: Path, adapter: Path) -> torch.nn.Module:
    """The model with this adapter, in transformers and fp32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network: torch.nn.Module = PeftModel.from_pretrained(base, adapter).eval()
    return network


@torch.no_grad()
def logprobs_of(
    network: torch.nn.Module, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout]
) -> torch.Tensor:
    """Of all sampled tokens, one after the other; nats, at temperature 1."""
    found = []
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        answer = torch.tensor(rollout.token_ids)
        logits = network(input_ids=torch.tensor([[*prompt, *rollout.token_ids]])).logits[0]
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(logprobs.gather(-1, answer.unsqueeze(-1)).squeeze(-1))
    return torch.cat(found)


def sampled_logprobs(rollouts: Sequence[Rollout]) -> torch.Tensor:
    """What the sampler said of the same tokens."""
    return torch.tensor([value for rollout in rollouts for value in rollout.logprobs])
