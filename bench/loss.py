"""What the loss costs in time and memory, forward and backward, against its peers and its floor.

From hidden states [T, D] in bf16 and one frozen lm_head [V, D] to the loss and the gradient of the
student's hidden states. The same numbers go into each implementation:

  floor      the three bare matrix products in the weights' dtype: two logits, one gradient
  opsd       clipped_kl, clip="clamp"
  published  the formula as it stands: log_softmax, kl_div, clamp, sum, in fp32, left to autograd
  trl        TRL's ChunkedDivergenceFunction, forward KL (it cannot clip)
  liger      Liger-Kernel, forward KL (it cannot clip): on a GPU its fused linear JSD, on a CPU its
             chunked LigerFusedLinearJSDLoss, which makes the weight's gradient too

Every measurement is a process of its own, so that peak memory is its own; implementations take
turns (ABCABC…), and the median over the rounds counts. Peak memory is what is there at most above
weights and hidden states. The peers are not among opsd's dependencies: without them their rows say
so.

    pip install --no-deps -r bench/loss-peers.txt
    python bench/loss.py [--device cpu|cuda] [--cases 1024x256,…] [--rounds 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

V = 151_936
CLIP_VALUE = 0.05
IMPLEMENTATIONS = ("floor", "opsd", "published", "trl", "liger")
ALL_CASES = [(size, tokens) for size in (1024, 2048, 4096) for tokens in (256, 1024, 4096)]

Step = Callable[[], Any]


def steps(name: str, student: Any, teacher: Any, weight: Any) -> Step:
    """One forward and backward pass; raises ImportError where a peer is not installed."""
    import torch

    if name == "floor":

        def products() -> None:
            logits = student.detach() @ weight.T
            del logits
            logits = teacher @ weight.T
            _ = logits @ weight

        return products
    if name == "opsd":
        from opsd.trainer.loss import clipped_kl

        def ours() -> None:
            out = clipped_kl(
                student,
                teacher,
                weight,
                clip="clamp",
                clip_value=CLIP_VALUE,
                implementation="native",
            )
            out.loss.backward()  # type: ignore[no-untyped-call]

        return ours
    if name == "published":

        def published() -> None:
            s = torch.log_softmax((student @ weight.T).float(), dim=-1)
            with torch.no_grad():
                t = torch.log_softmax((teacher @ weight.T).float(), dim=-1)
            e = torch.nn.functional.kl_div(s, t, reduction="none", log_target=True)
            e.clamp(max=CLIP_VALUE).sum(-1).mean().backward()  # type: ignore[no-untyped-call]

        return published
    if name == "trl":
        from trl.kernels.chunked_divergence import (
            ChunkedDivergenceFunction,
        )

        def trl() -> None:
            divergence, _ = ChunkedDivergenceFunction.apply(
                student, weight, None, teacher, weight, None, 0.0, 1.0
            )
            divergence.mean().backward()

        return trl
    return liger_step(student, teacher, weight)


def liger_step(student: Any, teacher: Any, weight: Any) -> Step:
    import torch

    if student.device.type == "cuda":
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        fused = LigerFusedLinearJSD(jsd_beta=0.0)

        def on_gpu() -> None:
            fused(student, weight, teacher, weight, None).backward()

        return on_gpu
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    chunked = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False
    )
    labels = torch.zeros(len(student), dtype=torch.long)

    def on_cpu() -> None:
        chunked(student, weight, teacher, weight, labels).backward()

    return on_cpu


def measure(name: str, device: str, size: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Runs in a process of its own."""
    import torch

    generator = torch.Generator().manual_seed(0)
    # Made in parts, so that making them is not the peak.
    weight = torch.empty(V, size, dtype=torch.bfloat16, device=device)
    for start in range(0, V, 4096):
        part = weight[start : start + 4096]
        part.copy_(torch.randn(part.shape, generator=generator) * size**-0.5)
    hidden = torch.randn(2, tokens, size, generator=generator).bfloat16().to(device)
    student, teacher = hidden[0].clone().requires_grad_(), hidden[1].clone()
    del hidden
    step = steps(name, student, teacher, weight)
    memory = Memory(device)
    step()
    peak_bytes = memory.peak_bytes()
    seconds = []
    for _ in range(repeats):
        student.grad = None
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "peak_extra_bytes": peak_bytes}


