"""How answers are verified: the table ``verify`` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opsd.daemon.config.section import PositiveInt, PositiveSeconds, Section

_NAME = r"^[a-z0-9][a-z0-9_-]{0,31}$"


class CommandConfig(Section):
    name: str = Field(pattern=_NAME, description="Problems ask for it as command:NAME.")
    argv: tuple[str, ...] = Field(
        min_length=1, description="The program's absolute path and its arguments."
    )
    timeout_s: PositiveSeconds = Field(default=10.0, description="Of one verdict.")
    concurrency: PositiveInt = Field(default=1, description="Verdicts under way at once.")
    sandbox: bool = Field(
        default=True, description="false: it runs as the daemon's user, with network and files."
    )
    read_only: tuple[str, ...] = Field(
        default=(), description="Files and directories that it sees in its sandbox, absolute paths."
    )


class RemoteConfig(Section):
    name: str = Field(pattern=_NAME, description="Problems ask for it as grpc:NAME.")
    address: str = Field(description="host:port of a VerifierService.")
    timeout_s: PositiveSeconds = Field(
        default=10.0, description="Of one verdict, attempts after UNAVAILABLE included."
    )
    max_attempts: PositiveInt = Field(
        default=3, description="Calls for one verdict; only UNAVAILABLE is tried again."
    )
    concurrency: PositiveInt = Field(default=16, description="Verdicts under way at once.")
    transport: Literal["plain", "tls"] = Field(
        default="plain", description="tls: the server is checked, against ca_file if set."
    )
    ca_file: str = Field(default="", description="PEM; empty: the authorities that gRPC knows.")
    cert_file: str = Field(default="", description="PEM: this client's certificate, if asked for.")
    key_file: str = Field(default="", description="PEM: its key.")


class VerifyConfig(Section):
    """Limits of the verifiers that run programs or ask others."""

    sandbox: str = Field(default="bwrap", description="bubblewrap's name or path.")
    python_timeout_s: PositiveSeconds = Field(
        default=10.0, description="Of one verdict, whatever the number of tests."
    )
    python_concurrency: PositiveInt = Field(default=2, description="Verdicts under way at once.")
    python_packages: tuple[str, ...] = Field(
        default=(), description="Directories that judged code may import from, absolute paths."
    )
    memory_mib: int = Field(
        default=512, ge=64, description="Address space of one process in a sandbox."
    )
    tmp_mib: PositiveInt = Field(default=64, description="Room in a sandbox's /tmp, in memory.")
    max_processes: int = Field(
        default=16, ge=4, description="Processes and threads in one sandbox."
    )
    output_kib: PositiveInt = Field(
        default=64, description="Output of a judged program; more ends it."
    )
    commands: tuple[CommandConfig, ...] = Field(
        default=(), description="Programs that verify: [[verify.commands]]."
    )
    remotes: tuple[RemoteConfig, ...] = Field(
        default=(), description="Services that verify: [[verify.remotes]]."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> VerifyConfig:
        for key, entries in (("commands", self.commands), ("remotes", self.remotes)):
            names = [entry.name for entry in entries]
            if len(set(names)) != len(names):
                raise ValueError(f"verify.{key}: names must differ, got {', '.join(names)}")
        return self
