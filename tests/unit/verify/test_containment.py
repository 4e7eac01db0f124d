"""What code in a sandbox cannot do, each tried in a real one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.output import Output, read_all
from opsd.daemon.verify.protocol import Finding
from opsd.daemon.verify.sandbox import Limits, Sandbox

PASS, FAIL, ERROR = VerdictKind.PASS, VerdictKind.FAIL, VerdictKind.ERROR
Judge = Callable[[Mapping[str, object], str], Awaitable[Finding]]


async def run(sandbox: Sandbox, code: str, timeout_s: float = 20.0) -> Output:
    pipe = asyncio.subprocess.PIPE
    async with sandbox.process(
        "program",
        {"packages": []},
        files={"solution.py": code.encode()},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    ) as process:
        return await read_all(
            process,
            b"",
            timeout_s=timeout_s,
            stdout_bytes=1 << 16,
            stderr_bytes=4096,
            kill=process.kill,
        )


def processes_with(marker: str) -> list[int]:
    """Of this machine, whatever namespace they are in."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


async def test_a_fork_bomb_stays_small_and_dies(sandbox: Sandbox) -> None:
    code = (
        "import os\n"
        "forked = 0\n"
        "while True:\n"
        "    try:\n"
        "        if os.fork() == 0:\n"
        "            while True: pass\n"
        "        forked += 1\n"
        "    except OSError as error:\n"
        "        print(forked, error.errno, flush=True)\n"
        "        break\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except OSError: pass\n"
    )
    said = await run(sandbox, code, timeout_s=3.0)
    forked, number = said.stdout.split()
    assert int(forked) < sandbox.limits.processes
    assert int(number) == 11
    assert said.late
    assert processes_with("opsd.daemon.verify.inside") == []


async def test_ten_gigabytes_do_not_fit_anywhere(sandbox: Sandbox) -> None:
    code = (
        "import signal, os\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "block = bytes(1 << 20)\n"
        "written = 0\n"
        "for number in range(10):\n"
        "    try:\n"
        "        with open(f'/tmp/{number}', 'wb', buffering=0) as file:\n"
        "            for _ in range(1024): written += file.write(block)\n"
        "    except OSError: pass\n"
        "print(written >> 20)\n"
        "for folder in ('/', '/dev', '/dev/shm', '/opsd', '/proc', '/usr/lib', '/etc'):\n"
        "    try: open(folder + '/file', 'w').write('x' * 100); print('wrote', folder)\n"
        "    except OSError: pass\n"
        "try: os.memfd_create('x'); print('memfd')\n"
        "except OSError: pass\n"
    )
    said = await run(sandbox, code)
    assert said.stdout.split() == [str(sandbox.limits.tmp_mib)], said


