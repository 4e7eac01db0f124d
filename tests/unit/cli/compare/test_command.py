"""`opsd compare` against a daemon on a socket."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from opsd.daemon.cli.exits import Exit
from opsd.v1 import admin_pb2 as pb
from opsd.v1 import training_pb2 as tpb

Trigger = Callable[[Any], pb.Run]


class Runs:
    """What a daemon would make of triggers: every run ends at once, half as good with each seed."""

    def __init__(self, fake: Any) -> None:
        self.fake = fake
        self.by_request: dict[str, str] = {}
        self.failing: set[str] = set()  # request numbers
        fake.on_trigger = self.trigger

    def trigger(self, request: Any) -> pb.Run:
        if request.overrides.lora.rank > 64:
            raise ValueError("lora.rank is 128, but the engine serves ranks up to 64")
        if request.validate_only:
            run = pb.Run()
            run.spec.CopyFrom(request.overrides)
            run.spec.optim.num_steps = request.overrides.optim.num_steps or 100
            return run
        number = request.request_id.rpartition("-")[2]
        id = self.by_request.setdefault(request.request_id, f"run-{number}")
        self.fake.runs[id] = self.finished(id, request, failed=number in self.failing)
        return pb.Run(id=id, state=pb.RUN_STATE_QUEUED)

    def finished(self, id: str, request: Any, *, failed: bool) -> pb.Run:
        if failed:
            return pb.Run(id=id, state=pb.RUN_STATE_FAILED, error="the trainer\nwas killed")
        run = pb.Run(id=id, state=pb.RUN_STATE_REJECTED, generated_tokens=10_000, measure_only=True)
        after = 0.9 if request.overrides.seed < 3 else 0.6
        for step, accuracy in ((0, 0.4), (50, 0.5), (100, after)):
            for suite, n in (("word", 300), ("symbols", 100)):
                run.curve.add(
                    step=step,
                    generated_tokens=100 * step,
                    train_s=0.6 * step,
                    suite=suite,
                    n=n,
                    accuracy=accuracy,
                )
        run.teacher_check.CopyFrom(
            tpb.TeacherCheckReport(accuracy_with=0.95, accuracy_without=0.4, passed=True)
        )
        report = pb.GateReport(run_id=id, verdict=pb.GATE_VERDICT_PASS)
        target, guard = pb.SUITE_ROLE_TARGET, pb.SUITE_ROLE_GUARD
        report.suites.add(
            name="word", role=target, n=400, incumbent_accuracy=0.4, candidate_accuracy=after
        )
        report.suites.add(name="easy", role=guard, n=100, difference=-0.015)
        self.fake.reports[id] = report
        return run


@pytest.fixture
def runs(daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.chdir(tmp_path)
    Path("opsd.toml").write_text('seeds = [1, 3]\n[training]\nobjective.clip_mode = "scale"\n')
    Path("sft.json").write_text('{"training": {"objective": {"method": "sft"}, "seed": 0}}')
    return Runs(daemon.fake)


def triggers(daemon: Any) -> list[Any]:
    asked = [request for name, request in daemon.fake.calls if name == "TriggerRun"]
    return [request for request in asked if not request.validate_only]


def test_every_method_and_seed_is_a_run_on_the_data_of_the_first(
    opsd: Any, daemon: Any, runs: Runs
) -> None:
    result = opsd("compare", "opsd.toml", "sft.json", "--out", "c", "--source", "tutors")
    assert result.code == 0, result.err
    first, second, third = triggers(daemon)
    assert [r.same_data_as for r in (first, second, third)] == ["", "run-0", "run-0"]
    for request in (first, second, third):
        assert request.measure_only
        assert request.source == "tutors"
        assert request.overrides.export_every_steps == 10
        assert "export_every_steps" in request.overridden.paths
        assert request.reason.startswith("comparison ")
    assert [r.overrides.seed for r in (first, second, third)] == [1, 3, 0]
    assert "seed" in third.overridden.paths
    assert third.overrides.objective.method == tpb.METHOD_SFT
    assert second.overrides.objective.clip_mode == tpb.CLIP_MODE_SCALE
    assert "2/3 opsd, seed 3: run-1" in result.err


def test_a_method_may_have_data_of_its_own(opsd: Any, daemon: Any, runs: Runs) -> None:
    Path("control.toml").write_text('source = "wrong"\nseeds = [1, 2]\n')
    opsd("compare", "opsd.toml", "control.toml", "--out", "c", "--source", "tutors")
    assert [(r.source, r.same_data_as) for r in triggers(daemon)] == [
        ("tutors", ""),
        ("tutors", "run-0"),
        ("wrong", ""),
        ("wrong", "run-2"),
    ]
    checked = [r for name, r in daemon.fake.calls if name == "TriggerRun" and r.validate_only]
    assert [request.source for request in checked] == ["tutors", "wrong"]


def test_one_table_says_what_came_out(opsd: Any, runs: Runs) -> None:
    result = opsd("compare", "opsd.toml", "sft.json", "--out", "c")
    header, row, _ = result.out.splitlines()[:3]
    assert "tokens to 80 %" in header
    for cell in ("opsd", "1, 3", "2 pass", "40.0 → 75.0 %", "90.0 60.0", "easy -1.5", "10,000"):
        assert cell in row
    assert "not reached (1 of 2 seeds)" in row
    assert "40.0 → 95.0 %, passed" in row
    assert "generated tokens" in result.out
    markdown = Path("c/table.md").read_text()
    assert "| opsd | 1, 3 | 2 pass | 40.0 → 75.0 % | 90.0 60.0 | easy -1.5 |" in markdown
    assert Path("c/curve.svg").read_text().startswith("<svg")


def test_programs_get_the_same_numbers(opsd: Any, runs: Runs) -> None:
    found = opsd("compare", "opsd.toml", "--out", "c", "-o", "json").json
    assert found == json.loads(Path("c/results.json").read_text())
    [method] = found["methods"]
    assert method["after_each"] == [0.9, 0.6]
    assert method["tokens_to_target"] is None
    first, second = found["runs"]
    assert first["tokens_to_target"] == pytest.approx(5000 + 5000 * 0.75)
    assert first["seconds_to_target"] == pytest.approx(30 + 30 * 0.75)
    assert second["tokens_to_target"] is None
    rows = list(csv.DictReader(Path("c/curve.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert (rows[1]["step"], rows[1]["generated_tokens"], rows[1]["items"]) == ("50", "5000", "400")


def test_another_target_needs_no_new_runs(opsd: Any, daemon: Any, runs: Runs) -> None:
    opsd("compare", "opsd.toml", "--out", "c", "--target-accuracy", "0.55")
    before = len(triggers(daemon))
    result = opsd("compare", "--resume", "c", "--target-accuracy", "0.45")
    assert "tokens to 45 %" in result.out
    assert "2,500" in result.out
    assert len(triggers(daemon)) == before


def test_nothing_is_triggered_before_everything_is_checked(
    opsd: Any, daemon: Any, runs: Runs
) -> None:
    Path("bad.toml").write_text("[training]\nlora.rank = 128\n")
    result = opsd("compare", "opsd.toml", "bad.toml", "--out", "c")
    assert result.code == Exit.INVALID_INPUT
    assert result.err == (
        "opsd: bad.toml:2: training.lora.rank: lora.rank is 128, but the engine serves ranks up to "
        "64\n"
    )
    assert triggers(daemon) == []
    assert not Path("c").exists()
    Path("worse.toml").write_text("[training]\nlora.rnak = 128\n")
    result = opsd("compare", "opsd.toml", "worse.toml", "--out", "c")
    assert "worse.toml:2: training.lora.rnak: no such key; did you mean lora.rank?" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to compare"),
        (["opsd.toml", "--target-accuracy", "0"], "not in (0, 1]"),
        (["opsd.toml", "--seeds", "a"], "--seeds a"),
        (["opsd.toml", "--resume", "c"], "takes these from the directory"),
        (["opsd.toml", "--export-every", "0"], "export-every"),
    ],
)
def test_a_wrong_command_line_is_explained(
    opsd: Any, runs: Runs, arguments: list[str], words: str
) -> None:
    result = opsd("compare", *arguments)
    assert result.code == Exit.USAGE
    assert words in result.err


def test_points_of_the_curve_are_as_far_apart_as_asked(opsd: Any, daemon: Any, runs: Runs) -> None:
    Path("own.toml").write_text("[training]\nexport_every_steps = 7\n")
    Path("short.toml").write_text("[training]\noptim.num_steps = 5\n")
    opsd("compare", "own.toml", "short.toml", "--out", "c")
    assert [r.overrides.export_every_steps for r in triggers(daemon)] == [7, 1]
    opsd("compare", "own.toml", "short.toml", "--out", "d", "--export-every", "3")
    assert [r.overrides.export_every_steps for r in triggers(daemon)][2:] == [3, 3]


def test_an_interrupted_comparison_goes_on_where_it_was(
    opsd: Any, daemon: Any, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("opsd.daemon.cli.compare.command.fetch_outcome", _interrupt)
        result = opsd("compare", "opsd.toml", "sft.json", "--out", "c")
    assert result.code == Exit.INTERRUPTED
    assert "the runs go on; come back with: opsd compare --resume c" in result.err
    assert len(triggers(daemon)) == 3
    result = opsd("compare", "--resume", "c")
    assert result.code == 0
    assert len(triggers(daemon)) == 3
    assert "40.0 → 75.0 %" in result.out


def test_a_comparison_that_died_while_triggering_triggers_nothing_twice(
    opsd: Any, daemon: Any, runs: Runs
) -> None:
    opsd("compare", "opsd.toml", "sft.json", "--out", "c", "--detach")
    ledger = json.loads(Path("c/compare.json").read_text())
    # The answer to the second trigger was lost, and the third was never asked for.
    for entry in ledger["runs"][1:]:
        entry["run_id"] = ""
    Path("c/compare.json").write_text(json.dumps(ledger))
    assert opsd("compare", "--resume", "c").code == 0
    asked = triggers(daemon)
    assert [r.request_id for r in asked[3:]] == [r.request_id for r in asked[1:3]]
    assert asked[3] == asked[1]
    assert set(runs.by_request.values()) == {"run-0", "run-1", "run-2"}


def test_detaching_leaves_the_runs_and_says_how_to_come_back(
    opsd: Any, daemon: Any, runs: Runs
) -> None:
    result = opsd("compare", "opsd.toml", "--seeds", "1,2,3", "--detach")
    assert result.code == 0
    assert result.out == ""
    [directory] = Path().glob("opsd-compare-*")
    assert f"3 runs triggered; see them with: opsd compare --resume {directory}" in result.err
    assert [entry["seed"] for entry in _ledger(directory)["runs"]] == [1, 2, 3]
    assert not (directory / "table.md").exists()


def test_failed_runs_are_named_and_the_rest_is_shown(opsd: Any, runs: Runs) -> None:
    runs.failing = {"1"}
    result = opsd("compare", "opsd.toml", "--out", "c")
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert "opsd: opsd, seed 3: run run-1 failed: the trainer" in result.err
    assert "1 pass, 1 failed" in result.out
    assert "90.0 -" in result.out


def test_a_directory_holds_one_comparison(opsd: Any, daemon: Any, runs: Runs) -> None:
    opsd("compare", "opsd.toml", "--out", "c")
    before = len(triggers(daemon))
    result = opsd("compare", "opsd.toml", "--out", "c")
    assert result.code == Exit.REFUSED
    assert "opsd compare --resume c" in result.err
    assert len(triggers(daemon)) == before


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"version": 99}', '{"version": 1, "runs": [{}]}', "[]"]
)
def test_a_directory_without_a_comparison_is_refused(opsd: Any, runs: Runs, text: str) -> None:
    assert opsd("compare", "--resume", "none").code == Exit.NOT_FOUND
    Path("compare.json").write_text(text)
    result = opsd("compare", "--resume", ".")
    assert result.code == Exit.INVALID_INPUT
    assert "compare.json: not a comparison" in result.err


def test_a_daemon_that_refuses_for_its_own_reasons_is_heard(
    opsd: Any, daemon: Any, runs: Runs
) -> None:
    daemon.fake.failure = (grpc.StatusCode.FAILED_PRECONDITION, "12 verified pairs are there")
    result = opsd("compare", "opsd.toml")
    assert result.code == Exit.REFUSED
    assert result.err == "opsd: 12 verified pairs are there\n"


def test_a_daemon_that_cannot_only_check_is_not_used(opsd: Any, daemon: Any, runs: Runs) -> None:
    daemon.fake.on_trigger = None
    result = opsd("compare", "opsd.toml")
    assert result.code == Exit.ERROR
    assert "older version" in result.err
    assert len(triggers(daemon)) == 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _ledger(directory: Path) -> Any:
    return json.loads((directory / "compare.json").read_text())
