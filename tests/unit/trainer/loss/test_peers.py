"""Unclipped, the loss has the numbers of the libraries that others use, where these are installed.

`pip install --no-deps -r bench/loss-peers.txt` installs them; test_hidden.py holds the same
definitions without them.
"""

import warnings

import pytest
import torch
from torch import Tensor

from opsd.trainer.loss import clipped_kl

pytestmark = pytest.mark.filterwarnings("ignore")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 12, 8, generator=generator)
    return student.requires_grad_(), teacher, torch.randn(203, 8, generator=generator)


def check(loss: Tensor, student: Tensor, teacher: Tensor, weight: Tensor, beta: float) -> None:
    ours = clipped_kl(student, teacher, weight, divergence="jsd", jsd_beta=beta)
    torch.testing.assert_close(ours.loss, loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        torch.autograd.grad(ours.loss, student)[0],
        torch.autograd.grad(loss, student)[0],
        rtol=1e-4,
        atol=1e-7,
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_trl(beta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("trl.kernels.chunked_divergence", exc_type=ImportError)
    student, teacher, weight = inputs()
    divergence, _ = peer.ChunkedDivergenceFunction.apply(
        student, weight, None, teacher, weight, None, beta, 1.0
    )
    check(divergence.mean(), student, teacher, weight, beta)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_liger(beta: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("liger_kernel.chunked_loss", exc_type=ImportError)
    student, teacher, weight = inputs()
    loss = peer.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False
    )
    labels = torch.zeros(len(student), dtype=torch.long)
    check(loss(student, weight, teacher, weight, labels), student, teacher, weight, beta)
