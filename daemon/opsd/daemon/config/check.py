"""Whether this machine has what a configuration speaks of."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

from opsd.daemon.config import training_rules
from opsd.daemon.config.load import LoadedConfig
from opsd.daemon.config.problems import Problem, hide_secrets, raise_problems
from opsd.daemon.config.schema import OpsdConfig


def check_environment(
    config: OpsdConfig | LoadedConfig, *, has_gpu: Callable[[], bool] | None = None
) -> list[Problem]:
    """Everything that would keep the daemon from starting, or a run from succeeding.

    Given a LoadedConfig, each problem names the line that its value came from. Nothing is written.
    """
    loaded = config if isinstance(config, LoadedConfig) else LoadedConfig(config)
    found: list[Problem] = []
    for key, message, fix in _findings(loaded.config, has_gpu or gpu_is_present):
        found.append(Problem(key, loaded.where(key), message, fix))
    return found


def require_environment(config: OpsdConfig | LoadedConfig) -> None:
    """Raises ConfigError with everything that check_environment finds."""
    raise_problems(check_environment(config))


def gpu_is_present() -> bool:
    """Whether an NVIDIA driver shows a device. Asking CUDA itself would break a later fork."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


_Finding = tuple[str, str, str]  # key, message, fix


def _findings(config: OpsdConfig, has_gpu: Callable[[], bool]) -> Iterator[_Finding]:
    yield from _model(config)
    yield from _state_dir(config)
    yield from _store(config)
    yield from _suites(config)
    yield from _verifiers(config)
    yield from _hygiene(config)
    yield from _devices(config, has_gpu)
    yield from _ray(config)
    yield from _triggers(config)
    yield from _timing(config)
    yield from _training(config)


def _model(config: OpsdConfig) -> Iterator[_Finding]:
    fix = "name the directory of a model in Hugging Face format"
    if not config.model.path:
        yield "model.path", "is not set", fix
        return
    path = Path(config.model.path)
    if not path.is_dir():
        yield "model.path", f"{path} is not a directory", fix
    elif not (path / "config.json").is_file():
        yield "model.path", f"{path} has no config.json", fix
    elif not any(path.glob("*.safetensors")):
        yield "model.path", f"{path} has no *.safetensors weights", fix


def _state_dir(config: OpsdConfig) -> Iterator[_Finding]:
    path = config.state_dir
    if path.exists() and not path.is_dir():
        yield "state_dir", f"{path} is a file", "name a directory, or move the file away"
        return
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield (
            "state_dir",
            f"{path} cannot be written by this user ({existing} is not writable)",
            "name another directory, or give this user the right to write there",
        )


def _store(config: OpsdConfig) -> Iterator[_Finding]:
    url = config.store.url
    if not url:
        return
    scheme = url.partition("://")[0].partition("+")[0]
    if "://" not in url or scheme not in ("sqlite", "postgresql"):
        yield (
            "store.url",
            f"{hide_secrets(url)} is no URL of SQLite or PostgreSQL",
            "write sqlite:///file.db or postgresql+psycopg://user@host/database, or leave it empty",
        )
    elif scheme == "sqlite" and (url.rstrip("/").endswith(":") or ":memory:" in url):
        yield (
            "store.url",
            "an SQLite database in memory would forget acknowledged pairs",
            "write sqlite:///file.db, or leave it empty",
        )


def _suites(config: OpsdConfig) -> Iterator[_Finding]:
    for index, suite in enumerate(config.gate.suites):
        path = Path(suite.path)
        key = f"gate.suites[{index}].path"
        if not path.is_file():
            yield key, f"{path} of suite {suite.name} is not a file", "name its JSON lines file"
        elif path.stat().st_size == 0:
            yield key, f"{path} of suite {suite.name} is empty", "a suite needs held-out problems"
    if config.gate.suites and not any(suite.role == "target" for suite in config.gate.suites):
        yield (
            "gate.suites",
            "no suite has the role target, so no adapter can pass the gate",
            'give the suite that must improve role = "target"',
        )


def _verifiers(config: OpsdConfig) -> Iterator[_Finding]:
    verify = config.verify
    paths = [(f"verify.python_packages[{n}]", p) for n, p in enumerate(verify.python_packages)]
    for index, command in enumerate(verify.commands):
        key = f"verify.commands[{index}]"
        paths.append((f"{key}.argv", command.argv[0]))
        paths += [(f"{key}.read_only", path) for path in command.read_only]
        if command.read_only and not command.sandbox:
            yield (
                f"{key}.read_only",
                "has no effect without a sandbox",
                "unset it, or remove sandbox = false",
            )
    for index, remote in enumerate(verify.remotes):
        key = f"verify.remotes[{index}]"
        files = {name: getattr(remote, name) for name in ("ca_file", "cert_file", "key_file")}
        paths += [(f"{key}.{name}", path) for name, path in files.items() if path]
        if any(files.values()) and remote.transport != "tls":
            yield f"{key}.transport", "is not tls, so the PEM files have no effect", 'write "tls"'
        if bool(remote.cert_file) != bool(remote.key_file):
            yield f"{key}.cert_file", "goes with key_file", "set both or neither"
    for key, path in paths:
        if not os.path.isabs(path):
            yield key, f"{path} is not an absolute path", "write it from /"
        elif not os.path.exists(path):
            yield key, f"{path} is not there", "mend the path, or install it"


