"""A PostgreSQL server for one measurement, with its defaults and fsync on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 60
UNPRIVILEGED = "nobody"


def binaries() -> Path:
    """Where initdb and postgres are: usually outside PATH."""
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if found := shutil.which("postgres"):
        candidates.append(Path(found).resolve().parent)
    for directory in candidates:
        if all((directory / program).exists() for program in ("initdb", "postgres", "pg_isready")):
            return directory
    raise SystemExit(
        "PostgreSQL's server programs are missing: install Debian's postgresql package, or measure "
        "with --databases sqlite"
    )


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of an empty database that nobody else uses."""
    programs = binaries()
    # A socket's path must stay under 108 bytes.
    directory = Path(tempfile.mkdtemp(prefix="opsd-bench-pg-"))
    owner: list[str] = []
    if os.geteuid() == 0:  # initdb and postgres refuse root
        shutil.chown(directory, UNPRIVILEGED)
        owner = ["setpriv", f"--reuid={UNPRIVILEGED}", "--clear-groups"]
    data = str(directory / "data")
    try:
        initdb = [str(programs / "initdb"), "-D", data, "-U", "opsd", "--auth=trust", "-E", "UTF8"]
        subprocess.run([*owner, *initdb], check=True, capture_output=True, cwd=directory)
        command = [str(programs / "postgres"), "-D", data, "-k", str(directory)]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(
                [*owner, *command, "-c", "listen_addresses="],
                stdout=log,
                stderr=log,
                cwd=directory,
            )
        try:
            _wait_ready(programs, directory, server)
            yield f"postgresql+psycopg://opsd@/postgres?host={directory}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()
    finally:
        shutil.rmtree(directory)


def _wait_ready(programs: Path, directory: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    ask = [str(programs / "pg_isready"), "-q", "-h", str(directory)]
    while subprocess.run(ask, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"PostgreSQL did not start:\n{(directory / 'log').read_text()}")
        time.sleep(0.05)
