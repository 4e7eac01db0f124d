"""What tests of several kinds need: a fresh SQLite file, a database on a PostgreSQL of the tests'
own, an untrained model.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest

# No test asserts times: a busy machine is no failure.
hypothesis.settings.register_profile("opsd", deadline=None)
hypothesis.settings.load_profile("opsd")

START_TIMEOUT_S = 60
UNPRIVILEGED = "nobody"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How tests are dealt to several processes (pytest-xdist): file by file, but those that may use
    the session's engine to one process, which makes it once.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneEngine(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            kind = Path(file).parts[1]
            return "engine" if kind in ("integration", "gpu") else file

    # The folders' order is right: e2e comes first, each file of it with daemons of its own.
    config.option.loadscopereorder = False
    return OneEngine(config, log)


@dataclass(frozen=True)
class Postgres:
    """A running server that listens on a socket in ``directory`` only."""

    directory: Path

    def empty_database(self) -> str:
        """The one database, emptied: making a new one for each test takes ten times as long."""
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        with psycopg.connect(f"host={self.directory} user=opsd dbname=postgres") as connection:
            connection.execute(
                f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"
            )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return f"postgresql+psycopg://opsd@/postgres?host={self.directory}"


def _postgres_bin() -> Path | None:
    """Where initdb and postgres are: usually outside PATH."""
    candidates: list[Path] = []
    if found := shutil.which("pg_config"):
        answer = subprocess.run([found, "--bindir"], capture_output=True, text=True, check=True)
        candidates.append(Path(answer.stdout.strip()))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("postgres"):
        candidates.append(Path(found).resolve().parent)
    for directory in candidates:
        if all((directory / program).exists() for program in ("initdb", "postgres", "pg_isready")):
            return directory
    return None


def _as_owner(directory: Path) -> list[str | Path]:
    """How a command is started as the owner of the cluster: initdb and postgres refuse root."""
    if os.geteuid() != 0:
        return []
    shutil.chown(directory, UNPRIVILEGED)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("PostgreSQL does not run as root, and setpriv (util-linux) is missing")
    return [setpriv, f"--reuid={UNPRIVILEGED}", "--clear-groups"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the session, with fsync on, as in production."""
    binaries = _postgres_bin()
    if binaries is None:
        pytest.skip("PostgreSQL's server programs are missing: install Debian's postgresql package")
    # Not under pytest's own directory: that one is closed to the unprivileged user, and a socket's
    # path must stay under 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="opsd-pg-"))
    owner = _as_owner(directory)
    data, log = directory / "data", directory / "log"
    try:
        initdb: list[str | Path] = [
            binaries / "initdb",
            "-D",
            data,
            "-U",
            "opsd",
            "--auth=trust",
            "-E",
            "UTF8",
        ]
        subprocess.run([*owner, *initdb], check=True, capture_output=True, cwd=directory)
        with log.open("wb") as sink:
            server = subprocess.Popen(
                [
                    *(*owner, binaries / "postgres", "-D", data, "-k", directory),
                    *("-c", "listen_addresses=", "-c", "max_connections=200"),
                ],
                stdout=sink,
                stderr=sink,
                cwd=directory,
            )
        try:
            _wait_ready(binaries, directory, server, log)
            yield Postgres(directory)
        finally:
            # No goodbye to clients, no checkpoint: its files go next.
            server.send_signal(signal.SIGQUIT)
            server.wait()
    finally:
        shutil.rmtree(directory)


def _wait_ready(
    binaries: Path, directory: Path, server: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    ask: list[str | Path] = [binaries / "pg_isready", "-q", "-h", directory]
    while subprocess.run(ask, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"PostgreSQL did not start:\n{log.read_text()}")
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database: the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'opsd.db'}"
    make: Callable[[], str] = request.getfixturevalue("postgres").empty_database
    return make()


@pytest.fixture(scope="session")
def micro_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Qwen3 of 330,000 parameters with a chat template and a context of 512 tokens."""
    from opsd.trainer.tiny.model import make_model
    from opsd.trainer.tiny.tokenizer import make_tokenizer

    path = tmp_path_factory.mktemp("micro-model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' own
        tokenizer = make_tokenizer()
        make_model(tokenizer, 0).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path
