"""Where the socket is, who may open it, and what lay there before."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from opsd.daemon.errors import ConfigError
from opsd.daemon.support.server import SupportServer, socket_path
from opsd.v1 import support_pb2_grpc as pb_grpc


class NoService(pb_grpc.RunSupportServiceServicer):
    def start(self) -> None: ...

    async def stop(self) -> None: ...


def server_in(directory: Path) -> SupportServer:
    return SupportServer(socket_path(directory), NoService())  # type: ignore[abstract, arg-type]


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


async def test_only_its_owner_may_open_it_and_it_goes_with_the_daemon(short: Path) -> None:
    before = os.umask(0o022)
    try:
        server = server_in(short)
        await server.start()
        mode = server.path.lstat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    await server.stop()
    assert not server.path.exists()
    await server.stop()


async def test_the_socket_of_a_killed_daemon_is_replaced(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opsd.daemon.support.server._HANDOVER_S", 0.0)
    path = socket_path(short)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigError, match="another daemon answers"):
            await server_in(short).start()
    # A closed socket leaves its file, as a killed process does.
    assert path.exists()
    server = server_in(short)
    await server.start()
    await server.stop()


async def test_a_file_in_its_place_is_left_alone(short: Path) -> None:
    socket_path(short).write_text("mine")
    with pytest.raises(ConfigError, match="is not a socket"):
        await server_in(short).start()
    assert socket_path(short).read_text() == "mine"


async def test_a_state_dir_that_is_too_long_gets_a_private_directory(short: Path) -> None:
    deep = short / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    server = server_in(deep)
    assert server.path == socket_path(deep)
    assert len(os.fsencode(server.path)) <= 100
    assert server.path != socket_path(deep / "other")
    await server.start()
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(server.path))
    await server.stop()
    server.path.parent.rmdir()


async def test_somebody_elses_private_directory_is_refused(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = short / ("d" * 60) / ("e" * 60)
    server = server_in(deep)
    server.path.parent.symlink_to(short)
    try:
        with pytest.raises(ConfigError, match="is not this user's"):
            await server.start()
    finally:
        server.path.parent.unlink()


def test_a_temporary_directory_that_is_too_long_is_said(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/" + "t" * 100)
    with pytest.raises(ConfigError, match="choose a shorter state_dir"):
        socket_path(short / ("d" * 100))
