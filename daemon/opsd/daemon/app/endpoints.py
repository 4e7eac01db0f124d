"""Where the running daemon can be reached, for whoever starts it with port 0."""

from __future__ import annotations

import json
import os
from pathlib import Path

NAME = "daemon.json"


def write_endpoints(state_dir: Path, *, host: str, port: int, metrics_port: int) -> Path:
    """Writes ``state_dir/daemon.json`` whole or not at all: pid, address, metrics_address."""
    shown = f"[{host}]" if ":" in host else host
    path = state_dir / NAME
    temporary = path.with_suffix(f".{os.getpid()}")
    endpoints = {
        "pid": os.getpid(),
        "address": f"{shown}:{port}",
        "metrics_address": f"{shown}:{metrics_port}",
    }
    temporary.write_text(json.dumps(endpoints) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def remove_endpoints(state_dir: Path) -> None:
    (state_dir / NAME).unlink(missing_ok=True)
