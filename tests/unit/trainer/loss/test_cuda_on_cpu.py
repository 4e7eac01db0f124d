"""The CUDA kernels' logic without a GPU: their source, compiled as C++ against `cuda_on_cpu/`.

Indices, slices, reductions over warps, blocks and clusters, and what is written where are those of
the GPU. Not covered: speed, the memory model, the compiler; tests/gpu has those.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import opsd.trainer.loss

HERE = Path(__file__).parent
CSRC = Path(opsd.trainer.loss.__file__).parents[1] / "csrc"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from torch.utils.cpp_extension import include_paths

    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    target = folder / "libcuda_on_cpu.so"
    torch_lib = Path(torch.__file__).parent / "lib"
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-shared", "-fPIC", "-w"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{HERE / 'cuda_on_cpu'}"]
    command += [f"-isystem{path}" for path in include_paths()]
    command += ["-x", "c++", str(CSRC / "row_ops_cuda.cu"), str(CSRC / "row_ops.cpp")]
    command += ["-o", str(target), f"-L{torch_lib}", "-ltorch_cpu", "-ltorch", "-lc10", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return target


@pytest.mark.slow
@pytest.mark.parametrize("major", [8, 9], ids=["without clusters", "with clusters"])
def test_kernels_equal_the_reference(library: Path, major: int) -> None:
    # A process of its own: the operators have the names of the compiled ones.
    done = subprocess.run(
        [sys.executable, str(HERE / "cuda_on_cpu" / "compare.py"), str(library)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_ON_CPU_MAJOR": str(major)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["cases"] == 81
