"""What the global options say, and the connection to the daemon that follows from them."""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opsd.daemon.cli.exits import BY_STATUS, CliError, Exit

if TYPE_CHECKING:
    import grpc

    from opsd.v1.admin_pb2_grpc import AdminServiceStub
    from opsd.v1.collection_pb2_grpc import CollectionServiceStub, SourceServiceStub
    from opsd.v1.gate_pb2_grpc import GateServiceStub
    from opsd.v1.inference_pb2_grpc import InferenceServiceStub

T = TypeVar("T")

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 60.0
ACTOR_KEY = "x-opsd-actor"


@dataclass(frozen=True)
class Session:
    """The global options of one command."""

    address: str
    timeout_s: float | None  # None: the command's own
    actor: str
    config: Path | None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ((ACTOR_KEY, self.actor),)

    @contextmanager
    def connect(self) -> Iterator[Client]:
        """A channel to the daemon; gRPC's errors inside become CliErrors."""
        import grpc

        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(self.address, options=options) as channel:
            try:
                yield Client(self, channel)
            except grpc.RpcError as error:
                raise translate(error, self) from error


@dataclass(frozen=True)
class Client:
    """The daemon's services, with the actor and the deadline put into every call."""

    session: Session
    channel: grpc.Channel

    @property
    def admin(self) -> AdminServiceStub:
        from opsd.v1.admin_pb2_grpc import AdminServiceStub

        return AdminServiceStub(self.channel)

    @property
    def collection(self) -> CollectionServiceStub:
        from opsd.v1.collection_pb2_grpc import CollectionServiceStub

        return CollectionServiceStub(self.channel)

    @property
    def gate(self) -> GateServiceStub:
        from opsd.v1.gate_pb2_grpc import GateServiceStub

        return GateServiceStub(self.channel)

    @property
    def sources(self) -> SourceServiceStub:
        from opsd.v1.collection_pb2_grpc import SourceServiceStub

        return SourceServiceStub(self.channel)

    @property
    def inference(self) -> InferenceServiceStub:
        from opsd.v1.inference_pb2_grpc import InferenceServiceStub

        return InferenceServiceStub(self.channel)

    def call(self, method: Callable[..., T], request: Any) -> T:
        """A unary call."""
        timeout_s = self.session.timeout_s or DEFAULT_TIMEOUT_S
        return method(request, timeout=timeout_s, metadata=self.session.metadata)

    def stream(self, method: Callable[..., T], request: Any) -> T:
        """A streaming call, which takes as long as it takes unless --timeout was given."""
        return method(request, timeout=self.session.timeout_s, metadata=self.session.metadata)


def default_actor() -> str:
    """``user@host``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        # Containers run under ids that no passwd file knows.
        user = f"uid{os.getuid()}"
    return f"{user}@{platform.node() or 'localhost'}".encode("ascii", "replace").decode()


def check_actor(actor: str) -> str:
    """Raises CliError for what gRPC metadata cannot carry."""
    if not actor.strip() or not actor.isascii() or not actor.isprintable():
        raise CliError(
            f"--actor {actor!r} must be printable ASCII",
            hint="it goes into the audit log: name a person or a service, e.g. alice@ops",
            code=Exit.USAGE,
        )
    return actor.strip()


def status_of(error: grpc.RpcError) -> str:
    """The name of its gRPC status."""
    code = error.code() if hasattr(error, "code") else None
    return code.name if code is not None else "UNKNOWN"


def translate(error: grpc.RpcError, session: Session) -> CliError:
    """A failed call in the words of a person at a terminal."""
    status = status_of(error)
    code = BY_STATUS[status]
    details = (error.details() if hasattr(error, "details") else "") or status
    if status == "UNAVAILABLE" and not from_daemon(details):
        return CliError(
            f"no daemon answers at {session.address} ({_brief(details)})",
            hint="start it with `opsd serve`, or name its address with --address or $OPSD_ADDRESS",
            code=code,
        )
    if status == "DEADLINE_EXCEEDED":
        limit = session.timeout_s or DEFAULT_TIMEOUT_S
        return CliError(
            f"no answer from {session.address} within {limit:g} s",
            hint="allow more with --timeout; it may still have happened: look before you repeat it",
            code=code,
        )
    if status == "UNIMPLEMENTED":
        return CliError(
            f"the daemon at {session.address} does not know this call ({details})",
            hint="it may be of another version: compare `opsd version` with `opsd status`",
            code=code,
        )
    known = code is not Exit.ERROR or status in ("INTERNAL",)
    return CliError(details if known else f"{status}: {details}", code=code)


_TRANSPORT = (
    "failed to connect",
    "connection refused",
    "connection reset",
    "socket closed",
    "dns resolution failed",
    "name resolution",
    "stream removed",
    "broken pipe",
    "goaway",
    "endpoint closing",
    "recvmsg",
)


def from_daemon(details: str) -> bool:
    """Whether an UNAVAILABLE was said by the daemon itself, and not by the transport."""
    low = details.lower()
    return not any(sign in low for sign in _TRANSPORT)


def _brief(details: str) -> str:
    """gRPC lists every address with its error; the last reason is the telling one."""
    return details.rsplit("; last error: ", 1)[-1].rsplit("Failed to connect to remote host: ", 1)[
        -1
    ]