async def test_the_daemons_environment_cannot_be_read(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPSD_TEST_SECRET", "swordfish")
    code = (
        "import os, glob\n"
        "print(dict(os.environ))\n"
        "paths = ['/proc/1/environ', *glob.glob('/proc/*/environ')]\n"
        "for path in paths:\n"
        "    try: print(path, open(path, 'rb').read())\n"
        "    except OSError as error: print(path, error.errno)\n"
        f"print(os.path.exists('/proc/{os.getpid()}/stat'))\n"
    )
    said = await run(sandbox, code)
    assert said.code == 0, said.stderr
    assert "/proc/1/environ" in said.stdout
    assert "swordfish" not in said.stdout
    assert "OPSD" not in said.stdout
    assert said.stdout.splitlines()[-1] == "False" or os.getpid() < 20


async def test_the_hosts_files_cannot_be_read(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("swordfish")
    secret.chmod(0o644)
    home = Path("/", "root", ".ssh")
    code = (
        "import os\n"
        f"for path in ('{secret}', '/etc/passwd', '/etc/hostname', '{home}', '/home', '/sys',\n"
        f"             '{Path(__file__).parent}', '/bin/sh', '/usr/bin'):\n"
        "    print(path, os.path.exists(path))\n"
        "import site_packages_do_not_exist\n"
    )
    said = await run(sandbox, code)
    seen = [line for line in said.stdout.splitlines() if line.endswith("True")]
    # The interpreter may live there, alone.
    assert [line for line in seen if not line.startswith("/usr/bin ")] == []


async def test_no_socket_outside_can_be_reached(sandbox: Sandbox) -> None:
    name = f"opsd-test-{os.getpid()}"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind("\0" + name)
        unix.listen()
        code = (
            "import socket\n"
            f"for family, address in ((socket.AF_INET, ('127.0.0.1', {tcp.getsockname()[1]})),\n"
            f"                        (socket.AF_UNIX, chr(0) + '{name}')):\n"
            "    try: socket.socket(family).connect(address); print('connected')\n"
            "    except OSError as error: print(error.errno)\n"
        )
        # From outside, both can be reached: what follows is the sandbox's doing.
        outside = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True
        )
        assert outside.stdout.split() == ["connected", "connected"]
        said = await run(sandbox, code)
    assert len(said.stdout.split()) == 2, said.stderr
    assert "connected" not in said.stdout


async def test_an_infinite_loop_ends(sandbox: Sandbox) -> None:
    said = await run(sandbox, "while True: pass", timeout_s=1.0)
    assert said.late
    # Without anybody's clock outside, the processor time ends it.
    spent = Sandbox(limits=Limits(cpu_s=1))
    said = await run(spent, "while True: pass", timeout_s=60.0)
    assert not said.late
    assert said.code != 0


async def test_ten_gigabytes_of_memory_are_refused(sandbox: Sandbox) -> None:
    said = await run(sandbox, "kept = bytearray(10 << 30)")
    assert "MemoryError" in said.stderr
    code = (
        "import mmap\n"
        "kept = []\n"
        "try:\n"
        "    while True:\n"
        "        kept.append(mmap.mmap(-1, 1 << 20))\n"
        "        kept[-1].write(bytes(1 << 20))\n"
        "except (MemoryError, OSError): print(len(kept))\n"
    )
    said = await run(sandbox, code)
    assert int(said.stdout) < sandbox.limits.memory_mib


async def test_a_child_that_double_forks_does_not_outlive_its_verdict(
    sandbox: Sandbox, judge: Judge
) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(600)\n"
        "    os._exit(0)\n"
        "def f(): return 1\n"
    )
    assert (await judge({"tests": "assert f() == 1"}, code))[0] is PASS
    for _ in range(100):
        if not processes_with("opsd.daemon.verify.inside"):
            break
        await asyncio.sleep(0.05)
    assert processes_with("opsd.daemon.verify.inside") == []


async def test_a_flood_of_output_is_cut(judge: Judge) -> None:
    cases = {"cases": [{"stdout": "x"}]}
    kind, evidence = await judge(cases, "while True: print('x' * 1000)")
    assert (kind, evidence) == (FAIL, "case 1 of 1: more than 16 KiB of output")
    kind, evidence = await judge(cases, "import sys\nwhile True: sys.stderr.write('x' * 1000)")
    assert kind is FAIL
    assert len(evidence) < 400
    code = "import os\nos.write(1, b'x' * 10**6); os.write(2, b'x' * 10**6)\ndef f(): return 1"
    assert (await judge({"tests": "assert f() == 1"}, code))[0] is PASS


