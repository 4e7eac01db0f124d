"""Tokens × vocabulary is never held: the peak does not grow with the tokens."""

import subprocess
import sys
from pathlib import Path

import pytest

from opsd.trainer.loss import native

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to see the peak"
)
VOCAB, SIZE, CHUNK = 50_000, 8, 32
SCRIPT = f"""
import sys, torch
from opsd.trainer.loss import clipped_kl
torch.set_num_threads(1)
tokens, implementation, dtype = int(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3])

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

def run(tokens):
    student = torch.randn(tokens, {SIZE}).to(dtype).requires_grad_()
    out = clipped_kl(student, torch.randn(tokens, {SIZE}).to(dtype), weight, clip="clamp",
                     clip_value=0.05, chunk_size={CHUNK}, implementation=implementation)
    out.loss.backward()

weight = torch.randn({VOCAB}, {SIZE}).to(dtype)
run({CHUNK})
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
run(tokens)
print(status("VmHWM") - before)
"""


def peak_bytes(tokens: int, implementation: str, dtype: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tokens), implementation, dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not native.is_available(), reason="opsd.trainer._C is not built")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_peak_does_not_grow_with_the_tokens(dtype: str) -> None:
    chunk_bytes = 2 * CHUNK * VOCAB * 4
    many = peak_bytes(40 * CHUNK, "native", dtype)
    assert many < 1.5 * chunk_bytes, "more than one chunk is held"
    assert many - peak_bytes(CHUNK, "native", dtype) < 0.5 * chunk_bytes
