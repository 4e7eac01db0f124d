"""Real daemons, and pairs for them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_daemon import CONFIG, LiveDaemon, MakeDaemon


@pytest.fixture
def make_daemon(tmp_path: Path, micro_model: Path) -> Iterator[MakeDaemon]:
    """Makes daemons that are not started yet; what still runs at the end is killed."""
    made: list[LiveDaemon] = []

    def make(store_url: str = "", **environment: str) -> LiveDaemon:
        directory = tmp_path / f"daemon-{len(made)}"
        directory.mkdir()
        text = CONFIG.format(model=json.dumps(str(micro_model)), store_url=json.dumps(store_url))
        (directory / "opsd.toml").write_text(text)
        for name, verb in (("sums", "plus"), ("manners", "and")):
            lines = [
                json.dumps(
                    {
                        "id": f"{name}-{i}",
                        "prompt": f"{name}: {i} {verb} {i + 1}?",
                        "verifier": "numeric",
                        "reference": str(2 * i + 1),
                    }
                )
                for i in range(6)
            ]
            (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        daemon = LiveDaemon(directory, environment)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        _kill_trainers(daemon.directory)


def _kill_trainers(directory: Path) -> None:
    """Trainers outlive their daemon on purpose; a test must not leave one behind."""
    for marker in directory.glob("state/runs/*/process.json"):
        group = json.loads(marker.read_text()).get("pgid")
        if group:
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """Eight good pairs, and a ninth whose solution does not lead to its reference."""
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "prompt": f"Tom has {i} apples and gets {i}. How many?",
            "solution": f"{i} + {i} is {2 * i}",
            "verifier": "numeric",
            "reference": str(2 * i),
            "source": "e2e",
        }
        for i in range(10, 18)
    ]
    lines.append({**lines[0], "prompt": "Ann has 3. How many?", "reference": "4", "solution": "3"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
