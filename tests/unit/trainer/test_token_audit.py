"""The audit's lines say what plain torch says, and survive a kill and a resume."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf import json_format
from tests.unit.trainer.methods.test_distil import network_of

from opsd.trainer import token_audit
from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.loss import ClippedKL, TokenTelemetry, clipped_kl
from opsd.trainer.token_audit import AuditedSequence, TokenAudit, TokenSignals
from opsd.v1 import token_audit_pb2, training_pb2

TEMPERATURE = 1.3
SEQUENCE = AuditedSequence(
    pair_id="p1",
    student_prompt=tuple(b"2+2"),
    teacher_prompt=tuple(b"2+2 (4)"),
    response=tuple(range(40, 52)),
    truncated=True,
    epistemic=tuple(index in (2, 3) for index in range(12)),
    passed=False,
    evidence="expected 4, got é",
)
Hidden = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def tokenizer(micro_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(micro_model)


@pytest.fixture
def hidden(make_run: Any) -> Hidden:
    """Student's and teacher's hidden states over `SEQUENCE`, and the head."""
    network, _, _ = network_of(make_run())
    states = [
        response_hidden_TD(read, [prompt], [SEQUENCE.response], torch.device("cpu"))
        for read, prompt in (
            (network.student_hidden_BLD, SEQUENCE.student_prompt),
            (network.teacher_hidden_BLD, SEQUENCE.teacher_prompt),
        )
    ]
    assert states[0].requires_grad
    return states[0], states[1], network.head_weight_VD


def loss_of(hidden: Hidden, **settings: Any) -> ClippedKL:
    return clipped_kl(
        *hidden, temperature=TEMPERATURE, sampled_ids=torch.tensor(SEQUENCE.response), **settings
    )


def signals_of(hidden: Hidden, **settings: Any) -> TokenSignals:
    weight_T = torch.where(torch.tensor(SEQUENCE.epistemic), 0.0, 1.0)
    return TokenSignals.from_telemetry(loss_of(hidden, **settings).telemetry, weight_T)


def audit_of(tokenizer: Any, path: Path | None, **changes: Any) -> TokenAudit:
    spec = {"attempts_per_step": 2, "every_steps": 1, "alternatives": 4}
    steps_done = changes.pop("steps_done", 0)
    return TokenAudit(
        training_pb2.TokenAuditSpec(**(spec | changes)),
        tokenizer,
        path,
        temperature=TEMPERATURE,
        steps_done=steps_done,
    )


def read(path: Path) -> list[token_audit_pb2.AuditedAttempt]:
    """Strictly: a name that the contract does not know is an error."""
    return [
        json_format.Parse(line, token_audit_pb2.AuditedAttempt())
        for line in path.read_text().splitlines()
    ]


def written(tokenizer: Any, path: Path, hidden: Hidden, **settings: Any) -> Any:
    audit = audit_of(tokenizer, path)
    audit.add(0, SEQUENCE, signals_of(hidden, **settings), *hidden)
    audit.write(0)
    return read(path)[0]


def close(found: float, expected: float) -> bool:
    return math.isclose(found, expected, rel_tol=6e-4, abs_tol=1e-6)


@pytest.mark.parametrize("chunk_bytes", [1, 10_000, 1 << 30])
def test_numbers_are_those_of_plain_torch(
    tokenizer: Any,
    hidden: Hidden,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk_bytes: int,
) -> None:
    monkeypatch.setattr(token_audit, "_CHUNK_BYTES", chunk_bytes)
    attempt = written(tokenizer, tmp_path / "a.jsonl", hidden)
    student_TD, teacher_TD, head_VD = (part.detach() for part in hidden)
    s_TV = (student_TD @ head_VD.T / TEMPERATURE).log_softmax(-1)
    t_TV = (teacher_TD @ head_VD.T / TEMPERATURE).log_softmax(-1)
    assert len(attempt.tokens) == len(SEQUENCE.response)
    for n, token in enumerate(attempt.tokens):
        assert token.id == SEQUENCE.response[n]
        assert close(token.student_logprob, float(s_TV[n, token.id]))
        assert close(token.teacher_logprob, float(t_TV[n, token.id]))
        divergence = float((t_TV[n].exp() * (t_TV[n] - s_TV[n])).sum())
        assert close(token.divergence, divergence)
        assert close(token.loss, divergence)
        assert close(token.student_entropy, -float((s_TV[n].exp() * s_TV[n]).sum()))
        assert close(token.teacher_entropy, -float((t_TV[n].exp() * t_TV[n]).sum()))
        for logp_V, top in ((s_TV[n], token.student_top), (t_TV[n], token.teacher_top)):
            values, ids = logp_V.topk(4)
            kept = [i for i, v in enumerate(values) if i == 0 or v >= math.log(1e-3)]
            assert [entry.id for entry in top] == ids[kept].tolist()
            assert all(close(e.logprob, float(v)) for e, v in zip(top, values[kept], strict=True))


def test_an_attempt_is_whole(tokenizer: Any, hidden: Hidden, tmp_path: Path) -> None:
    attempt = written(tokenizer, tmp_path / "a.jsonl", hidden)
    assert (attempt.step, attempt.pair_id) == (1, "p1")
    assert attempt.prompt == tokenizer.decode(SEQUENCE.student_prompt)
    assert attempt.teacher_prompt == tokenizer.decode(SEQUENCE.teacher_prompt)
    assert "".join(token.text for token in attempt.tokens) == tokenizer.decode(SEQUENCE.response)
    assert attempt.truncated
    assert attempt.HasField("passed")
    assert not attempt.passed
    assert attempt.evidence == "expected 4, got é"
    assert [token.epistemic for token in attempt.tokens] == list(SEQUENCE.epistemic)
    assert [token.weight for token in attempt.tokens] == [
        0.0 if mark else 1.0 for mark in SEQUENCE.epistemic
    ]


def test_no_verdict_is_not_a_failed_one(tokenizer: Any, hidden: Hidden, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    audit = audit_of(tokenizer, path)
    plain = AuditedSequence("p", (1,), (), SEQUENCE.response, truncated=False)
    audit.add(0, plain, signals_of(hidden), *hidden)
    audit.write(0)
    assert not read(path)[0].HasField("passed")
    assert not any(token.epistemic for token in read(path)[0].tokens)


@pytest.mark.parametrize("clip", ["clamp", "scale"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_clipped_means_that_an_entry_was_over_the_bound(
    tokenizer: Any, hidden: Hidden, tmp_path: Path, clip: str, divergence: str
) -> None:
    student_TD, teacher_TD, head_VD = (part.detach() for part in hidden)
    s_TV = (student_TD @ head_VD.T / TEMPERATURE).log_softmax(-1)
    t_TV = (teacher_TD @ head_VD.T / TEMPERATURE).log_softmax(-1)
    m_TV = torch.logaddexp(s_TV, t_TV) - math.log(2)
    entries_TV = {
        "forward_kl": t_TV.exp() * (t_TV - s_TV),
        "reverse_kl": s_TV.exp() * (s_TV - t_TV),
        "jsd": (t_TV.exp() * (t_TV - m_TV) + s_TV.exp() * (s_TV - m_TV)) / 2,
    }[divergence]
    largest_T = entries_TV.amax(-1)
    bound = float(largest_T.median()) * 1.0001
    settings = {"divergence": divergence, "clip": clip, "clip_value": bound}
    attempt = written(tokenizer, tmp_path / "a.jsonl", hidden, **settings)
    found = [token.clipped for token in attempt.tokens]
    assert found == (largest_T > bound).tolist()
    assert 0 < sum(found) < len(found)
    clamped_T = entries_TV.clamp(max=bound).sum(-1)
    assert all(close(t.loss, float(c)) for t, c in zip(attempt.tokens, clamped_T, strict=True))


@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd", "policy_gradient"])
def test_without_a_clip_nothing_is_clipped(
    hidden: Hidden, divergence: str, implementation: str
) -> None:
    signals = signals_of(hidden, divergence=divergence, implementation=implementation)
    assert not signals.clipped_T.any()


def test_a_clipped_policy_gradient_weight_shows(hidden: Hidden) -> None:
    whole = loss_of(hidden, divergence="policy_gradient").telemetry
    bound = float(whole.divergence_T.abs().median()) * 1.0001
    signals = signals_of(hidden, divergence="policy_gradient", clip="scale", clip_value=bound)
    assert torch.equal(signals.clipped_T, whole.divergence_T.abs() > bound)


def test_a_small_or_an_unseen_clip_is_one_too() -> None:
    """Of a large sum an entry takes little, and the teacher's mass at an entry may be nothing."""
    zeros_T = torch.zeros(3)
    telemetry = TokenTelemetry(
        loss_T=torch.tensor([100.0, 0.5, 100.0]),
        divergence_T=torch.tensor([100.0, 2.0, 100.0 + 1e-5]),
        positive_divergence_T=torch.tensor([100.0, 2.0, 100.0]),
        clipped_mass_T=torch.tensor([1e-3, 0.0, 0.0]),
        student_entropy_T=zeros_T,
        teacher_entropy_T=zeros_T,
        student_logprob_T=zeros_T,
        teacher_logprob_T=zeros_T,
    )
    signals = TokenSignals.from_telemetry(telemetry, torch.ones(3))
    assert signals.clipped_T.tolist() == [True, True, False]


