"""Whole runs of each method on the micro model, with a verifier behind a real socket."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.trainer.conftest import OPTIM, PAIRS
from tests.unit.trainer.methods.test_distil import gradient, network_of
from tests.unit.trainer.support_server import Verifiers, even_length, serving

from opsd.trainer.data import Pair
from opsd.trainer.methods import make_method
from opsd.trainer.prompts import PromptMaker
from opsd.v1 import support_pb2, training_pb2

MakeRun = Callable[..., Path]
Train = Callable[[Path], Any]
GROUPS = {"max_new_tokens": 8, "temperature": 1.0, "rollouts_per_problem": 4}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[tuple[dict[str, str], Verifiers]]:
    with serving(tmp_path, even_length) as (address, verifiers):
        yield {"address": address}, verifiers


def steps(outcome: Any) -> list[Any]:
    assert outcome.status == 0, outcome.result.error
    return [event.metrics for event in outcome.events if event.kind == "step"]


@pytest.mark.parametrize("method", ["SDPO", "STAR", "GRPO"])
def test_methods_with_verdicts_train_the_same_twice(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers], method: str
) -> None:
    support, verifiers = daemon
    settings = {
        "objective": {"method": f"METHOD_{method}"},
        "rollout": GROUPS,
        "support": support,
    }
    outcomes = [train(make_run(name, **settings)) for name in ("first", "second")]
    for metrics in steps(outcomes[0]):
        assert metrics.grad_norm > 0
        assert 0 < metrics.solved_fraction < 1
        assert 0 < metrics.trained_fraction <= 1
    assert outcomes[0].adapter == outcomes[1].adapter
    assert len(verifiers.asked) == 2 * 4 * 4 * 4
    assert {a.verifier for a in verifiers.asked} == {"exact"}
    assert (outcomes[0].run_dir / "solve-rates.json").is_file()


def test_star_trains_on_what_passed_alone(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers]
) -> None:
    support, _ = daemon
    settings = {"objective": {"method": "METHOD_STAR"}, "rollout": GROUPS, "support": support}
    for metrics in steps(train(make_run(**settings))):
        assert metrics.trained_fraction == pytest.approx(metrics.solved_fraction)


def test_a_step_without_a_signal_changes_nothing(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers]
) -> None:
    support, verifiers = daemon
    verifiers.rule = lambda attempt: support_pb2.AttemptVerdict(passed=False, evidence="no")
    settings = {"rollout": GROUPS, "support": support}
    runs = [
        train(make_run(name, objective={"method": f"METHOD_{name}"}, **settings))
        for name in ("STAR", "GRPO")
    ]
    for outcome in runs:
        assert all(m.grad_norm == m.trained_fraction == 0 for m in steps(outcome))
        assert "no attempt gave a signal" in outcome.events[-3].message
    assert runs[0].adapter == runs[1].adapter, "both are the untrained one"


def test_verdicts_of_error_are_neither_pass_nor_fail(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers]
) -> None:
    support, verifiers = daemon
    verifiers.rule = lambda attempt: support_pb2.AttemptVerdict(
        passed=False, failed_to_verify=True, evidence="timed out"
    )
    settings = {"rollout": GROUPS, "support": support}
    for method in ("GRPO", "SDPO"):
        outcome = train(make_run(method, objective={"method": f"METHOD_{method}"}, **settings))
        assert all(metrics.trained_fraction == 0 for metrics in steps(outcome))
        assert not (outcome.run_dir / "solve-rates.json").exists()


def test_sft_learns_the_solutions_and_their_end(make_run: MakeRun, train: Train) -> None:
    pairs = [pair | {"solution": "y"} for pair in PAIRS]
    optim = OPTIM | {"num_steps": 60, "problems_per_step": 10, "learning_rate": 0.05}
    objective = {"method": "METHOD_SFT"}
    metrics = steps(train(make_run(pairs=pairs, optim=optim, objective=objective)))
    assert metrics[0].loss > 5
    # Two tokens, "y" and the end of the answer; less is not in a head of 16 columns.
    assert metrics[-1].loss < 3.3
    assert metrics[-1].generated_tokens == 0
    assert metrics[-1].student_entropy < metrics[0].student_entropy


def test_sft_leaves_out_a_solution_that_does_not_fit(make_run: MakeRun, train: Train) -> None:
    pairs = [PAIRS[0] | {"solution": "x" * 400}, PAIRS[1]]
    optim = OPTIM | {"problems_per_step": 2}
    outcome = train(make_run(pairs=pairs, optim=optim, objective={"method": "METHOD_SFT"}))
    assert all(metrics.trained_fraction == 0.5 for metrics in steps(outcome))


def test_sdft_reads_the_demonstration(make_run: MakeRun, train: Train) -> None:
    def norm(name: str, solution: str) -> float:
        pairs = [pair | {"solution": solution} for pair in PAIRS]
        objective = {"method": "METHOD_SDFT", "divergence": "DIVERGENCE_REVERSE_KL"}
        return float(steps(train(make_run(name, pairs=pairs, objective=objective)))[0].grad_norm)

    assert norm("one", "a") != norm("other", "bcd")


@pytest.mark.parametrize("method", ["SDPO", "STAR", "GRPO"])
def test_methods_with_verdicts_need_a_daemon(make_run: MakeRun, train: Train, method: str) -> None:
    outcome = train(make_run(objective={"method": f"METHOD_{method}"}, rollout=GROUPS))
    assert outcome.status == 1
    assert f"support.address = '': must be set: METHOD_{method} needs verdicts" in (
        outcome.result.error
    )


def test_a_daemon_that_refuses_is_named(
    make_run: MakeRun, train: Train, daemon: tuple[dict[str, str], Verifiers]
) -> None:
    support, verifiers = daemon

    def broken(attempt: Any) -> Any:
        raise RuntimeError("no verifier here")

    verifiers.rule = broken
    settings = {"objective": {"method": "METHOD_STAR"}, "rollout": GROUPS, "support": support}
    error = train(make_run(**settings)).result.error
    assert error.startswith(f"SupportError: daemon at {support['address']}: attempts could not")
    assert "no verifier here" in error


def test_the_anchor_keeps_the_student_near_the_base_on_the_teachers_prompt(
    make_run: MakeRun, train: Train
) -> None:
    optim = OPTIM | {"num_steps": 25, "problems_per_step": 10}
    drift = {}
    for weight in (1e-9, 2.0):
        objective = {"anchor_weight": weight}
        outcome = train(make_run(f"anchor-{weight}", optim=optim, objective=objective))
        drift[weight] = steps(outcome)[-1].anchor_divergence
    assert drift[2.0] < 0.5 * drift[1e-9]


def test_a_teacher_that_reasons_first_reads_its_own_words(make_run: MakeRun, train: Train) -> None:
    prompt = {"reason_first_tokens": 12, "reason_first_transition": "\n"}
    plain = train(make_run("plain", rollout={"max_new_tokens": 6}))
    reasoned = train(make_run("reasoned", rollout={"max_new_tokens": 6}, prompt=prompt))
    assert steps(plain)[0].divergence != steps(reasoned)[0].divergence
    assert steps(plain)[0].student_entropy == steps(reasoned)[0].student_entropy


def test_the_end_of_an_answer_is_trained_where_it_is_the_padding_too(make_run: MakeRun) -> None:
    network, spec, base = network_of(make_run())
    assert base.tokenizer.pad_token_id == base.eos_id
    spec.objective.method = training_pb2.METHOD_SFT
    method = make_method(spec, network, base, PromptMaker(base.tokenizer, spec, 160))
    [answer] = method.demonstrations([Pair("1", "2+2", "4")])
    assert answer.response == (*base.tokenizer("4").input_ids, base.eos_id)
    got = gradient(network, method, [answer])
    assert network.student.grad_P is not None
    network.student.grad_P.zero_()
    ids = torch.tensor([[*answer.student_prompt, *answer.response]])
    labels = torch.full_like(ids, -100)
    labels[0, len(answer.student_prompt) :] = ids[0, len(answer.student_prompt) :]
    base.causal(input_ids=ids, labels=labels).loss.backward()
    torch.testing.assert_close(got, network.student.grad_P, rtol=1e-4, atol=1e-5)
    without = gradient(network, method, [replace(answer, response=answer.response[:-1])])
    assert (got - without).norm() > 0.1 * got.norm()
