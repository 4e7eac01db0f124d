"""Every target explains itself, and fails with advice where there is no environment yet."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()


def declared_targets() -> set[str]:
    [phony] = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    return set(phony.split())


def test_help_lists_every_target() -> None:
    output = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    described = re.findall(r"^  make (\w+) +\S", output, re.MULTILINE)
    assert set(described) == declared_targets()
    assert len(described) == len(set(described))


def test_the_promised_targets_exist() -> None:
    promised = {"setup", "demo", "test", "check", "proto", "bench", "lock", "clean", "help"}
    assert promised <= declared_targets()


def test_targets_without_an_environment_name_the_first_step(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    outcome = subprocess.run(["make", "test"], cwd=tmp_path, capture_output=True, text=True)
    assert outcome.returncode != 0
    assert "run 'make setup' first" in outcome.stderr
