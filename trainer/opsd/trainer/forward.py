"""Hidden states of the positions that predict a batch's responses, without padding.

The batch is one row, sequence after sequence: positions are counted anew in each, and attention
stays within each.

Shape suffixes: L positions of the row, T response tokens of the batch, D hidden size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Network = Callable[[Tensor, Sequence[int]], Tensor]
"""From ids [1, L] and the lengths of the sequences packed in them to hidden states [1, L, D]."""


def response_hidden_TD(
    network: Network,
    prompts: Sequence[tuple[int, ...]],
    responses: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Tensor:
    """Last hidden states where each token of each response is predicted, responses in order.

    Prompt and response are joined as token ids: nothing is tokenised again.

    Args:
        network: of `StudentTeacher`.
        prompts: token ids, none empty.
        responses: token ids, one to each prompt.
        device: of the network.
    """
    row: list[int] = []
    lengths: list[int] = []
    positions: list[int] = []
    for prompt, response in zip(prompts, responses, strict=True):
        first = len(row) + len(prompt) - 1
        positions.extend(range(first, first + len(response)))
        row += [*prompt, *response]
        lengths.append(len(prompt) + len(response))
    ids_1L = torch.tensor([row], device=device)
    positions_T = torch.tensor(positions, device=device)
    return network(ids_1L, lengths)[0].index_select(0, positions_T)


def unpacked(ids_1L: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The sequences as rows of equal length, for a model that cannot take them packed.

    Padding on the right needs no mask: causal attention never looks at it.

    Returns:
        Ids, and where in the flattened rows each position of the packed row is.
    """
    width = max(lengths)
    rows = ids_1L.new_zeros((len(lengths), width))
    places = torch.cat(
        [torch.arange(length) + row * width for row, length in enumerate(lengths)]
    ).to(ids_1L.device)
    rows.view(-1)[places] = ids_1L[0]
    return rows, places
