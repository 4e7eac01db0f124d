"""Gradient checkpointing changes memory and time, and nothing else."""

from typing import Any

import pytest
import torch
from tests.unit.trainer.methods.test_distil import gradient, network_of, objective

from opsd.trainer.errors import ModelError
from opsd.trainer.rollout import sample_rollouts

ON = {"parallel": {"gradient_checkpointing": True}}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_is_the_same(make_run: Any, dropout: float) -> None:
    found = []
    for name, settings in (("kept", {}), ("recomputed", ON)):
        lora = {"rank": 4, "alpha": 8, "dropout": dropout}
        network, _, base = network_of(make_run(name, lora=lora, **settings))
        torch.manual_seed(3)
        found.append(gradient(network, objective(network, base), micro_batch_size=2))
    assert found[0].norm() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


def test_layers_keep_their_input_alone(make_run: Any) -> None:
    kept = []
    for name, settings in (("kept", {}), ("recomputed", ON)):
        network, _, _ = network_of(make_run(name, **settings))
        numbers = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network.student_hidden_BLD(torch.ones((2, 20), dtype=torch.long))
        kept.append(numbers)
    assert kept[1] < kept[0] / 3


def test_sampling_keeps_its_cache(make_run: Any) -> None:
    """A checkpointed layer would drop the cache, with a warning, and warnings are errors here."""
    rollouts = []
    for name, settings in (("kept", {}), ("recomputed", ON)):
        network, spec, base = network_of(make_run(name, **settings))
        gradient(network, objective(network, base))
        with network.rollout_network() as causal:
            rollouts.append(
                sample_rollouts(
                    causal,
                    [(1, 2, 3)],
                    [0],
                    spec.rollout,
                    seed=1,
                    step=0,
                    eos_ids=base.eos_ids,
                    pad_id=base.pad_id,
                )
            )
            caches = causal(input_ids=torch.tensor([[1, 2]]), use_cache=True).past_key_values
            assert caches.get_seq_length() == 2
    assert rollouts[0] == rollouts[1]


def test_a_model_without_such_layers_is_refused(
    make_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.modeling_layers

    class NoneOfThese(torch.nn.Module):
        pass

    monkeypatch.setattr(transformers.modeling_layers, "GradientCheckpointingLayer", NoneOfThese)
    with pytest.raises(ModelError, match=r"set parallel\.gradient_checkpointing to false"):
        network_of(make_run(**ON))
