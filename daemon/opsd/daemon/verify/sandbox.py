"""Sandboxes: bubblewrap around one process tree, gone without a trace when it ends.

What is inside sees no network, no process but its own, no file but the standard library of Python,
the system's shared libraries and what it is given; it writes to a small /tmp in memory and nowhere
else. There is no weaker way to run anything: where this cannot be had, nothing runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from opsd.daemon.verify.pipes import ended, open_pipe

INSIDE = Path(__file__).parent / "inside"
PACKAGE = "/opsd/opsd/daemon/verify/inside"
PROBE_TIMEOUT_S = 30.0
NO_ENVIRONMENT: Mapping[str, str] = {}
"""Of bubblewrap itself: /proc/1/environ in the sandbox shows what it was given."""
INSTALL = "install Debian's package bubblewrap (apt-get install bubblewrap)"

_NAMESPACES = (
    *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--unshare-cgroup-try"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one sandbox; ``memory_mib`` is of each process in it."""

    memory_mib: int = 512
    cpu_s: int = 10
    processes: int = 16  # threads count, and bubblewrap's own
    tmp_mib: int = 64

    def arguments(self) -> dict[str, int]:
        """As ``inside.confine.confine`` takes them."""
        return {
            "memory_mib": self.memory_mib,
            "cpu_s": self.cpu_s,
            "processes": self.processes,
            "file_mib": self.tmp_mib,
        }