class Memory:
    """The most memory there is at once from here on, above what is there now."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda = torch.cuda if device == "cuda" else None
        if self._cuda is not None:
            self._cuda.synchronize()
            self._cuda.reset_peak_memory_stats()
            self._start = int(self._cuda.memory_allocated())
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forgets the process's own peak
            self._start = _status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        if self._cuda is not None:
            self._cuda.synchronize()
            return int(self._cuda.max_memory_allocated()) - self._start
        return _status_bytes("VmHWM") - self._start


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def in_a_process(name: str, device: str, size: int, tokens: int, repeats: int) -> dict[str, Any]:
    """What `measure` found, or a note why there is nothing."""
    needed = tokens * V * 4 * 6 if name == "published" else 0
    if device == "cpu" and needed > _available_bytes():
        return {"note": f"needs about {needed / 2**30:.0f} GiB"}
    command = [sys.executable, __file__, "--measure", f"{name},{device},{size},{tokens},{repeats}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    if "ModuleNotFoundError" in last:
        return {"note": f"not installed ({last.split(':')[-1].strip()})"}
    if name in ("opsd", "floor"):
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return {"note": f"failed: {last[:120]}"}


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def compare(device: str, size: int, tokens: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """A row per implementation."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(rounds):
        for name in IMPLEMENTATIONS:
            found[name].append(in_a_process(name, device, size, tokens, repeats))
    seconds = {
        name: statistics.median(one["seconds"] for one in each)
        for name, each in found.items()
        if all("seconds" in one for one in each)
    }
    rows = []
    for name, each in found.items():
        row: dict[str, Any] = {"device": device, "impl": name, "V": V, "D": size, "T": tokens}
        if name in seconds:
            row["seconds"] = seconds[name]
            row["ratio_to_floor"] = seconds[name] / seconds["floor"]
            row["ratio_to_opsd"] = seconds[name] / seconds["opsd"]
            row["peak_extra_bytes"] = max(one["peak_extra_bytes"] for one in each)
        else:
            row |= next(one for one in each if "note" in one)
        rows.append(row)
        print(table_line(row), flush=True)
    return rows


def table_line(row: dict[str, Any]) -> str:
    where = f"{row['D']:>5} {row['T']:>5}  {row['impl']:<10}"
    if "seconds" not in row:
        return f"{where} {row['note']}"
    return (
        f"{where} {row['seconds']:>9.4f} {row['ratio_to_floor']:>9.2f} "
        f"{row['ratio_to_opsd']:>8.2f} "
        f"{row['peak_extra_bytes'] / 2**20:>10.0f}"
    )


def machine(device: str) -> str:
    import torch

    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    return f"{model}, {os.cpu_count()} cores, torch {torch.__version__}"


def parse_cases(text: str) -> list[tuple[int, int]]:
    cases = []
    for case in text.split(","):
        size, _, tokens = case.partition("x")
        if not (size.isdecimal() and tokens.isdecimal() and int(size) and int(tokens)):
            raise argparse.ArgumentTypeError(f"{case!r} is no case: DxT is expected, e.g. 1024x256")
        cases.append((int(size), int(tokens)))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None)
    parser.add_argument(
        "--cases",
        type=parse_cases,
        default=None,
        help="DxT,…; by default all of {1024,2048,4096}x{256,1024,4096} on a GPU, and those of "
        "256 tokens on a CPU, where the others take most of an hour",
    )
    parser.add_argument("--rounds", type=int, default=None, help="default: 3 on a GPU, 1 on a CPU")
    parser.add_argument(
        "--repeats", type=int, default=None, help="default: 10 on a GPU, 2 on a CPU"
    )
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, device, size, tokens, repeats = options.measure.split(",")
        print(json.dumps(measure(name, device, int(size), int(tokens), int(repeats))))
        return
    import torch

    from opsd.trainer.loss import in_use

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device == "cuda"
    cases = options.cases or [case for case in ALL_CASES if gpu or case[1] == 256]
    print(f"{machine(device)}; opsd uses {in_use(device)}; V = {V}, bf16, forward and backward")
    print("    D     T  impl         seconds   x floor   x opsd  extra MiB")
    rows: list[dict[str, Any]] = []
    for size, tokens in cases:
        rows += compare(
            device,
            size,
            tokens,
            options.rounds or (3 if gpu else 1),
            options.repeats or (10 if gpu else 2),
        )
    if options.json:
        document = {"machine": machine(device), "opsd": in_use(device), "rows": rows}
        options.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
