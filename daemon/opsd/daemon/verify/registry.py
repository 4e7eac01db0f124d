"""Which verifiers there are: the built-in ones, an operator's, and those of installed packages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points

from opsd.daemon.config.verify import VerifyConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.verify.catalogue import BUILTIN, PYTHON_REFERENCE
from opsd.daemon.verify.commands import CommandRunner
from opsd.daemon.verify.protocol import Isolation, Runner
from opsd.daemon.verify.remote import RemoteRunner
from opsd.daemon.verify.sandbox import Limits, Sandbox
from opsd.daemon.verify.solutions import PythonRunner

GROUP = "opsd.verifiers"
"""Entry points of this group name a Check (``verify.protocol``), as ``module:attribute``."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Registry:
    """``plugins`` maps the names of installed verifiers to ``module:attribute``."""

    runners: Mapping[str, Runner]
    plugins: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted([*BUILTIN, *self.plugins, *self.runners]))

    def isolation(self, name: str) -> Isolation:
        """Raises KeyError."""
        if name in self.runners:
            return self.runners[name].isolation
        if name in BUILTIN or name in self.plugins:
            return Isolation.WORKER
        raise KeyError(name)

    def problem(self, name: str) -> str:
        """Why a known verifier cannot verify here, with the fix; "" where it can."""
        runner = self.runners.get(name)
        return runner.problem if runner is not None else ""

    def checks_reference(self, name: str) -> bool:
        """Whether a worker has something to say about this verifier's references."""
        return name in BUILTIN or name in self.plugins or name in PYTHON_REFERENCE


def build_registry(config: VerifyConfig, found: Iterable[EntryPoint] | None = None) -> Registry:
    """Raises ConfigError for an installed verifier whose name is malformed or taken.

    ``found`` are the entry points; None: those of the installed packages.
    """
    sandbox = Sandbox(config.sandbox, _limits(config, config.python_timeout_s))
    runners: dict[str, Runner] = {
        "python": PythonRunner(
            sandbox,
            timeout_s=config.python_timeout_s,
            output_bytes=config.output_kib << 10,
            concurrency=config.python_concurrency,
            packages=config.python_packages,
        )
    }
    for command in config.commands:
        name = f"command:{command.name}"
        within = Sandbox(config.sandbox, _limits(config, command.timeout_s))
        runners[name] = CommandRunner(name, command, within if command.sandbox else None)
    for remote in config.remotes:
        runners[f"grpc:{remote.name}"] = RemoteRunner(f"grpc:{remote.name}", remote)
    points = entry_points(group=GROUP) if found is None else found
    return Registry(runners, _plugins(points, taken={*BUILTIN, *runners}))


def _limits(config: VerifyConfig, timeout_s: float) -> Limits:
    return Limits(
        memory_mib=config.memory_mib,
        cpu_s=max(1, round(timeout_s + 1)),
        processes=config.max_processes,
        tmp_mib=config.tmp_mib,
    )


def _plugins(points: Iterable[EntryPoint], *, taken: set[str]) -> dict[str, str]:
    plugins: dict[str, str] = {}
    for point in points:
        whose = point.dist.name if point.dist is not None else point.value
        if _NAME.fullmatch(point.name) is None:
            raise ConfigError(
                f"verifier {point.name!r} of {whose}: a name has lower-case letters, digits, - and "
                "_, at most 32: rename its entry point"
            )
        if point.name in taken or point.name in plugins:
            other = plugins.get(point.name, "a verifier of opsd's own")
            raise ConfigError(
                f"verifier {point.name!r} ({point.value} of {whose}): the name is taken by "
                f"{other}: rename its entry point in the group {GROUP}, or uninstall the package"
            )
        plugins[point.name] = point.value
    return plugins
