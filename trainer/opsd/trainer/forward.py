"""Hidden states of the positions that predict a batch's responses.

Shape suffixes: B sequences, L positions, T response tokens of the batch, D hidden size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def response_hidden_TD(
    network: Callable[[Tensor], Tensor],
    prompts: Sequence[tuple[int, ...]],
    responses: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Tensor:
    """Last hidden states where each token of each response is predicted, responses in order.

    Prompt and response are joined as token ids: nothing is tokenised again.

    Args:
        network: from ids [B, L] to hidden states [B, L, D].
        prompts: token ids, none empty.
        responses: token ids, one to each prompt.
        device: of the network.
    """
    ids_BL, positions_T = _right_padded(prompts, responses, device)
    return network(ids_BL).flatten(0, 1)[positions_T]


def _right_padded(
    prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids, and where in the flattened [B * L] the response tokens are predicted.

    Padding on the right needs no mask: causal attention never looks at it.
    """
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    rows: list[list[int]] = []
    positions: list[int] = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        rows.append([*prompt, *response, *[0] * (width - len(prompt) - len(response))])
        first = row * width + len(prompt) - 1
        positions.extend(range(first, first + len(response)))
    return torch.tensor(rows, device=device), torch.tensor(positions, device=device)