async def test_other_namespaces_and_processes_are_out_of_reach(sandbox: Sandbox) -> None:
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "calls = {'unshare': (0x10000000,), 'setns': (0, 0), 'ptrace': (0, 0, 0, 0),\n"
        "         'setuid': (0,), 'mount': (None, None, None, 0, None), 'chroot': (b'/',)}\n"
        "for name, arguments in calls.items():\n"
        "    if hasattr(libc, name): print(name, getattr(libc, name)(*arguments))\n"
        "print('clone', libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0))\n"
        "print(os.getuid(), len([p for p in os.listdir('/proc') if p.isdigit()]))\n"
    )
    said = await run(sandbox, code)
    assert said.code == 0, said.stderr
    lines = said.stdout.splitlines()
    for call in ("unshare", "setns", "ptrace", "setuid", "mount", "chroot", "clone"):
        assert f"{call} -1" in lines
    uid, num_processes = said.stdout.splitlines()[-1].split()
    assert uid == "65534"
    assert int(num_processes) <= 3


def test_sandboxes_die_with_the_daemon() -> None:
    marker = f"opsd-test-{time.monotonic_ns()}"
    program = (
        "import asyncio\n"
        "from opsd.daemon.verify.sandbox import Sandbox\n"
        "async def main():\n"
        "    code = b'import time; time.sleep(600)'\n"
        f"    async with Sandbox().process('program', {{'packages': ['{marker}']}},\n"
        "                                 files={'solution.py': code}):\n"
        "        print('started', flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        assert processes_with(marker)
        daemon.kill()
    for _ in range(200):
        if not processes_with(marker):
            break
        time.sleep(0.05)
    assert processes_with(marker) == []


def test_nothing_runs_for_a_daemon_that_is_gone() -> None:
    """It died before bubblewrap could tie the sandbox's life to it."""
    program = (
        "import os\n"
        "from opsd.daemon.verify.inside.confine import confine\n"
        "out, into = os.pipe()\n"
        "os.close(into)\n"
        "confine(memory_mib=512, cpu_s=5, processes=16, file_mib=1, lifeline_fd=out)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "the daemon is gone"
    assert done.returncode == 1


async def test_without_bubblewrap_nothing_runs(tmp_path: Path) -> None:
    absent = Sandbox(program=str(tmp_path / "bwrap"))
    assert "apt-get install bubblewrap" in absent.problem
    liar = tmp_path / "bwrap"
    liar.write_text("#!/bin/sh\nexit 0\n")
    liar.chmod(0o755)
    assert "makes no sandbox" in Sandbox(program=str(liar)).problem
    liar.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    problem = Sandbox(program=str(liar)).problem
    assert "No permissions to create new namespace" in problem
    assert "unprivileged_userns" in problem


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_gets_the_same_sandbox() -> None:
    """Root's sandboxes are made another way; this is everybody else's, with Debian's Python."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("there is no /usr/bin/python3, and others may not read this interpreter")
    root = Path(__file__).parents[3] / "daemon"
    names = ["__init__", "verify/__init__", "verify/sandbox", "verify/pipes"]
    sources = {name: (root / f"opsd/daemon/{name}.py").read_text() for name in names}
    inside = {p.name: p.read_text() for p in (root / "opsd/daemon/verify/inside").glob("*.py")}
    program = (
        "import json, os, pathlib, sys, tempfile\n"
        "sources, inside = json.load(sys.stdin)\n"
        "home = pathlib.Path(tempfile.mkdtemp())\n"
        "os.makedirs(home / 'opsd/daemon/verify/inside')\n"
        "for name, text in sources.items(): (home / f'opsd/daemon/{name}.py').write_text(text)\n"
        "for name, text in inside.items():\n"
        "    (home / 'opsd/daemon/verify/inside' / name).write_text(text)\n"
        "sys.path.insert(0, str(home))\n"
        "import shutil\n"
        "from opsd.daemon.verify.sandbox import Sandbox\n"
        "problem = Sandbox().problem\n"
        "shutil.rmtree(home)\n"
        "print(os.getuid(), repr(problem))\n"
    )
    done = subprocess.run(
        [python, "-I", "-B", "-c", program],
        input=json.dumps([sources, inside]),
        capture_output=True,
        text=True,
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
    )
    assert done.stdout.strip() == "65534 ''", done.stdout + done.stderr
