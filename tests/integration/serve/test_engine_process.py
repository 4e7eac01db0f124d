"""What the engine's own process is set to before vLLM builds the model there."""

from __future__ import annotations

import subprocess
import sys

COMPILES = """
import torch
from opsd.daemon.serve.engine_process import prepare_cpu
from vllm.v1.sample.ops.logprobs import batched_count_greater_than
from torch._dynamo.utils import counters


def num_compiled():
    for size in (1, 2, 3):
        counts = batched_count_greater_than(torch.eye(size), torch.full((size, 1), 0.5))
        assert counts.tolist() == [1] * size
    return counters["stats"]["unique_graphs"]


prepare_cpu()
print(num_compiled())
torch.compiler.set_stance("default")  # as vLLM has it by itself
print(num_compiled())
"""


def test_on_a_cpu_the_first_request_for_log_probabilities_compiles_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPILES], capture_output=True, text=True, check=True, timeout=300
    )
    prepared, by_itself = (int(line) for line in done.stdout.split()[-2:])
    assert prepared == 0
    assert by_itself > 0
