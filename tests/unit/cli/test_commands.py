"""Each command against a daemon on a socket: what it sends, prints and returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from opsd.daemon.cli.exits import BY_STATUS, MEANING, Exit
from opsd.v1 import admin_pb2 as pb
from opsd.v1 import training_pb2 as tpb

ADAPTER = "opsd-0123456789abcdef"
RUN_ID = "0b6c2c1e-0000-4000-8000-000000000001"


def test_status_says_what_serves(opsd: Any) -> None:
    result = opsd("status")
    assert result.code == 0
    assert f"incumbent  {ADAPTER} (epoch 4)" in result.out
    assert "serving    ready" in result.out
    assert "up 1 h 02 min" in result.out
    assert f"{RUN_ID} training, step 3 of 10" in result.out
    assert result.err == ""


def test_status_as_json_has_snake_case_names_and_defaults(opsd: Any) -> None:
    found = opsd("status", "-o", "json").json
    assert found["serving"] == "SERVING_STATE_READY"
    assert found["requests_in_flight"] == 0
    assert found["incumbent_epoch"] == "4"


@pytest.mark.parametrize("status", [s for s in grpc.StatusCode if s is not grpc.StatusCode.OK])
def test_every_grpc_status_has_its_exit_code(
    opsd: Any, daemon: Any, status: grpc.StatusCode
) -> None:
    daemon.fake.failure = (status, "adapter opsd-x is not there: list them")
    result = opsd("status")
    assert result.code == BY_STATUS[status.name]
    assert result.code in MEANING
    assert result.err.startswith("opsd: ")
    assert "Traceback" not in result.err
    assert result.out == ""
    # A time-out's details come from the client's own library.
    if status is not grpc.StatusCode.DEADLINE_EXCEEDED:
        assert "adapter opsd-x is not there: list them" in result.err


def test_an_unreachable_daemon_is_named_with_the_fix(opsd: Any) -> None:
    result = opsd("status", address="127.0.0.1:1")
    assert result.code == Exit.UNREACHABLE
    first, hint = result.err.splitlines()
    assert first == "opsd: no daemon answers at 127.0.0.1:1 (Connection refused)"
    assert "opsd serve" in hint


def test_the_daemons_own_unavailable_is_not_called_unreachable(opsd: Any, daemon: Any) -> None:
    daemon.fake.failure = (grpc.StatusCode.UNAVAILABLE, "the daemon is starting")
    result = opsd("status")
    assert result.code == Exit.UNREACHABLE
    assert result.err == "opsd: the daemon is starting\n"


def test_the_actor_goes_into_metadata_and_request(opsd: Any, daemon: Any) -> None:
    opsd("--actor", "alice@ops", "adapters", "approve", "opsd-0123", "--reason", "good")
    assert set(daemon.fake.actors) == {"alice@ops"}
    assert daemon.fake.last("ApproveAdapter").actor == "alice@ops"


def test_the_actor_is_user_and_host_by_default(opsd: Any, daemon: Any) -> None:
    opsd("status")
    assert "@" in daemon.fake.actors[0]


def test_an_actor_that_cannot_travel_is_refused(opsd: Any, daemon: Any) -> None:
    result = opsd("--actor", "jörg", "status")
    assert result.code == Exit.USAGE
    assert "must be printable ASCII" in result.err
    assert daemon.fake.calls == []


def test_generate_whole(opsd: Any, daemon: Any) -> None:
    result = opsd("generate", "hello", "--adapter", ADAPTER, "--max-tokens", "5", "--top-k", "0")
    assert result.out == "Grüße \x1b[1m\n"  # not a terminal: as it is
    assert result.err == f"adapter {ADAPTER}: 2 tokens for 3, stop\n"
    sent = daemon.fake.last("Generate")
    assert [m.content for m in sent.conversation.messages] == ["hello"]
    assert sent.sampling.max_tokens == 5
    assert sent.sampling.HasField("top_k")
    assert not sent.sampling.HasField("temperature")


def test_generate_streams_on_demand(opsd: Any) -> None:
    result = opsd("generate", "hello", "--stream")
    assert result.out == "one two\n"
    assert "base: 2 tokens for 3, length" in result.err
    chunks = opsd("generate", "hello", "--stream", "-o", "json").lines
    assert [chunk["text_delta"] for chunk in chunks] == ["one ", "two"]


def test_generate_refuses_a_mixed_response(opsd: Any, daemon: Any) -> None:
    daemon.fake.mixed = True
    result = opsd("generate", "hello", "--stream")
    assert result.code == Exit.ERROR
    assert "mixes adapters" in result.err


def test_generate_reads_stdin_and_takes_raw_text(opsd: Any, daemon: Any) -> None:
    assert opsd("generate", "--raw", stdin="ä b".encode()).code == 0
    assert daemon.fake.last("Generate").prompt == "ä b"


@pytest.mark.parametrize("stdin", [b"", b" \n", b"a\xffb"])
def test_generate_refuses_a_prompt_that_is_none(opsd: Any, daemon: Any, stdin: bytes) -> None:
    result = opsd("generate", "-", stdin=stdin)
    assert result.code == Exit.INVALID_INPUT
    assert daemon.fake.calls == []


def test_runs_list_follows_pages_up_to_the_limit(opsd: Any, daemon: Any) -> None:
    runs = opsd("runs", "list", "-n", "3", "-o", "json").json["runs"]
    assert [run["id"] for run in runs] == ["run-0", "run-1", "run-2"]
    assert len(opsd("runs", "list", "-n", "0", "-o", "json").json["runs"]) == 5
    table = opsd("runs", "list").out
    assert len(table.splitlines()) == 6
    assert "\x1b" not in table  # a reason must not drive the terminal


def test_runs_get_shows_history_and_the_end_of_the_log(opsd: Any) -> None:
    result = opsd("runs", "get", RUN_ID[:6])
    assert result.code == 0
    assert "the trainer died" in result.out
    assert "2023-11-14 22:13:20Z  queued  operator" in result.out
    assert "boom" in result.err


def test_runs_get_of_an_unknown_run(opsd: Any) -> None:
    result = opsd("runs", "get", "nope")
    assert result.code == Exit.NOT_FOUND
    assert result.err == "opsd: no run nope\n"


def test_runs_cancel_looks_a_prefix_up(opsd: Any, daemon: Any) -> None:
    assert opsd("--actor", "bob", "runs", "cancel", RUN_ID[:4], "--reason", "wrong data").code == 0
    sent = daemon.fake.last("CancelRun")
    assert (sent.id, sent.reason, sent.actor) == (RUN_ID, "wrong data", "bob")


def test_runs_trigger_sends_overrides(opsd: Any, daemon: Any) -> None:
    opsd(
        *("runs", "trigger", "--reason", "try", "--source", "tutors"),
        *("--set", "optim.num_steps=50", "--set", "training.objective.clip_mode=scale"),
        *("--set", "lora.target_modules=q_proj, v_proj", "--set", "prompt.teacher_thinking=true"),
    )
    sent = daemon.fake.last("TriggerRun")
    assert (sent.reason, sent.source) == ("try", "tutors")
    assert sent.request_id
    assert sent.overrides.optim.num_steps == 50
    assert sent.overrides.objective.clip_mode == tpb.CLIP_MODE_SCALE
    assert list(sent.overrides.lora.target_modules) == ["q_proj", "v_proj"]
    assert sent.overrides.prompt.teacher_thinking
    assert not sent.overrides.HasField("rollout")


def test_runs_trigger_can_set_zero_and_false(opsd: Any, daemon: Any) -> None:
    opsd(
        *("runs", "trigger", "--set", "optim.warmup_steps=0"),
        *("--set", "prompt.teacher_thinking=false", "--set", "seed=0"),
    )
    sent = daemon.fake.last("TriggerRun")
    assert list(sent.overridden.paths) == ["optim.warmup_steps", "prompt.teacher_thinking", "seed"]


def test_runs_trigger_without_overrides_sends_none(opsd: Any, daemon: Any) -> None:
    opsd("runs", "trigger")
    assert not daemon.fake.last("TriggerRun").HasField("overrides")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.num_step=5", "did you mean optim.num_steps?"),
        ("run_id=x", "no such key"),
        ("model.path=x", "no such key"),
        ("optim.num_steps", "no `=`"),
        ("optim.num_steps=many", "is not a whole number"),
        ("optim.num_steps=-1", "is not a whole number"),
        ("optim.learning_rate=fast", "is not a number"),
        ("optim.learning_rate=nan", "is not a number"),
        ("prompt.student_thinking=maybe", "is not true or false"),
        ("objective.divergence=kl", "one of forward_kl, reverse_kl, jsd"),
        ("objective.divergence=unspecified", "one of forward_kl"),
    ],
)
def test_runs_trigger_refuses_bad_overrides(
    opsd: Any, daemon: Any, text: str, message: str
) -> None:
    result = opsd("runs", "trigger", "--set", text)
    assert result.code == Exit.USAGE
    assert message in result.err
    assert daemon.fake.calls == []


def test_adapters_list_and_show(opsd: Any) -> None:
    assert f"{ADAPTER}  candidate  pass" in opsd("adapters", "list").out
    shown = opsd("adapters", "show", "opsd-01").out
    assert "3.0 MiB" in shown
    assert opsd("adapters", "list", "-o", "json").json["adapters"][0]["rank"] == 16


def test_adapters_approve_resolves_the_prefix(opsd: Any, daemon: Any) -> None:
    result = opsd("adapters", "approve", "opsd-01", "--reason", "gate passed")
    assert result.code == 0
    sent = daemon.fake.last("ApproveAdapter")
    assert (sent.name, sent.reason, sent.override_inconclusive) == (ADAPTER, "gate passed", False)
    assert "epoch 5" in result.out
    assert f"{ADAPTER} serves" in result.err


def test_adapters_approve_can_override_inconclusive(opsd: Any, daemon: Any) -> None:
    opsd("adapters", "approve", ADAPTER, "--reason", "r", "--override-inconclusive")
    assert daemon.fake.last("ApproveAdapter").override_inconclusive


@pytest.mark.parametrize("command", [("approve", ADAPTER), ("reject", ADAPTER), ("rollback",)])
def test_a_decision_needs_a_reason(opsd: Any, daemon: Any, command: tuple[str, ...]) -> None:
    assert opsd("adapters", *command).code == Exit.USAGE
    assert opsd("adapters", *command, "--reason", " ").code == Exit.USAGE
    assert daemon.fake.calls == []


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (("approve", ADAPTER), "ApproveAdapter"),
        (("reject", ADAPTER), "RejectAdapter"),
        (("rollback",), "Rollback"),
    ],
)
def test_a_terminal_is_asked_unless_told_yes(
    opsd: Any, daemon: Any, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], call: str
) -> None:
    monkeypatch.setattr("opsd.daemon.cli.decisions.is_terminal", lambda: True)
    declined = opsd("adapters", *command, "--reason", "r", stdin=b"n\n")
    assert declined.code == Exit.ERROR
    assert "declined: nothing has changed" in declined.err
    assert call not in [name for name, _ in daemon.fake.calls]
    assert opsd("adapters", *command, "--reason", "r", stdin=b"y\n").code == 0
    assert daemon.fake.last(call).reason == "r"
    assert opsd("adapters", *command, "--reason", "again", "--yes").code == 0
    assert daemon.fake.last(call).reason == "again"


def test_a_canary_that_begins_is_not_said_to_serve(opsd: Any, daemon: Any) -> None:
    daemon.fake.adapter.state = pb.ADAPTER_STATE_CANARY
    result = opsd("adapters", "approve", ADAPTER, "--reason", "r")
    assert f"{ADAPTER} is its canary: `opsd adapters canary status`" in result.out + result.err


def test_rollback_to_base_names_no_adapter(opsd: Any, daemon: Any) -> None:
    daemon.fake.adapter.Clear()
    result = opsd("adapters", "rollback", "--reason", "r")
    assert result.code == 0
    assert "now" not in result.out


@pytest.mark.parametrize("id", ["opsd-01", RUN_ID[:8]])
def test_gate_show_by_prefix(opsd: Any, daemon: Any, id: str) -> None:
    result = opsd("gate", "show", id)
    assert result.code == 0
    assert daemon.fake.last("GetGate").id in (ADAPTER, RUN_ID)
    assert "PASS" in result.out
    assert "95 %: [+39.0, +47.0]" in result.out
    assert "arithmetic: the interval lies above the margin" in result.out
    assert "only by the incumbent 12, only by the candidate 270; margin 2 points" in result.out
    assert "hard" in result.out
    assert "+87.0" in result.out
    found = opsd("gate", "show", id, "-o", "json").json
    assert found["suites"][0]["verdict"] == "GATE_VERDICT_PASS"


def test_gate_show_has_the_checks(opsd: Any) -> None:
    out = opsd("gate", "show", "opsd-01").out
    assert "[×0.72, ×0.78]" in out
    assert "×0.50" in out


def test_gate_show_says_why_a_check_was_not_passed(opsd: Any) -> None:
    out = opsd("gate", "show", "opsd-01").out
    assert "not judged" in out
    assert "markers: there is nothing to lose" in out
    assert "length: tokens an answer" not in out


def test_gate_show_has_no_numbers_of_a_sealed_suite(opsd: Any) -> None:
    lines = opsd("gate", "show", "opsd-01").out.splitlines()
    (row,) = (line for line in lines if line.startswith("vault  "))
    assert row.split() == ["vault", "guard", "sealed", "-", "-", "-", "-", "-", "pass"]


def test_gate_replay_says_whether_it_is_the_same(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    same = opsd("gate", "replay", RUN_ID[:8], "--save", str(file))
    assert (same.code, file.read_bytes()) == (0, b"{}")
    assert "byte for byte" in same.out
    assert daemon.fake.last("ReplayGate").id == RUN_ID
    daemon.fake.replays = False
    other = opsd("gate", "replay", RUN_ID[:8])
    assert other.code == 7
    assert "the inputs give fail, the stored report says pass" in other.out
    assert not daemon.fake.last("ReplayGate").with_inputs


def test_gate_ledger(opsd: Any) -> None:
    out = opsd("gate", "ledger").out
    assert "0.0076 of 0.05" in out
    assert opsd("gate", "ledger", "-o", "json").json["lines"][0]["gate_number"] == 2


def test_audit_list(opsd: Any) -> None:
    assert "alice" in opsd("audit", "list").out
    assert opsd("audit", "list", "-o", "json").json["entries"][0]["action"] == "adapter.promote"


def test_pairs_list_and_show(opsd: Any, daemon: Any) -> None:
    result = opsd("pairs", "list", "-n", "2", "--status", "verified", "--source", "tutors")
    assert len(result.out.splitlines()) == 3
    assert "2 of 3" in result.err
    sent = daemon.fake.last("ListPairs")
    assert (sent.page_size, sent.source, sent.status) == (2, "tutors", 1)
    assert opsd("pairs", "list", "-o", "json").json["total"] == 3
    assert "four" in opsd("pairs", "show", "some-id").out


def test_version(opsd: Any) -> None:
    assert opsd("version").out.startswith("opsd ")
    assert opsd("--version").out == opsd("version").out
    assert opsd("version", "-o", "json").json["python"].startswith("3.")


def test_usage_errors_are_one_line_and_a_hint(opsd: Any) -> None:
    result = opsd("runs", "lst")
    assert result.code == Exit.USAGE
    first, hint = result.err.splitlines()
    assert first == "opsd: No such command 'lst'. Did you mean 'list'?"
    assert hint == "hint: see `opsd runs --help`"
    assert opsd("status", "-o", "yaml").code == Exit.USAGE


def test_an_unexpected_error_is_no_traceback(
    opsd: Any, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr("opsd.daemon.cli.status.print_fields", broken)
    result = opsd("status")
    assert (result.code, "Traceback" in result.err) == (Exit.ERROR, False)
    assert "surprise" in result.err
    monkeypatch.setenv("OPSD_DEBUG", "1")
    with pytest.raises(RuntimeError, match="surprise"):
        opsd("status")


def finished(
    state: pb.RunState.ValueType,
    verdict: pb.GateVerdict.ValueType = pb.GATE_VERDICT_UNSPECIFIED,
) -> pb.Run:
    return pb.Run(id=RUN_ID, state=state, gate_verdict=verdict, candidate=ADAPTER, step=10)


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (finished(pb.RUN_STATE_AWAITING_APPROVAL, pb.GATE_VERDICT_PASS), Exit.OK),
        (
            finished(pb.RUN_STATE_AWAITING_APPROVAL, pb.GATE_VERDICT_INCONCLUSIVE),
            Exit.NEGATIVE_OUTCOME,
        ),
        (finished(pb.RUN_STATE_PROMOTED), Exit.OK),
        (finished(pb.RUN_STATE_FAILED), Exit.NEGATIVE_OUTCOME),
        (finished(pb.RUN_STATE_CANCELLED), Exit.NEGATIVE_OUTCOME),
        (finished(pb.RUN_STATE_REJECTED, pb.GATE_VERDICT_FAIL), Exit.NEGATIVE_OUTCOME),
        (finished(pb.RUN_STATE_ROLLED_BACK), Exit.NEGATIVE_OUTCOME),
    ],
)
def test_watch_ends_with_the_outcome(opsd: Any, daemon: Any, last: pb.Run, code: Exit) -> None:
    training = pb.Run(id=RUN_ID, state=pb.RUN_STATE_TRAINING, step=1, num_steps=10)
    daemon.fake.watch = [[training, training, last]]
    result = opsd("runs", "watch", RUN_ID[:8])
    assert result.code == code
    assert result.err.count("training step 1/10") == 1
    daemon.fake.watch = [[training, last]]
    assert [run["step"] for run in opsd("runs", "watch", RUN_ID, "-o", "json").lines] == [1, 10]


def test_watch_survives_a_daemon_that_restarts(opsd: Any, daemon: Any) -> None:
    training = pb.Run(id=RUN_ID, state=pb.RUN_STATE_TRAINING, step=1, num_steps=10)
    daemon.fake.watch = [
        [training],
        grpc.StatusCode.UNAVAILABLE,
        [finished(pb.RUN_STATE_PROMOTED)],
    ]
    result = opsd("runs", "watch", RUN_ID[:8])
    assert result.code == Exit.OK
    assert daemon.fake.last("WatchRun").id == RUN_ID


def test_watch_gives_up_on_a_daemon_that_stays_away(opsd: Any, daemon: Any) -> None:
    training = pb.Run(id=RUN_ID, state=pb.RUN_STATE_TRAINING)
    daemon.fake.watch = [[training], *[grpc.StatusCode.UNAVAILABLE] * 20]
    assert opsd("runs", "watch", RUN_ID).code == Exit.UNREACHABLE
    daemon.fake.watch = [grpc.StatusCode.UNAVAILABLE]
    assert opsd("runs", "watch", RUN_ID).code == Exit.UNREACHABLE
    assert daemon.fake.watch == []


def test_trigger_and_watch(opsd: Any, daemon: Any) -> None:
    daemon.fake.watch = [[finished(pb.RUN_STATE_FAILED)]]
    assert opsd("runs", "trigger", "--watch").code == Exit.NEGATIVE_OUTCOME
    assert daemon.fake.last("WatchRun").id == RUN_ID


def test_watch_draws_bars_on_a_terminal(
    opsd: Any, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import opsd.daemon.cli.watch as module

    monkeypatch.setattr(module, "_view", lambda output: module._BarView())
    evaluating = pb.Run(id=RUN_ID, state=pb.RUN_STATE_EVALUATING, eval_done=5, eval_total=20)
    daemon.fake.watch = [[evaluating, finished(pb.RUN_STATE_PROMOTED)]]
    result = opsd("runs", "watch", RUN_ID)
    assert result.code == Exit.OK
    assert "evaluation" in result.err