def test_an_attempt_within_a_batch(tokenizer: Any, hidden: Hidden) -> None:
    telemetry = loss_of(hidden, clip="clamp", clip_value=0.01).telemetry
    weight_T = torch.ones(5)
    part = TokenSignals.from_telemetry(telemetry, weight_T, slice(3, 8))
    assert torch.equal(part.divergence_T, telemetry.divergence_T[3:8])
    assert len(part.clipped_T) == len(part.loss_T) == 5


def test_alternatives_of_next_to_no_probability_are_left_out(
    tokenizer: Any, hidden: Hidden, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    student_TD, teacher_TD, head_VD = (part.detach() for part in hidden)
    audit = audit_of(tokenizer, path)
    audit.add(0, SEQUENCE, signals_of(hidden), student_TD * 50, teacher_TD, head_VD)
    audit.write(0)
    tokens = read(path)[0].tokens
    counts = {len(token.student_top) for token in tokens}
    assert min(counts) == 1
    assert all(math.exp(e.logprob) >= 0.99e-3 for token in tokens for e in token.student_top)
    flat = audit_of(tokenizer, tmp_path / "b.jsonl")
    flat.add(0, SEQUENCE, signals_of(hidden), student_TD * 0, teacher_TD, head_VD.repeat(10, 1))
    flat.write(0)
    # The most likely is there, however unlikely.
    tops = [token.student_top for token in read(tmp_path / "b.jsonl")[0].tokens]
    assert all(len(top) == 1 and math.exp(top[0].logprob) < 1e-3 for top in tops)


def test_an_alternative_completes_the_character_that_was_begun(
    tokenizer: Any, hidden: Hidden, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    head_VD = hidden[2].detach()
    said = tuple(tokenizer("😀", add_special_tokens=False).input_ids)
    other = tokenizer("😃", add_special_tokens=False).input_ids[-1]
    wanted_TD = head_VD[[*said[:3], other]] * 20
    ones_T = torch.ones(4)
    signals = TokenSignals(ones_T, ones_T, ones_T > 1, ones_T, ones_T, ones_T)
    audit = audit_of(tokenizer, path)
    sequence = AuditedSequence("p", (1,), (2,), said, truncated=False)
    audit.add(0, sequence, signals, wanted_TD, wanted_TD, head_VD)
    audit.write(0)
    last = read(path)[0].tokens[-1]
    assert (last.text, last.teacher_top[0].text) == ("😀", "😃")


def test_an_objective_without_a_teacher(tokenizer: Any, hidden: Hidden, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    student_TD, _, head_VD = hidden
    zeros_T = torch.zeros(len(SEQUENCE.response))
    signals = TokenSignals(zeros_T, zeros_T + 0.5, zeros_T.bool(), zeros_T + 1, None, zeros_T + 1)
    audit = audit_of(tokenizer, path)
    audit.add(0, SEQUENCE, signals, student_TD, None, head_VD)
    audit.write(0)
    token = read(path)[0].tokens[0]
    assert token.student_logprob < 0
    assert token.student_top
    assert token.teacher_logprob == 0
    assert not token.teacher_top


def test_what_is_no_number_can_be_read(tokenizer: Any, hidden: Hidden, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    values_T = torch.full((len(SEQUENCE.response),), torch.inf)
    values_T[1], values_T[2] = -torch.inf, torch.nan
    ones_T = torch.ones(len(values_T))
    signals = TokenSignals(values_T, values_T, values_T > 0, ones_T, ones_T, ones_T)
    audit = audit_of(tokenizer, path)
    audit.add(0, SEQUENCE, signals, *hidden)
    audit.write(0)
    found = [token.divergence for token in read(path)[0].tokens[:3]]
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])


def test_attempts_are_written_in_their_places(
    tokenizer: Any, hidden: Hidden, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    audit = audit_of(tokenizer, path)
    for step in (0, 1):
        for place, name in ((1, "second"), (0, "first")):
            sequence = AuditedSequence(name, (1,), (2,), SEQUENCE.response, truncated=False)
            audit.add(place, sequence, signals_of(hidden), *hidden)
        audit.write(step)
    audit.write(2)
    # On disk as soon as the step is over: a kill takes nothing away.
    assert [(a.step, a.pair_id) for a in read(path)] == [
        (1, "first"), (1, "second"), (2, "first"), (2, "second"),
    ]  # fmt: skip


def test_which_attempts_are_wanted(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    every_third = audit_of(tokenizer, path, every_steps=3)
    assert [every_third.wanted(step) for step in range(7)] == [2, 0, 0, 2, 0, 0, 2]
    assert audit_of(tokenizer, path, every_steps=0).wanted(1) == 2
    assert audit_of(tokenizer, None).wanted(0) == 0
    none = tmp_path / "none.jsonl"
    assert audit_of(tokenizer, none, attempts_per_step=0).wanted(0) == 0
    assert not none.exists()
    assert path.exists()


def line(step: int, text: str = "x") -> bytes:
    return json.dumps({"step": step, "pair_id": text}, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    ("before", "steps_done", "kept"),
    [
        (line(1) + line(3), 0, b""),
        (line(1) + line(3) + line(4) + line(5), 3, line(1) + line(3)),
        (line(1) + line(3) + line(4) + line(5), 4, line(1) + line(3) + line(4)),
        (line(1) + line(3), 9, line(1) + line(3)),
        (line(1) + line(2)[:-1], 9, line(1)),
        (line(1) + b'{"step":2', 9, line(1)),
        (line(10) + line(11), 10, line(10)),
    ],
)
def test_resuming_drops_later_steps_and_a_torn_line(
    tokenizer: Any, hidden: Hidden, tmp_path: Path, before: bytes, steps_done: int, kept: bytes
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(before)
    audit = audit_of(tokenizer, path, steps_done=steps_done)
    assert path.read_bytes() == kept
    audit.add(0, SEQUENCE, signals_of(hidden), *hidden)
    audit.write(steps_done)
    assert path.read_bytes().startswith(kept)
    assert read(path)[-1].step == steps_done + 1


def test_nothing_of_the_audit_needs_memory_for_a_gradient(
    tokenizer: Any, hidden: Hidden, tmp_path: Path
) -> None:
    audit = audit_of(tokenizer, tmp_path / "a.jsonl")
    before = [part.detach().clone() for part in hidden]
    loss = loss_of(hidden)
    signals = TokenSignals.from_telemetry(loss.telemetry, torch.ones(len(SEQUENCE.response)))
    audit.add(0, SEQUENCE, signals, *hidden)
    loss.loss.backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(part, was) for part, was in zip(hidden, before, strict=True))


def test_a_run_writes_down_its_first_attempts_and_goes_on_where_it_was_cut(
    make_run: Any, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "token_audit": {"attempts_per_step": 2, "every_steps": 2, "alternatives": 2},
        "objective": {"epistemic_words": ["a"], "clip_mode": "CLIP_MODE_CLAMP", "clip_value": 0.1},
        "checkpoint_every_steps": 2,
    }
    whole = train(make_run("whole", **settings))
    assert whole.status == 0, whole.result.error
    attempts = read(whole.run_dir / token_audit.FILE_NAME)
    assert [attempt.step for attempt in attempts] == [1, 1, 3, 3]
    tokens = [token for attempt in attempts for token in attempt.tokens]
    assert all(len(token.student_top) >= 1 and token.weight == 1 for token in tokens)
    assert any(token.clipped and token.loss < token.divergence for token in tokens)
    step = next(e for e in whole.events if e.kind == "step").metrics
    assert min(t.divergence for t in tokens) < step.divergence < max(t.divergence for t in tokens)
    run_json = make_run("cut", **settings)
    monkeypatch.setenv("OPSD_TRAINER_FAILPOINT", "nan-at-step:2")
    assert train(run_json).status == 1
    monkeypatch.delenv("OPSD_TRAINER_FAILPOINT")
    cut = train(run_json)
    assert read(cut.run_dir / token_audit.FILE_NAME) == attempts


def test_the_audit_changes_nothing_and_none_writes_nothing(make_run: Any, train: Any) -> None:
    audited = train(make_run("audited", token_audit={"attempts_per_step": 3}))
    plain = train(make_run("plain"))
    assert audited.adapter == plain.adapter
    assert len(read(audited.run_dir / token_audit.FILE_NAME)) == 12
    assert not (plain.run_dir / token_audit.FILE_NAME).exists()