@dataclass(frozen=True)
class Sandbox:
    """Makes sandboxes with ``program``, bubblewrap's name or path."""

    program: str = "bwrap"
    limits: Limits = field(default_factory=Limits)

    @cached_property
    def problem(self) -> str:
        """Why no sandbox can be made here, and the fix; "" where one was made and held."""
        path = shutil.which(self.program)
        if path is None:
            return f"bubblewrap ({self.program}) is not there: {INSTALL}, or set verify.sandbox"
        try:
            with _open_files(_inside_files()) as files, open_pipe() as lifeline:
                done = subprocess.run(
                    self._command(path, "probe", {}, files=files, lifeline=lifeline.out.fileno()),
                    env=NO_ENVIRONMENT,
                    pass_fds=[*files.values(), lifeline.out.fileno()],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=PROBE_TIMEOUT_S,
                    check=False,
                )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{path} makes no sandbox: {error}: {_FIX}"
        if done.returncode != 0 or done.stdout != b"confined\n":
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return f"{path} makes no sandbox: {lines[-1] if lines else 'no reason given'}: {_FIX}"
        return ""

    @asynccontextmanager
    async def process(
        self,
        module: str,
        settings: Mapping[str, object],
        *,
        files: Mapping[str, bytes] | None = None,
        read_only: Iterable[str] = (),
        fds: Sequence[int] = (),
        stdin: int = asyncio.subprocess.DEVNULL,
        stdout: int = asyncio.subprocess.DEVNULL,
        stderr: int = asyncio.subprocess.DEVNULL,
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Runs ``inside.<module>``; everything in the sandbox is dead when the block is left.

        ``files`` maps names under /opsd to their bytes; ``fds`` are inherited and stay the
        caller's to close. Raises OSError when bubblewrap cannot be started.
        """
        everything = _inside_files() | {
            f"/opsd/{name}": data for name, data in (files or {}).items()
        }
        path = shutil.which(self.program) or self.program
        with open_pipe() as lifeline:
            with _open_files(everything) as opened:
                process = await asyncio.create_subprocess_exec(
                    *self._command(
                        path,
                        module,
                        settings,
                        files=opened,
                        lifeline=lifeline.out.fileno(),
                        read_only=read_only,
                    ),
                    env=NO_ENVIRONMENT,
                    pass_fds=[*opened.values(), *fds, lifeline.out.fileno()],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
            try:
                yield process
            finally:
                # First: a sandbox that is not yet tied to the process killed next ends by this.
                lifeline.close()
                if process.returncode is None:
                    # The first process of its namespace dies with it, and with that all others.
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                await ended(process)

    def _command(
        self,
        path: str,
        module: str,
        settings: Mapping[str, object],
        *,
        files: Mapping[str, int],
        lifeline: int,
        read_only: Iterable[str] = (),
    ) -> list[str]:
        command = [path, *_NAMESPACES, *_identity()]
        command += ["--die-with-parent", "--new-session", "--clearenv"]
        for name, value in (("PATH", "/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8")):
            command += ["--setenv", name, value]
        command += ["--hostname", "sandbox", "--proc", "/proc", "--dev", "/dev"]
        size_bytes = self.limits.tmp_mib << 20
        command += ["--perms", "1777", "--size", str(size_bytes), "--tmpfs", "/tmp"]
        links, bound, masked = _python_paths()
        bound += read_only
        command += links
        # Made by us: bubblewrap would copy that the host's folders are closed to nobody.
        for folder in _folders([*bound, *files]):
            command += ["--perms", "0755", "--dir", folder]
        for name in bound:
            command += ["--ro-bind", name, name]
        for name in masked:
            command += ["--size", "4096", "--tmpfs", name, "--remount-ro", name]
        for name, fd in files.items():
            command += ["--perms", "0444", "--ro-bind-data", str(fd), name]
        command += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
        program = (
            "import sys; sys.path.insert(0, '/opsd'); "
            f"from opsd.daemon.verify.inside import {module}; {module}.main()"
        )
        limits = self.limits.arguments() | {"lifeline_fd": lifeline}
        told = {"limits": limits, **settings}
        # -I: nothing of the environment; -S: no installed packages.
        return [
            *command,
            "--",
            PYTHON,
            "-I",
            "-S",
            "-B",
            "-X",
            "utf8",
            "-c",
            program,
            json.dumps(told),
        ]


PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable) or sys.executable)
_FIX = (
    "let this user make namespaces (kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces), on x86-64"
)


def _identity() -> list[str]:
    """Who the sandboxed process is: nobody, in a user namespace of its own.

    Root's processes are under no limit of their number, whatever a user namespace calls them. So a
    daemon that runs as root lets the process become nobody in earnest (``inside.confine``).
    """
    if os.geteuid() == 0:
        return ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    identity = ["--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    return ["--unshare-user", "--disable-userns", *identity]


def _python_paths() -> tuple[list[str], list[str], list[str]]:
    """Arguments for the root's links, what is bound (the interpreter, its standard library, the
    system's libraries), and the folders in it that are hidden."""
    stdlib = sysconfig.get_path("stdlib", vars={"base": sys.base_prefix})
    platform = sysconfig.get_path("platstdlib", vars={"platbase": sys.base_prefix})
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    libraries = [f"/usr/lib/{multiarch}" if multiarch else "/usr/lib", "/usr/lib64"]
    libraries += [f"/lib/{multiarch}" if multiarch else "/lib", "/lib64"]
    wanted = [*libraries, stdlib, platform, PYTHON, "/etc/ld.so.cache"]
    shared = sysconfig.get_config_var("INSTSONAME")
    if shared:
        wanted.append(str(Path(sysconfig.get_config_var("LIBDIR")) / shared))
    links: list[str] = []
    for link in ("/lib", "/lib64"):
        if os.path.islink(link):
            links += ["--symlink", os.readlink(link), link]
    bound: list[str] = []
    for path in wanted:
        # What lies under a link of the root is there already, under its real name.
        if path not in bound and os.path.exists(path) and not os.path.islink(_top(path)):
            bound.append(path)
    site = os.path.join(stdlib, "site-packages")
    return links, bound, [site] if os.path.isdir(site) else []


def is_seen(path: str, read_only: Iterable[str]) -> bool:
    """Whether a sandbox that is given ``read_only`` has this file, under this very name."""
    _, bound, _ = _python_paths()
    return any(Path(path).is_relative_to(folder) for folder in (*bound, *read_only))


def _top(path: str) -> str:
    return "/" + path.split("/")[1]


def _folders(paths: Iterable[str]) -> list[str]:
    """Every folder above these, the upper ones first."""
    found: dict[str, None] = {}
    for path in paths:
        for parent in reversed(Path(path).parents[:-1]):
            found[str(parent)] = None
    return list(found)


def _inside_files() -> dict[str, bytes]:
    return {f"{PACKAGE}/{path.name}": path.read_bytes() for path in sorted(INSIDE.glob("*.py"))}


@contextlib.contextmanager
def _open_files(files: Mapping[str, bytes]) -> Iterator[dict[str, int]]:
    """By name, descriptors that bubblewrap copies from: a file's path may be closed to nobody."""
    opened: dict[str, int] = {}
    try:
        for name, data in files.items():
            fd = opened[name] = os.memfd_create("opsd")
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(data)
            os.lseek(fd, 0, os.SEEK_SET)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)
