import pytest
import torch
from torch import nn

from opsd.trainer.tiny.muon import Muon, orthogonalise


def test_singular_values_become_about_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 32, 96)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_matches_torchs_muon() -> None:
    torch.manual_seed(0)
    shapes = [(96, 32), (32, 96), (48, 48)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(weight.detach().clone()) for weight in ours]
    muon = Muon(ours, lr=0.02)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    optimizers: tuple[torch.optim.Optimizer, ...] = (muon, reference)
    for _ in range(3):
        for our, their in zip(ours, theirs, strict=True):
            our.grad = torch.randn_like(our)
            their.grad = our.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for our, their in zip(ours, theirs, strict=True):
        # The library iterates in bf16, so an update of at most 0.02 a step agrees to a few percent.
        torch.testing.assert_close(our, their, atol=1.5e-3, rtol=0)


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([nn.Parameter(torch.zeros(3))])
