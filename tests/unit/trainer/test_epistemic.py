"""Words of doubt: found whatever tokens they are made of, counted, and shielded from the loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.trainer.methods.test_distil import gradient, network_of, objective, summed

from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.methods import Answer
from opsd.trainer.model import BaseModel, load_base
from opsd.v1 import training_pb2

WORDS = ("wait", "maybe", "maybe not", "let me check")


class Tokenizer:
    """One token a piece of text."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids)


def marked(*pieces: str, words: tuple[str, ...] = WORDS) -> list[str]:
    """The pieces that are marked."""
    marks = EpistemicTokens(Tokenizer(*pieces), words).marks(range(len(pieces)))
    assert len(marks) == len(pieces)
    return [piece for piece, mark in zip(pieces, marks, strict=True) if mark]


def test_words_are_found_across_tokens_and_cases() -> None:
    assert marked("So", " Wait", ",", " may", "be", " 7") == [" Wait", " may", "be"]
    assert marked("W", "A", "I", "T", "!") == ["W", "A", "I", "T"]
    assert marked("Let", " me", " check", " it") == ["Let", " me", " check"]


def test_parts_of_other_words_are_not() -> None:
    assert marked("await", " waiter", " wait", "ing", " maybes") == []
    assert marked("wait_for", " wait-") == [" wait-"]


def test_the_longest_phrase_counts() -> None:
    assert marked("maybe", " not", " 4") == ["maybe", " not"]


def test_no_words_and_no_tokens() -> None:
    assert marked("wait", words=()) == []
    assert marked() == []


def test_special_characters_in_words_are_themselves() -> None:
    assert marked("h.m", " hxm", words=("h.m",)) == ["h.m"]


def test_with_a_real_tokenizer(micro_model: Path) -> None:
    base = load_base(
        training_pb2.ModelRef(path=str(micro_model), dtype="float32"), torch.device("cpu")
    )
    ids = base.tokenizer("5, wait: ü 6", add_special_tokens=False).input_ids
    marks = EpistemicTokens(base.tokenizer, WORDS).marks(ids)
    assert base.tokenizer.decode([t for t, mark in zip(ids, marks, strict=True) if mark]) == "wait"


PLAIN = Answer((1, 2, 3), (1, 2, 3, 4, 5), (10, 11, 12, 13), False)
DOUBT = Answer((1, 2, 3), (1, 2, 3, 4, 5), (10, 11, 12, 13), False, (False, True, True, False))


def gradient_of(
    network: StudentTeacher, base: BaseModel, answers: list[Answer], weight: float
) -> torch.Tensor:
    return gradient(network, objective(network, base, epistemic_weight=weight), answers)


def test_a_shielded_token_has_no_part_in_the_gradient(make_run: Any) -> None:
    network, _, base = network_of(make_run())
    unshielded = gradient_of(network, base, [DOUBT], 1.0)
    torch.testing.assert_close(unshielded, gradient_of(network, base, [PLAIN], 0.0))
    shielded = gradient_of(network, base, [DOUBT], 0.0)
    half = gradient_of(network, base, [DOUBT], 0.5)
    assert (shielded - unshielded).norm() > 0.01 * unshielded.norm()
    torch.testing.assert_close(half, (shielded + unshielded) / 2)
    everything = replace(PLAIN, epistemic=(True,) * 4)
    assert not gradient_of(network, base, [everything], 0.0).any()


def test_shielded_tokens_are_still_counted(make_run: Any) -> None:
    network, _, base = network_of(make_run())
    sums = [
        summed(objective(network, base, epistemic_weight=weight), [DOUBT, PLAIN])
        for weight in (0.0, 1.0)
    ]
    assert sums[0] == sums[1]
    assert (sums[0].epistemic_tokens, sums[0].tokens) == (2, 8)
    assert 0 < sums[0].epistemic_divergence < sums[0].divergence


def test_training_need_not_strip_the_words(make_run: Any) -> None:
    """The student is pulled to a teacher for whom the word is less likely; the shield holds it."""

    def trained(weight: float) -> tuple[float, float]:
        network, _, base = network_of(make_run(f"weight-{weight}"))
        goal = objective(network, base, epistemic_weight=weight)
        parameters = torch.nn.Parameter(network.student.weights_P, requires_grad=True)
        parameters.grad = network.student.grad_P
        optimizer = torch.optim.Adam([parameters], lr=0.02)
        answers = [DOUBT]
        first = None
        for _ in range(40):
            assert parameters.grad is not None
            parameters.grad.zero_()
            sums = summed(goal, answers)
            first = first or sums
            optimizer.step()
        assert first is not None
        others = (sums.divergence - sums.epistemic_divergence) / (
            first.divergence - first.epistemic_divergence
        )
        return others, sums.epistemic_divergence / first.epistemic_divergence

    pulled, shielded = trained(1.0), trained(0.0)
    # What is left of the divergence, at the other tokens and at the word's.
    assert pulled[0] < 0.3
    assert pulled[1] < 0.3
    assert shielded[0] < 0.3
    assert shielded[1] > 0.6


def test_a_run_counts_them(make_run: Any, train: Any) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    letters += [str(digit) for digit in range(10)]
    run = make_run(objective={"epistemic_words": letters, "epistemic_weight": 0.0})
    metrics = [event.metrics for event in train(run).events if event.kind == "step"]
    assert any(0 < m.epistemic_fraction < 1 for m in metrics)
    assert all((m.epistemic_divergence > 0) == (m.epistemic_fraction > 0) for m in metrics)


@pytest.mark.parametrize("word", ["", " wait", "?!"])
def test_what_is_no_word_is_refused(make_run: Any, train: Any, word: str) -> None:
    outcome = train(make_run(objective={"epistemic_words": ["hmm", word]}))
    assert outcome.status != 0
    assert "objective.epistemic_words" in outcome.result.error
    assert repr(word) in outcome.result.error


def test_the_forms_of_the_loss_train(make_run: Any, train: Any) -> None:
    for name, fields in (
        ("sampled", {"divergence": "DIVERGENCE_POLICY_GRADIENT"}),
        ("top", {"top_k": 5, "clip_mode": "CLIP_MODE_CLAMP", "clip_value": 0.5}),
    ):
        outcome = train(make_run(name, objective=fields))
        assert outcome.status == 0, outcome.result.error
        assert all(e.metrics.grad_norm > 0 for e in outcome.events if e.kind == "step")
    bad = {"divergence": "DIVERGENCE_POLICY_GRADIENT", "top_k": 3}
    assert "objective.top_k" in train(make_run("bad", objective=bad)).result.error


def test_top_k_of_everything_is_the_whole_divergence(make_run: Any) -> None:
    network, _, base = network_of(make_run())
    whole = gradient(network, objective(network, base))
    vocab = base.causal.config.vocab_size
    torch.testing.assert_close(gradient(network, objective(network, base, top_k=vocab)), whole)
    assert (gradient(network, objective(network, base, top_k=3)) - whole).norm() > 0
