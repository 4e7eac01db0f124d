"""What a machine lacks is named, all at once, with its fix, before anything is changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("awk", "bash", "cat", "df", "grep", "mktemp", "rm", "sed", "uname")


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A folder to use as PATH: the shell's everyday tools, no compiler, no make, no Python."""
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (tmp_path / tool).symlink_to(found)
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def good_python(folder: Path) -> None:
    program(folder, "python3", f'exec "{sys.executable}" "$@"')


def good_builders(folder: Path) -> None:
    for name in ("g++", "make"):
        found = shutil.which(name)
        assert found is not None, name
        program(folder, name, f'PATH="{os.environ["PATH"]}" exec "{found}" "$@"')


def preflight(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(path / "bash"), str(ROOT / "scripts" / "preflight.sh")],
        cwd=ROOT,
        env={"PATH": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_good_machine_passes(bare_machine: Path) -> None:
    good_python(bare_machine)
    good_builders(bare_machine)
    outcome = preflight(bare_machine)
    assert outcome.returncode == 0, outcome.stderr
    findings = dict(line.split("=", 1) for line in outcome.stdout.splitlines())
    assert findings["FLAVOUR"] == "cpu"
    assert findings["PYTHON"] == str(bare_machine / "python3")
    assert findings["CXX"] == "g++"


def test_everything_missing_is_reported_at_once(bare_machine: Path) -> None:
    outcome = preflight(bare_machine)
    assert outcome.returncode == 1
    assert outcome.stdout == ""
    for complaint in ("no Python that fits", "no C++ compiler", "no make"):
        assert complaint in outcome.stderr
    assert outcome.stderr.count("fix: ") == 3
    assert "nothing was downloaded or changed" in outcome.stderr


def test_a_missing_compiler_is_named_with_its_fix(bare_machine: Path) -> None:
    good_python(bare_machine)
    good_builders(bare_machine)
    (bare_machine / "g++").unlink()
    outcome = preflight(bare_machine)
    assert outcome.returncode == 1
    assert "no C++ compiler" in outcome.stderr
    assert "apt-get install g++" in outcome.stderr
    assert "no Python" not in outcome.stderr


def test_a_compiler_that_does_not_work_is_told_from_a_missing_one(bare_machine: Path) -> None:
    good_python(bare_machine)
    good_builders(bare_machine)
    program(bare_machine, "g++", "echo \"unrecognized option '-std=c++20'\" >&2; exit 1")
    outcome = preflight(bare_machine)
    assert outcome.returncode == 1
    assert "g++ does not build a C++20 program: unrecognized option" in outcome.stderr


@pytest.mark.parametrize("version", ["3.10.14", "3.15.0"])
def test_a_wrong_python_is_named_with_its_version(bare_machine: Path, version: str) -> None:
    good_builders(bare_machine)
    program(bare_machine, "python3.11", f"echo 'is Python {version}' >&2; exit 1")
    outcome = preflight(bare_machine, PYTHON="python3.11")
    assert outcome.returncode == 1
    assert f"python3.11 is Python {version}" in outcome.stderr
    assert "make setup PYTHON=" in outcome.stderr


def test_the_version_check_itself_refuses_other_pythons() -> None:
    """The probe that preflight runs inside a candidate, run here under a pretended version."""
    script = (ROOT / "scripts" / "preflight.sh").read_text()
    probe = script.partition("<<'PY'\n")[2].partition("\nPY\n")[0]
    for version, fits in [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False)]:
        pretended = f"import sys; sys.version_info = (*{version}, 0, 'final', 0)\n{probe}"
        outcome = subprocess.run([sys.executable, "-c", pretended], capture_output=True, text=True)
        assert (outcome.returncode == 0) is fits, version


def test_a_named_python_that_does_not_exist(bare_machine: Path) -> None:
    good_python(bare_machine)
    good_builders(bare_machine)
    outcome = preflight(bare_machine, PYTHON="/nowhere/python3.11")
    assert outcome.returncode == 1
    assert "none of /nowhere/python3.11" in outcome.stderr


def test_too_little_room(bare_machine: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    good_python(bare_machine)
    good_builders(bare_machine)
    (bare_machine / "df").unlink()
    program(bare_machine, "df", "echo header; echo 'disk 9 9 1024 9% /'")
    outcome = preflight(bare_machine, VENV=str(tmp_path_factory.mktemp("none") / ".venv"))
    assert outcome.returncode == 1
    assert "1 GiB free here; the cpu environment needs 6 GiB" in outcome.stderr


def test_a_gpu_selects_cuda_and_can_be_overruled(bare_machine: Path) -> None:
    good_python(bare_machine)
    good_builders(bare_machine)
    program(bare_machine, "nvidia-smi", "echo 'GPU 0: NVIDIA H100'")
    program(bare_machine, "df", "echo header; echo 'disk 9 9 99999999 9% /'")
    assert "FLAVOUR=cuda\n" in preflight(bare_machine).stdout
    assert "FLAVOUR=cpu\n" in preflight(bare_machine, FLAVOUR="cpu").stdout


def test_a_driver_that_fails_is_no_gpu(bare_machine: Path) -> None:
    good_python(bare_machine)
    good_builders(bare_machine)
    program(bare_machine, "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert "FLAVOUR=cpu\n" in preflight(bare_machine).stdout


def test_an_unknown_flavour_is_refused(bare_machine: Path) -> None:
    outcome = preflight(bare_machine, FLAVOUR="rocm")
    assert outcome.returncode == 2
    assert "FLAVOUR=rocm: expected cpu, cuda or auto" in outcome.stderr
