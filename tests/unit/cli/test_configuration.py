"""`opsd config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opsd.daemon.cli.exits import Exit


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_init_then_check_names_what_is_still_to_do(opsd: Any) -> None:
    assert opsd("config", "init").code == 0
    result = opsd("config", "check")
    assert result.code == Exit.INVALID_INPUT
    assert result.err.startswith("opsd: model.path: is not set; name the directory")


def test_init_does_not_overwrite(opsd: Any) -> None:
    Path("opsd.toml").write_text("[log]\n")
    result = opsd("config", "init")
    assert result.code == Exit.REFUSED
    assert "--force" in result.err
    assert Path("opsd.toml").read_text() == "[log]\n"
    assert opsd("config", "init", "--force").code == 0


def test_a_complete_configuration_has_no_problem(opsd: Any) -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("model/model.safetensors").touch()
    opsd("config", "init", "c.toml", "--model", "model")
    for result in (
        opsd("config", "check", "--config", "c.toml"),
        opsd("--config", "c.toml", "config", "check"),
    ):
        assert result.code == 0
        assert result.err == "c.toml: no problem found\n"


def test_check_prints_every_problem_as_data(opsd: Any) -> None:
    Path("opsd.toml").write_text("[server]\nprot = 1\nport = -1\n")
    result = opsd("config", "check", "-o", "json")
    assert result.code == Exit.INVALID_INPUT
    assert [problem["where"] for problem in result.json["problems"]] == [
        "opsd.toml:2",
        "opsd.toml:3",
    ]
    assert result.err.count("opsd: opsd.toml:") == 2


def test_a_file_that_is_no_toml_is_one_line(opsd: Any) -> None:
    Path("opsd.toml").write_text("[server\n")
    result = opsd("config", "check")
    assert result.code == Exit.INVALID_INPUT
    assert result.err.startswith("opsd: opsd.toml:1: not TOML")


def test_show_tells_values_and_origins(opsd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("opsd.toml").write_text("[store]\nurl = 'postgresql://me:hunter2@db/x'\n")
    monkeypatch.setenv("OPSD_SERVER__PORT", "0")
    result = opsd("config", "show")
    assert "server.port = 0  # environment OPSD_SERVER__PORT" in result.out
    assert 'store.url = "postgresql://me:***@db/x"  # opsd.toml:2' in result.out
    assert 'server.host = "127.0.0.1"  # default' in result.out
    found = opsd("config", "show", "-o", "json")
    assert found.json["server.port"] == {"value": 0, "origin": "environment OPSD_SERVER__PORT"}
    assert "hunter2" not in result.out + found.out
