#!/usr/bin/env python3
"""Resolve pyproject.toml into requirements/{cpu,cuda,dev}.lock (run it through `make lock`).

Each lock is complete: every package, pinned with `==`, with the hashes of all files of that
version, for Linux on x86-64 and every CPython that pyproject.toml admits. Pins already in a lock
are kept; `--upgrade` lets them move. Metadata only: no wheel is downloaded.

torch's CPU build is not on the package index, so cpu.lock cannot hold its hashes; it has a file
of its own, requirements/torch-cpu.txt, and is installed first.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"

PLATFORM = (
    "platform_machine == 'x86_64' and platform_python_implementation == 'CPython' "
    "and sys_platform == 'linux'"
)
CPU_ALSO = [
    # What torch 2.13.0+cpu needs itself: it takes no part in the resolution of cpu.lock.
    *("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy"),
    # The Linux wheel of intel-openmp asks for it; uv reads the metadata of another platform's.
    "intel-cmplr-lib-ur==2024.2.1",
]
CUDA_ALSO = [
    # flashinfer-python names no range, and a CUDA 12 binding beside torch's CUDA 13 is no use.
    "cuda-python>=13",
]
# The reason is written in pyproject.toml, under [tool.uv].
NEVER_INSTALLED = ["torchaudio", "torchcodec", "torchvision"]

HEADER = """\
# {title}
# Made by `make lock` from pyproject.toml; do not edit.
# Linux x86-64, CPython {python}. Install with: pip install --no-deps --require-hashes -r {name}
"""


def drop_platform_marker(line: str) -> str:
    """Remove the marker that every line of a one-platform lock shares; keep what is left of it."""
    pin, separator, marker = line.partition(" ; ")
    if not separator:
        return line
    end = " \\" if marker.endswith(" \\") else ""
    clauses = marker.removesuffix(" \\").split(" and ")
    rest = [clause for clause in clauses if clause not in PLATFORM.split(" and ")]
    # Says nothing once the interpreter is CPython.
    rest = [clause for clause in rest if not clause.startswith("implementation_name != ")]
    return f"{pin} ; {' and '.join(rest)}{end}" if rest else f"{pin}{end}"


def resolve(
    name: str, title: str, arguments: list[str], *, also: list[str], excluded: list[str]
) -> None:
    """Write requirements/<name>.lock.

    `also` are requirements beyond those that `arguments` name; `excluded` packages take no part
    in the resolution.
    """
    lock = REQUIREMENTS / f"{name}.lock"
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "lock"
        # uv prefers the pins it finds in its output file.
        output.write_text(lock.read_text() if lock.exists() else "")
        inputs = Path(scratch) / "also.in"
        inputs.write_text("".join(f"{requirement}\n" for requirement in also))
        overrides = Path(scratch) / "overrides"
        overrides.write_text("".join(f"{p} ; sys_platform == 'never'\n" for p in excluded))
        command = [
            os.environ.get("UV", "uv"),
            *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
            *("--generate-hashes", "--no-header", "--no-emit-index-url"),
            *("--no-annotate", "--override", str(overrides), "-o", str(output)),
            *arguments,
            str(inputs),
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        body = [drop_platform_marker(line) for line in output.read_text().splitlines()]
    header = HEADER.format(title=title, python=python, name=lock.relative_to(ROOT))
    lock.write_text(header + "\n".join(body) + "\n")
    count = sum(1 for line in body if re.match(r"[a-z0-9]", line))
    print(f"{lock.relative_to(ROOT)}: {count} packages")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="let pins move to newer versions")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    resolve(
        "cpu",
        "opsd with the CPU engine, without torch (see torch-cpu.txt).",
        ["pyproject.toml", "--extra", "cpu", *upgrade],
        also=CPU_ALSO,
        excluded=["torch", *NEVER_INSTALLED],
    )
    resolve(
        "cuda",
        "opsd with the CUDA engine.",
        ["pyproject.toml", "--extra", "cuda", *upgrade],
        also=CUDA_ALSO,
        excluded=NEVER_INSTALLED,
    )
    # Under the other two as constraints: what they share has one version on either flavour.
    others = [f"--constraint=requirements/{flavour}.lock" for flavour in ("cpu", "cuda")]
    resolve(
        "dev",
        "Tools to build, check and test opsd; goes on top of cpu.lock or cuda.lock.",
        [*others, *upgrade],
        also=project["optional-dependencies"]["dev"],
        excluded=[],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
