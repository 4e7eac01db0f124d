"""The import contracts hold for the tree, and each one notices its own violation."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODULES = [
    *("daemon/opsd/daemon/" + name for name in ("app.py", "admin.py", "serve.py", "collect.py")),
    *("daemon/opsd/daemon/" + name for name in ("web.py", "adapters.py", "verify.py", "store.py")),
    *("daemon/opsd/daemon/" + name for name in ("types.py", "errors.py", "config.py", "demo.py")),
    "daemon/opsd/daemon/cli/main.py",
    "daemon/opsd/daemon/gate/decision.py",
    "daemon/opsd/daemon/gate/stats.py",
    "daemon/opsd/daemon/runs/states.py",
    "trainer/opsd/trainer/loop.py",
    "proto/opsd/v1/training_pb2.py",
]


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """A tree of the project's shape, each module empty, with the project's own contracts."""
    for name in MODULES:
        module = tmp_path / name
        module.parent.mkdir(parents=True, exist_ok=True)
        module.touch()
        package = module.parent
        while package.name != "opsd":
            (package / "__init__.py").touch()
            package = package.parent
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "import_contracts.py", tmp_path / "scripts")
    return tmp_path


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    roots = os.pathsep.join(str(tree / root) for root in ("daemon", "trainer", "proto"))
    return subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": roots, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_innocent_tree_keeps_every_contract(small_tree: Path) -> None:
    outcome = lint_imports(small_tree)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "0 broken" in outcome.stdout


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("daemon/opsd/daemon/store.py", "opsd.daemon.serve", "layers import downwards"),
        ("daemon/opsd/daemon/types.py", "opsd.daemon.store", "layers import downwards"),
        ("daemon/opsd/daemon/serve.py", "opsd.daemon.collect", "layers import downwards"),
        ("daemon/opsd/daemon/serve.py", "opsd.daemon.admin", "layers import downwards"),
        ("daemon/opsd/daemon/serve.py", "opsd.trainer.loop", "Daemon and trainer never"),
        ("trainer/opsd/trainer/loop.py", "opsd.daemon.types", "Daemon and trainer never"),
        ("proto/opsd/v1/training_pb2.py", "opsd.daemon.types", "contracts import neither side"),
        ("daemon/opsd/daemon/cli/main.py", "opsd.daemon.store", "talk gRPC only"),
        ("daemon/opsd/daemon/demo.py", "opsd.daemon.app", "talk gRPC only"),
        ("daemon/opsd/daemon/gate/stats.py", "opsd.daemon.store", "are pure"),
        ("daemon/opsd/daemon/gate/decision.py", "opsd.daemon.config", "are pure"),
        ("daemon/opsd/daemon/runs/states.py", "opsd.v1.training_pb2", "are pure"),
    ],
)
def test_a_violation_is_noticed(
    small_tree: Path, importer: str, imported: str, contract: str
) -> None:
    (small_tree / importer).write_text(f"import {imported}\n")
    outcome = lint_imports(small_tree)
    assert outcome.returncode != 0
    [verdict] = [line for line in outcome.stdout.splitlines() if contract in line][:1]
    assert verdict.endswith("BROKEN"), outcome.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("daemon/opsd/daemon/app.py", "opsd.daemon.serve"),
        ("daemon/opsd/daemon/runs/states.py", "opsd.daemon.types"),
        ("daemon/opsd/daemon/verify.py", "opsd.daemon.store"),
        ("daemon/opsd/daemon/cli/main.py", "opsd.daemon.demo"),
        ("daemon/opsd/daemon/demo.py", "opsd.v1.training_pb2"),
    ],
)
def test_what_the_design_allows_is_kept(small_tree: Path, importer: str, imported: str) -> None:
    (small_tree / importer).write_text(f"import {imported}\n")
    assert lint_imports(small_tree).returncode == 0


def test_a_new_part_of_the_daemon_needs_a_place(small_tree: Path) -> None:
    (small_tree / "daemon/opsd/daemon/misc.py").touch()
    outcome = lint_imports(small_tree)
    assert outcome.returncode != 0
    assert "misc" in outcome.stdout
