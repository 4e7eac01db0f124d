"""Log-probabilities of given tokens, through the same fused loss as everything else.

A teacher that is certain of the token y has the forward KL -log p_S(y), and its gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.head import OutputHead
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.loss import ClippedKL
from opsd.trainer.methods.answer import Answer, StepSums, response_ids


def student_hidden(network: StudentTeacher, batch: Sequence[Answer]) -> Tensor:
    """[T, D], the student's last hidden states where the batch's tokens are predicted."""
    return response_hidden_TD(
        network.student_hidden_BLD,
        [answer.student_prompt for answer in batch],
        [answer.response for answer in batch],
        network.device,
    )


def token_likelihood(
    hidden_TD: Tensor, head: OutputHead, ids_T: Tensor, weights_T: Tensor, temperature: float
) -> ClippedKL:
    """Sum over tokens of -weight · log p(token).

    Args:
        hidden_TD: last hidden states; get the gradient.
        head: of the network.
        ids_T: int64 tokens.
        weights_T: may be negative.
        temperature: divides the logits.
    """
    return head.clipped_kl(
        hidden_TD,
        None,
        temperature=temperature,
        teacher_topk_ids=ids_T.unsqueeze(-1),
        teacher_topk_logprobs=torch.zeros((len(ids_T), 1), device=ids_T.device),
        token_weight=weights_T.to(ids_T.device),
        sampled_ids=ids_T,
    )


@torch.no_grad()
def token_logprobs(
    hidden_TD: Tensor, head: OutputHead, ids_T: Tensor, temperature: float
) -> Tensor:
    """[T] fp32 log p of each token, nats."""
    weights_T = torch.zeros(len(ids_T), device=ids_T.device)
    out = token_likelihood(hidden_TD, head, ids_T, weights_T, temperature)
    return out.telemetry.student_logprob_T.float()


def negative_log_likelihood(
    network: StudentTeacher, batch: Sequence[Answer], weights_T: Tensor, temperature: float
) -> ClippedKL:
    """`token_likelihood` of a batch's responses under the student."""
    ids_T = response_ids(batch, network.device)
    hidden_TD = student_hidden(network, batch)
    return token_likelihood(hidden_TD, network.head, ids_T, weights_T, temperature)


def add_likelihood(sums: StepSums, out: ClippedKL, batch: Sequence[Answer], loss_T: Tensor) -> None:
    """Adds what a batch without a teacher shows.

    Args:
        sums: added to.
        out: of the likelihood.
        batch: whose tokens these are.
        loss_T: the method's own loss of each token.
    """
    telemetry = out.telemetry
    values = torch.stack([loss_T.double(), telemetry.student_entropy_T.double()])
    loss, entropy = values.sum(-1).tolist()
    sums.loss += loss
    sums.student_entropy += entropy
    sums.tokens += values.shape[1]
    sums.epistemic_tokens += sum(sum(answer.epistemic) for answer in batch)
