"""Which code decides: the package's version, git's commit where it is known, and a digest.

The commit comes from where the package came from: a wheel carries the one it was built from, pip
notes the one of a ``git+https`` requirement, a checkout is asked. The digest needs none of these.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import opsd.daemon
from opsd.daemon import __version__
from opsd.daemon.types.audit import AuditFacts

_DAEMON: Final = Path(opsd.daemon.__file__).parent
_GIT_TIMEOUT_S: Final = 10.0


def code_facts(*, config_sha256: str, base_fingerprint: str) -> AuditFacts:
    """What every audit entry says about the daemon that writes it."""
    return AuditFacts(
        version=__version__,
        commit=commit(),
        code_sha256=code_sha256(),
        config_sha256=config_sha256,
        base_fingerprint=base_fingerprint,
    )


def commit(package: Path = _DAEMON) -> str:
    """40 hexadecimal digits, with ``+changes`` for a changed checkout; "" when nobody knows."""
    built = package / "commit.txt"
    if built.is_file():
        return built.read_text(encoding="ascii").strip()
    return _checkout_commit(package) or _installed_commit()


def code_sha256(package: Path = _DAEMON) -> str:
    """SHA-256 over the path, length and bytes of each Python file of ``opsd.daemon``, by path."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.as_posix().encode()):
        data = path.read_bytes()
        name = path.relative_to(package).as_posix().encode()
        digest.update(name + b"\0" + len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _checkout_commit(package: Path) -> str:
    root = package.parents[2]
    # A package that is installed inside somebody else's checkout is not of that commit.
    if not (root / ".git").exists() or not (root / "proto" / "opsd").is_dir():
        return ""
    head = _git(root, "rev-parse", "HEAD")
    if len(head) != 40:
        return ""
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if changed else head


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _installed_commit() -> str:
    """What pip wrote down about a requirement from a repository (PEP 610)."""
    try:
        text = distribution("opsd").read_text("direct_url.json")
        found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id", "")
    except (PackageNotFoundError, ValueError, AttributeError):
        return ""
    return str(found)
