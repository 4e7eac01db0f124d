"""The Unix socket on which runs reach the daemon."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import stat
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import grpc

from opsd.daemon.errors import ConfigError
from opsd.daemon.support.service import RunSupportService
from opsd.v1.support_pb2_grpc import add_RunSupportServiceServicer_to_server

SOCKET_NAME = "support.sock"
MAX_MESSAGE_BYTES = 64 << 20
# sockaddr_un holds 108 bytes, the last of them NUL.
_MAX_PATH_BYTES = 100
# A killed daemon's engine, forked from it, holds its sockets for a moment longer.
_HANDOVER_S = 3.0


def socket_path(state_dir: Path) -> Path:
    """``state_dir/support.sock``, or, where that is too long for a socket's address, one in a
    directory of this user's and this state directory's own under the temporary directory. The
    same state directory always gives the same path: a trainer that outlives a daemon finds the
    next.
    """
    path = state_dir.absolute() / SOCKET_NAME
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"opsd-{os.getuid()}-{digest}" / SOCKET_NAME
    if len(os.fsencode(short)) > _MAX_PATH_BYTES:
        raise ConfigError(
            f"state_dir: {path} is too long for a socket (at most {_MAX_PATH_BYTES} bytes), and so "
            f"is {short}: choose a shorter state_dir, or a shorter TMPDIR"
        )
    return short


class SupportServer:
    """gRPC on a socket that only the daemon's user can open."""

    def __init__(
        self,
        path: Path,
        service: RunSupportService,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        self.path = path
        self.address = f"unix:{path}"
        self._service = service
        self._interceptors = interceptors
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Takes calls from now on; raises ConfigError when the socket cannot be had."""
        _make_private(self.path.parent)
        await asyncio.to_thread(_remove_stale, self.path)
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ],
        )
        add_RunSupportServiceServicer_to_server(self._service, server)
        before = os.umask(0o177)
        try:
            server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ConfigError(f"state_dir: cannot listen on {self.path}: {error}") from error
        finally:
            os.umask(before)
        self._service.start()
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Ends the calls under way and removes the socket; a no-op when it was not started."""
        server, self._server = self._server, None
        if server is None:
            return
        await self._service.stop()
        await server.stop(0.0)
        self.path.unlink(missing_ok=True)


def _make_private(directory: Path) -> None:
    """A directory of ours under the temporary one is made, and refused if it is somebody else's."""
    if not directory.name.startswith(f"opsd-{os.getuid()}-"):
        return
    directory.mkdir(mode=0o700, exist_ok=True)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ConfigError(
            f"state_dir: {directory}, where the runs' socket belongs because state_dir is too long "
            "for one, is not this user's: remove it, or choose a shorter state_dir"
        )
    directory.chmod(0o700)


def _remove_stale(path: Path) -> None:
    """Removes the socket of a daemon that was killed; raises ConfigError when one answers."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"state_dir: {path} is not a socket: move it away")
    give_up = time.monotonic() + _HANDOVER_S
    while _answers(path):
        if time.monotonic() > give_up:
            raise ConfigError(f"state_dir: another daemon answers on {path}: stop it first")
        time.sleep(0.05)
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise ConfigError(f"state_dir: {path} cannot be used: {error}") from error
    return True
