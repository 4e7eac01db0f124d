"""Sequences packed in one row come out as they do one by one."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.trainer.methods.test_distil import network_of
from torch import Tensor

from opsd.trainer import attention
from opsd.trainer.errors import ModelError
from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.model import load_base

CPU = torch.device("cpu")
PROMPTS = [(1, 2, 3), (7,), (4, 4, 4, 4, 9)]
RESPONSES = [(10, 11, 12, 13), (20,), (30, 31)]
LENGTHS = [7, 2, 7]


def one_by_one(network: Any) -> Tensor:
    parts = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        hidden = network(torch.tensor([[*prompt, *response]]))[0]
        parts.append(hidden[len(prompt) - 1 : -1])
    return torch.cat(parts)


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("who", ["student", "teacher", "base"])
def test_a_batch_equals_its_sequences(make_run: Any, who: str, packs: bool) -> None:
    network, _, base = network_of(make_run())
    assert base.packs
    network._packs = packs
    function = getattr(network, f"{who}_hidden_BLD")
    found = response_hidden_TD(function, PROMPTS, RESPONSES, CPU)
    torch.testing.assert_close(found, one_by_one(function), rtol=1e-5, atol=1e-6)


def test_its_gradient_is_that_of_its_sequences(make_run: Any) -> None:
    network, _, _ = network_of(make_run())
    gradient = network.student.grad_P
    assert gradient is not None
    slope = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for hidden in (
        response_hidden_TD(network.student_hidden_BLD, PROMPTS, RESPONSES, CPU),
        one_by_one(network.student_hidden_BLD),
    ):
        gradient.zero_()
        (hidden * slope).sum().backward()  # type: ignore[no-untyped-call]
        found.append(gradient.clone())
    assert found[0].norm() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_no_mask_and_no_padding_is_made(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _, _ = network_of(make_run())
    seen: list[tuple[Any, ...]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *rest: Any, **settings: Any) -> Tensor:
        seen.append((query.shape[2], settings["attn_mask"], settings["is_causal"]))
        return plain(query, *rest, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    response_hidden_TD(network.student_hidden_BLD, PROMPTS, RESPONSES, CPU)
    assert seen == [(length, None, True) for length in LENGTHS] * 2, "two layers"


def test_a_model_that_keeps_arguments_from_its_attention_is_padded(
    make_run: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

    forward = Qwen3DecoderLayer.forward

    def forgetful(self: Any, *arguments: Any, **settings: Any) -> Any:
        settings.pop("sequence_lengths", None)
        return forward(self, *arguments, **settings)

    monkeypatch.setattr(Qwen3DecoderLayer, "forward", forgetful)
    network, _, base = network_of(make_run())
    assert not base.packs
    assert "cannot take packed sequences, they are padded: Qwen3Attention" in (
        capsys.readouterr().err
    )
    found = response_hidden_TD(network.student_hidden_BLD, PROMPTS, RESPONSES, CPU)
    torch.testing.assert_close(found, one_by_one(network.student_hidden_BLD), rtol=1e-5, atol=1e-6)


def test_a_model_in_which_sequences_meet_is_padded(
    make_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = attention.packed_arguments

    def one_long_sequence(lengths: Any, device: torch.device) -> dict[str, Any]:
        return whole(lengths, device) | {"sequence_lengths": (sum(lengths),)}

    monkeypatch.setattr(attention, "packed_arguments", one_long_sequence)
    _, _, base = network_of(make_run())
    assert not base.packs
    assert "% off" in capsys.readouterr().err


def test_a_window_stays_within_its_sequence() -> None:
    query, key, value = random_rows()
    window = 3
    found, _ = attention.attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        sliding_window=window,
        sequence_lengths=(5, 4, 2),
    )
    torch.testing.assert_close(found, by_hand(query, key, value, [5, 4, 2], window))


@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_is_asked_for_the_same(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    """On a GPU it is torch's own; here another stands in for it that takes the same arguments."""
    from torch.nn.attention import varlen

    names = inspect.signature(varlen.varlen_attn).parameters

    def stand_in(
        query: Tensor, key: Tensor, value: Tensor, ends: Tensor, ends_k: Tensor, longest: int,
        longest_k: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        assert {"scale", "window_size", "enable_gqa"} <= names.keys()
        assert ends.tolist() == ends_k.tolist() == [0, 5, 9, 11]
        assert (ends.dtype, longest, longest_k) == (torch.int32, 5, 5)
        assert enable_gqa
        assert window_size[1] == 0, "causal"
        before = None if window_size[0] < 0 else window_size[0] + 1
        query, key, value = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
        return by_hand(query, key, value, [5, 4, 2], before, scale)[0]

    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    query, key, value = random_rows()
    found = attention._flash(query, key, value, 0.3, window, (5, 4, 2))
    torch.testing.assert_close(found, by_hand(query, key, value, [5, 4, 2], window, 0.3))


def test_attention_that_does_more_is_refused() -> None:
    query, key, value = random_rows()
    for extra in ({"softcap": 30.0}, {"s_aux": torch.zeros(4)}):
        with pytest.raises(ModelError, match="cannot be packed"):
            attention.attention(
                torch.nn.Identity(), query, key, value, None, sequence_lengths=(11,), **extra
            )


def test_the_padded_rollout_still_has_its_mask(make_run: Any) -> None:
    """The same attention serves sampling, where rows are padded on the left."""
    network, _, base = network_of(make_run())
    ids = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad(), network.rollout_network() as causal:
        logits = causal(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)
        ).logits
        alone = causal(input_ids=ids[:1, 2:]).logits
    torch.testing.assert_close(logits[0, 2:], alone[0], rtol=1e-4, atol=1e-5)
    assert base.causal.config._attn_implementation == attention.NAME


def random_rows() -> tuple[Tensor, Tensor, Tensor]:
    """Four query heads, two key heads, eleven positions of eight numbers."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 11, 8, generator=generator)
    key, value = torch.randn(2, 1, 2, 11, 8, generator=generator)
    return query, key, value


def by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    window: int | None,
    scale: float | None = None,
) -> Tensor:
    key, value = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * (8**-0.5 if scale is None else scale)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(owner))
    back = place.unsqueeze(1) - place
    seen = (owner.unsqueeze(1) == owner) & (back >= 0)
    if window is not None:
        seen &= back < window
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def test_micro_model_packs_without_a_word(
    make_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from opsd.trainer.spec import load_spec

    spec = load_spec(make_run())
    base = load_base(spec.model, CPU)
    assert isinstance(StudentTeacher(base, spec), StudentTeacher)
    assert "packed" not in capsys.readouterr().err
