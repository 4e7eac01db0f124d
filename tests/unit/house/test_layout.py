"""The layout that lets three source roots be one namespace, and what no tracked file may hold."""

import importlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("root", ["daemon", "trainer", "proto"])
def test_no_root_has_an_opsd_init(root: str) -> None:
    assert (ROOT / root / "opsd").is_dir()
    assert not (ROOT / root / "opsd" / "__init__.py").exists(), (
        "an opsd/__init__.py hides the other two roots of the namespace"
    )


@pytest.mark.parametrize(
    ("module", "root"),
    [
        ("opsd.daemon.errors", "daemon"),
        ("opsd.trainer.errors", "trainer"),
        ("opsd.v1.training_pb2", "proto"),
    ],
)
def test_the_namespace_spans_all_roots(module: str, root: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    assert Path(file).is_relative_to(ROOT / root)


@pytest.mark.parametrize("package", ["daemon/opsd/daemon", "trainer/opsd/trainer", "proto/opsd/v1"])
def test_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


# Written in pieces, or this file would hold them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("registry", "npmjs", "org"),
        ("deb", "debian", "org"),
        ("registry-1", "docker", "io"),
    )
]
MACHINE_PATHS = [
    "/".join(parts) for parts in (("", "work", ""), ("", "root", ""), ("", "tmp", "w"))
]


def test_no_file_names_a_registry_or_a_machine(tracked_files: list[Path]) -> None:
    """Where packages come from is the configuration of pip, npm and apt on the user's machine."""
    offending = [
        f"{path.relative_to(ROOT)}: {needle}"
        for path in tracked_files
        for text in [path.read_bytes()]
        for needle in [*REGISTRIES, *MACHINE_PATHS]
        if needle.encode() in text
    ]
    assert offending == []


def test_no_generated_or_compiled_file_is_tracked(tracked_files: list[Path]) -> None:
    assert [path for path in tracked_files if "_pb2" in path.name or path.suffix == ".so"] == []
