"""`opsd doctor` asks the trainer in a process of its own, and says what is missing."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from opsd.daemon.cli.exits import Exit

ANSWER = {
    "python": "3.12.1",
    "torch": "2.13.0",
    "torch_cuda": "13.0",
    "threads": 8,
    "gpus": ["NVIDIA H100"],
    "loss": {"cpu": "native-avx512", "cuda": "native-cuda"},
    "loss_problems": {},
}


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the trainer says; a test may change it. "status" and "stderr" are the process's own."""
    said: dict[str, Any] = {"status": 0, "stderr": "", "sandbox_problem": "", **ANSWER}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if command[1:] == ["-m", "opsd.daemon.verify.doctor"]:
            answer = json.dumps({"sandbox_problem": said["sandbox_problem"]})
            return subprocess.CompletedProcess(command, 0, answer, "")
        assert command[1:] == ["-m", "opsd.trainer.doctor"]
        return subprocess.CompletedProcess(
            command, said["status"], json.dumps(said), said["stderr"]
        )

    monkeypatch.setattr(subprocess, "run", run)
    return said


@pytest.mark.usefixtures("answer")
def test_it_shows_which_loss_each_device_has(opsd: Any) -> None:
    result = opsd("doctor", address="127.0.0.1:1")
    assert result.code == Exit.OK
    assert "loss on cpu   native-avx512" in result.out
    assert "loss on cuda  native-cuda" in result.out
    assert "2.13.0 (CUDA 13.0)" in result.out
    assert result.err == ""


def test_plain_pytorch_is_said_with_its_reason(opsd: Any, answer: dict[str, Any]) -> None:
    answer["loss"] = {"cpu": "torch"}
    answer["loss_problems"] = {"cpu": "opsd.trainer._C does not load; build it with `make setup`"}
    result = opsd("doctor", "-o", "json")
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert result.json["trainer"]["loss"] == {"cpu": "torch"}
    assert "plain PyTorch" in result.err
    assert "make setup" in result.err


def test_a_missing_sandbox_is_said_with_its_fix(opsd: Any, answer: dict[str, Any]) -> None:
    answer["sandbox_problem"] = "bubblewrap is not there: apt-get install bubblewrap"
    result = opsd("doctor")
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert "the python verifier does not run: bubblewrap is not there" in result.err
    assert "sandbox       none" in result.out


def test_a_trainer_that_does_not_start_is_an_error(opsd: Any, answer: dict[str, Any]) -> None:
    answer |= {"status": 1, "stderr": "Traceback …\nImportError: libgomp.so.1 is missing\n"}
    result = opsd("doctor")
    assert result.code == Exit.ERROR
    assert "libgomp.so.1 is missing" in result.err
    assert "make setup" in result.err
    assert result.out == ""


@pytest.mark.slow
def test_the_real_trainer_answers(opsd: Any) -> None:
    found = opsd("doctor", "-o", "json").json["trainer"]
    assert set(found) == set(ANSWER)
    assert found["loss"]["cpu"] == "torch" or found["loss"]["cpu"].startswith("native-")
