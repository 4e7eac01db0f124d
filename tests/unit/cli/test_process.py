"""The command as its own process: imports, pipes, signals, what it turns into."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opsd.daemon.cli import reference
from opsd.daemon.cli.exits import Exit

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "opsd.daemon.cli.main"]


def opsd_process(
    *arguments: str, environ: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | (environ or {}),
        timeout=60,
        check=False,
        **options,
    )


def modules_after(*arguments: str) -> set[str]:
    code = (
        "import json, sys\n"
        "from opsd.daemon.cli.main import run\n"
        f"run({list(arguments)!r})\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("--help")
    heavy = {"torch", "vllm", "transformers", "grpc", "google.protobuf", "rich", "pydantic"}
    assert not loaded & (heavy | {"sqlalchemy", "numpy", "prometheus_client"})


def test_the_configuration_commands_import_no_grpc_and_no_engine() -> None:
    loaded = modules_after("config", "init", "-")
    assert not loaded & {"torch", "vllm", "transformers", "grpc", "sqlalchemy"}


def test_only_the_contracts_and_low_layers_are_imported() -> None:
    loaded = modules_after("--address", "127.0.0.1:1", "status")
    daemon = {name.split(".")[2] for name in loaded if name.startswith("opsd.daemon.")}
    assert daemon <= {"cli", "config", "errors", "types"}
    assert "torch" not in loaded


def test_a_closed_pipe_is_quiet() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*COMMAND, "config", "init", "-"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert done.stderr == b""
    assert done.returncode == Exit.BROKEN_PIPE


def test_ctrl_c_ends_with_130(daemon: Any) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--address", daemon.address, "pairs", "submit", "-", "-o", "json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    pair = {"prompt": "1+1", "solution": "2", "verifier": "exact", "reference": "2"}
    process.stdin.write(json.dumps(pair).encode() + b"\n")
    process.stdin.flush()
    # The result comes although stdin stays open: acknowledgements do not wait for the next line.
    assert json.loads(process.stdout.readline())["line"] == 1
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    assert b"Traceback" not in err
    assert b"1 acknowledged" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = opsd_process("completion", shell)
    assert done.returncode == 0
    assert "_OPSD_COMPLETE" in done.stdout


def test_completion_completes() -> None:
    environ = {"_OPSD_COMPLETE": "complete_bash", "COMP_WORDS": "opsd ada", "COMP_CWORD": "1"}
    # The name of the program decides the variable's.
    code = "from opsd.daemon.cli.main import run; raise SystemExit(run([]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environ,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["adapters"]


def test_demo_passes_every_argument_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from opsd.daemon.cli.main import run

    ran = fake_exec(monkeypatch)
    with pytest.raises(Replaced):
        run(["demo", "--help", "--seed", "7", "-x"])
    assert ran[0][1:] == ["-P", "-m", "opsd.daemon.demo", "--help", "--seed", "7", "-x"]


def test_serve_passes_the_configuration_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from opsd.daemon.cli.main import run

    ran = fake_exec(monkeypatch)
    monkeypatch.delenv("OPSD_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "opsd.toml"
    assert run(["serve", "--config", str(file)]) == Exit.NOT_FOUND
    assert "opsd config init" in capsys.readouterr().err
    file.touch()
    for arguments in (["serve", "--config", str(file)], ["--config", str(file), "serve"]):
        with pytest.raises(Replaced):
            run(arguments)
        assert ran[-1][2:] == ["-m", "opsd.daemon.app", "--config", str(file)]
    with pytest.raises(Replaced):
        run(["serve"])
    assert ran[-1][-1] == "opsd.toml"


class Replaced(BaseException):
    """The process is another program now."""


def fake_exec(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    ran: list[list[str]] = []

    def execv(path: str, arguments: list[str]) -> None:
        assert path == sys.executable
        ran.append(arguments)
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    return ran


def test_serve_is_told_who_rolls_back_what_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opsd.daemon.cli.main import run

    ran = fake_exec(monkeypatch)
    with pytest.raises(Replaced):
        run(["--actor", "ann", "serve", "--roll-back", "the disk"])
    assert ran[0][-4:] == ["--roll-back", "the disk", "--actor", "ann"]


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs/reference/cli.md").read_text()
    assert page == reference.render(), "run python -m opsd.daemon.cli.reference (see its docstring)"