def _hygiene(config: OpsdConfig) -> Iterator[_Finding]:
    """What can be told without loading a scrubber or the model of languages."""
    hygiene = config.collect.hygiene
    for language in hygiene.languages:
        if not re.fullmatch("[a-z]{2,3}", language):
            yield (
                "collect.hygiene.languages",
                f"{language} is no language code",
                "use ISO 639-1, e.g. en",
            )
    name = hygiene.scrubber
    if not name or name == "builtin" or name in entry_points(group="opsd.scrubbers").names:
        return
    module, colon, _ = name.partition(":")
    key = "collect.hygiene.scrubber"
    if not colon:
        yield key, f"{name} is not known", "write builtin, module:function or an entry point's name"
    elif importlib.util.find_spec(module.partition(".")[0] or "-") is None:
        yield key, f"there is no module {module}", "install it where the daemon runs"


def _devices(config: OpsdConfig, has_gpu: Callable[[], bool]) -> Iterator[_Finding]:
    here = {"engine.device": config.engine.device}
    if config.pool.launcher == "torchrun":
        here["pool.device"] = config.pool.device
    for key, device in here.items():
        if device == "cuda" and not has_gpu():
            yield key, '"cuda", but no NVIDIA GPU is visible here', 'set it to "cpu" or "auto"'


def _ray(config: OpsdConfig) -> Iterator[_Finding]:
    if config.pool.launcher != "ray":
        return
    if importlib.util.find_spec("ray") is None:
        yield (
            "pool.launcher",
            '"ray", but Ray is not installed here',
            'install opsd[ray], or set it to "torchrun"',
        )
    if config.pool.device == "auto":
        yield (
            "pool.device",
            '"auto" looks at this machine, and the processes run on others',
            'say what they run on: "cuda" or "cpu"',
        )
    if config.pool.visible_devices:
        yield (
            "pool.visible_devices",
            "has no effect: Ray gives out the devices",
            "unset it, or set pool.ray_resource to keep to some machines",
        )
    if config.pool.ray_timeout_s >= config.runs.start_timeout_s:
        yield (
            "pool.ray_timeout_s",
            f"{config.pool.ray_timeout_s:g} is not below runs.start_timeout_s "
            f"({config.runs.start_timeout_s:g}), after which a silent trainer is killed",
            "lower it, or raise the other",
        )


def _triggers(config: OpsdConfig) -> Iterator[_Finding]:
    from zoneinfo import ZoneInfo

    triggers = config.runs.triggers
    timezone: ZoneInfo | None = None
    try:
        timezone = ZoneInfo(triggers.timezone)
    except (OSError, LookupError, ValueError):
        yield (
            "runs.triggers.timezone",
            f'"{triggers.timezone}" is no time zone',
            'write one of the tz database, e.g. "Europe/Berlin"',
        )
    if triggers.cron:
        from apscheduler.triggers.cron import CronTrigger

        try:
            CronTrigger.from_crontab(triggers.cron, timezone or "UTC")
        except (ValueError, LookupError) as error:
            yield (
                "runs.triggers.cron",
                f'"{triggers.cron}" is no crontab expression: {error}',
                'write five fields, e.g. "0 3 * * *" for 3 o\'clock every night',
            )


def _timing(config: OpsdConfig) -> Iterator[_Finding]:
    stall, beat = config.runs.stall_timeout_s, config.training.heartbeat_interval_s
    if stall <= 2 * beat:
        yield (
            "runs.stall_timeout_s",
            f"{stall:g} s would kill a healthy trainer, which writes every {beat:g} s",
            "set it above twice training.heartbeat_interval_s",
        )
    if config.runs.min_pairs > config.runs.max_pairs:
        yield (
            "runs.min_pairs",
            f"{config.runs.min_pairs} is more than runs.max_pairs ({config.runs.max_pairs})",
            "no run could ever start: lower it",
        )
    if config.training.rollout.max_new_tokens >= (config.model.max_model_len or float("inf")):
        yield (
            "training.rollout.max_new_tokens",
            f"{config.training.rollout.max_new_tokens} leaves no room for a prompt in "
            f"model.max_model_len ({config.model.max_model_len})",
            "lower it",
        )


def _training(config: OpsdConfig) -> Iterator[_Finding]:
    for key, message, fix in training_rules.findings(config.training):
        yield f"training.{key}", message, fix
    for key, message, fix in training_rules.pool_findings(config.training, config.pool.num_devices):
        yield f"training.{key}", message, fix
