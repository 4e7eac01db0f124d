"""`opsd runs audit`: what it sends, marks, colours, sorts and sums up."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest

from opsd.daemon.cli.exits import Exit
from opsd.daemon.cli.token_marks import Pull, Sort, sized
from opsd.v1.token_audit_pb2 import AuditedAttempt, AuditedToken

RUN = "0b6c2c1e"


def token(text: str, student: float, teacher: float, pull: float, **fields: Any) -> AuditedToken:
    values: dict[str, Any] = {"id": sum(text.encode()), "weight": 1.0, "loss": pull}
    made = AuditedToken(
        text=text,
        student_logprob=student,
        teacher_logprob=teacher,
        divergence=pull,
        **(values | fields),
    )
    made.teacher_top.add(id=7, text="yes", logprob=math.log(0.75))
    made.student_top.add(id=8, text="no", logprob=math.log(0.5))
    return made


def attempts() -> list[AuditedAttempt]:
    wait = token(" wait", -0.1, -5.0, 3.0, loss=0.5, clipped=True, epistemic=True, weight=0.0)
    return [
        AuditedAttempt(step=1, pair_id="old", tokens=[token("five", -1, -0.5, 0.25, loss=0.5)]),
        AuditedAttempt(
            step=6,
            pair_id="p-1",
            prompt="2+2?",
            teacher_prompt="2+2? (4)",
            tokens=[token("so\n", -0.2, -0.2, 0.001), wait, token("five", -2.0, -0.1, 0.75)],
            truncated=True,
            passed=False,
            evidence="expected 4",
        ),
        AuditedAttempt(step=6, pair_id="p-2", tokens=[token("four", -0.1, -0.3, 0.05)]),
    ]


@pytest.fixture(autouse=True)
def audited(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.fake.audited = attempts()
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)


def test_the_last_step_is_shown_and_all_are_summed_up(opsd: Any, daemon: Any) -> None:
    result = opsd("runs", "audit", RUN)
    assert result.code == 0
    request = daemon.fake.last("ReadTokenAudit")
    assert (request.id, request.step) == (RUN, 0)
    assert "step 6, attempt 1, 3 tokens, failed (expected 4), truncated" in result.out
    assert "step 6, attempt 2, 1 tokens\n" in result.out
    assert "step 1," not in result.out
    assert "teacher reads  2+2? (4)" in result.out
    assert "3 of 2 steps (1 to 6)" in result.out
    assert "shown is step 6, the last one" in result.err


def test_without_colour_marks_say_how_tokens_were_pulled(opsd: Any) -> None:
    out = opsd("runs", "audit", RUN).out
    assert "\x1b" not in out
    # Four signs from 2 nats, three from 0.5; little is left alone.
    assert "so⏎\n[----_?0| wait][+++|five]\n" in out
    assert "\nfour\n" in out
    assert "_ clipped, ? word of doubt, 0 shielded" in out


def test_a_table_of_the_most_pulled_positions(opsd: Any) -> None:
    lines = opsd("runs", "audit", RUN, "--attempt", "1", "--top", "2").out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("at "))
    rows = [line.split() for line in lines[at + 1 : at + 4]]
    assert rows[0][:6] == ["2", '"', 'wait"', "-0.10", "-5.00", "3.000"]
    assert rows[0][6:11] == ["0.500", "0", "less", "clipped", "doubt"]
    assert rows[0][-4:] == ['"no"', "50%", '"yes"', "75%"]
    assert rows[1][:2] == ["3", '"five"']
    assert rows[2] == []


@pytest.mark.parametrize(
    ("sort", "first"),
    [("divergence", "2"), ("loss", "3"), ("gap", "2"), ("entropy", "1"), ("position", "1")],
)
def test_what_puts_a_position_first(opsd: Any, daemon: Any, sort: str, first: str) -> None:
    daemon.fake.audited[1].tokens[0].student_entropy = 2.0
    out = opsd("runs", "audit", RUN, "--attempt", "1", "--sort", sort).out
    lines = out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("at "))
    assert lines[at + 1].split()[0] == first


def test_the_summary_says_which_tokens_took_most(opsd: Any) -> None:
    out = opsd("runs", "audit", RUN, "--top", "2").out
    summary = out[out.index("over all that was read") :]
    # 3.0 of 4.051 nats, over 5 tokens; clipping took 2.5 of them.
    assert "0.8102 nats a token, loss 0.3602" in summary
    assert "20.0 % of the positions; clipping took 61.7 % of the divergence" in summary
    assert "20.0 % of the tokens, 74.1 % of the divergence; 1 of 1 shielded" in summary
    assert "0 of 1 passed" in summary
    rows = [" ".join(line.split()) for line in summary.splitlines()[-2:]]
    assert rows[0] == '" wait" 1 3.000 74.1 % 3.000 -4.90 100.0 % yes'
    assert rows[1] == '"five" 2 1.000 24.7 % 0.500 +1.20 0.0 %'


def test_one_step_or_all(opsd: Any, daemon: Any) -> None:
    result = opsd("runs", "audit", RUN, "--step", "1")
    assert daemon.fake.last("ReadTokenAudit").step == 1
    assert "step 1, attempt 1" in result.out
    assert "over step 1\n" in result.out
    assert result.err == ""
    out = opsd("runs", "audit", RUN, "--all", "--top", "0").out
    assert [line for line in out.splitlines() if line.startswith("step ")] == [
        "step 1, attempt 1, 1 tokens",
        "step 6, attempt 1, 3 tokens, failed (expected 4), truncated",
        "step 6, attempt 2, 1 tokens",
    ]
    assert "\nat " not in out
    assert opsd("runs", "audit", RUN, "--step", "1", "--all").code == Exit.USAGE


def test_json_is_one_attempt_a_line(opsd: Any) -> None:
    lines = opsd("runs", "audit", RUN, "-o", "json").lines
    assert [line["pair_id"] for line in lines] == ["old", "p-1", "p-2"]
    assert lines[1]["passed"] is False
    assert "passed" not in lines[2]
    assert lines[1]["tokens"][1]["clipped"] is True
    second = opsd("runs", "audit", RUN, "-o", "json", "--attempt", "2").lines
    assert [line["pair_id"] for line in second] == ["p-2"]


@pytest.mark.parametrize("output", ["table", "json"])
def test_no_such_attempt(opsd: Any, daemon: Any, output: str) -> None:
    result = opsd("runs", "audit", RUN, "--attempt", "3", "-o", output)
    assert result.code == Exit.NOT_FOUND
    assert "no attempt 3" in result.err
    assert result.out == ""
    daemon.fake.audited = []
    assert opsd("runs", "audit", RUN, "-o", output).code == Exit.NOT_FOUND


def test_the_daemons_refusal_is_said(opsd: Any, daemon: Any) -> None:
    daemon.fake.failure = (grpc.StatusCode.FAILED_PRECONDITION, "attempts_per_step is 0")
    result = opsd("runs", "audit", RUN)
    assert result.code == Exit.REFUSED
    assert result.err == "opsd: attempts_per_step is 0\n"


def test_colours_on_a_terminal(opsd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    out = opsd("runs", "audit", RUN, "--attempt", "1").out
    less = out[: out.index(" wait\x1b")].rsplit("\x1b[", 1)[1]
    codes = less.rstrip("m").split(";")
    # Bold and italic: doubt; underlined: clipped; struck: shielded; on the deepest red.
    assert {"1", "3", "4", "9"} <= set(codes[:4])
    assert codes[-3:] == ["48", "5", "124"]
    more = out[: out.index("five\x1b")].rsplit("\x1b[", 1)[1]
    assert more == "30;48;5;75m"
    assert "[----" not in out
    for off in (("--plain",), ()):
        if not off:
            monkeypatch.setenv("NO_COLOR", "1")
        assert "[----_?0| wait]" in opsd("runs", "audit", RUN, *off).out


def test_what_a_model_wrote_cannot_drive_the_terminal(opsd: Any, daemon: Any) -> None:
    evil = token("\x1b[2J\x07", -1, -9, 5.0)
    prompt = "\x1b]0;title\x07"
    daemon.fake.audited = [AuditedAttempt(step=1, pair_id="\x1b[1m", prompt=prompt, tokens=[evil])]
    assert "\x1b" not in opsd("runs", "audit", RUN).out


def test_tokens_without_text_teacher_or_number(opsd: Any, daemon: Any) -> None:
    nothing = AuditedToken(id=151_900, divergence=math.inf, loss=math.inf, weight=1.0)
    nan = AuditedToken(id=5, text="x", divergence=math.nan, weight=1.0)
    plain = AuditedToken(id=6, text="y", student_logprob=-1, divergence=0.75, loss=0.75, weight=1)
    daemon.fake.audited = [AuditedAttempt(step=1, tokens=[nan, plain, nothing])]
    result = opsd("runs", "audit", RUN)
    assert result.code == 0, result.err
    assert "[~~~|y][~~~~|]" in result.out
    assert "#151900" in result.out
    assert "2 tokens whose divergence is not finite" in result.out
    assert "0.7500 nats a token" in result.out
    order = [sized(t, Sort.DIVERGENCE) for t in (nan, plain, nothing)]
    assert order == [-1.0, 0.75, math.inf]


def test_a_teacher_that_would_never_say_it_is_one(opsd: Any) -> None:
    made = AuditedToken(student_logprob=-1, teacher_logprob=-math.inf)
    assert Pull.of(made).sign == -1
    sure = AuditedToken(student_logprob=-1, teacher_logprob=0)
    assert Pull.of(sure).sign == 0
    sure.teacher_top.add(id=1)
    assert Pull.of(sure).sign == 1
