# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy and its gradient by definition, row by row."""

import torch
from torch import Tensor


def cross_entropy_by_definition(
    logits: Tensor, targets: Tensor, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Returns the loss, summed over the rows of logits [N, V] that are not ignored, and its
    gradient.
    """
    loss, gradient = torch.zeros((), dtype=logits.dtype), torch.zeros_like(logits)
    for n, target in enumerate(targets.tolist()):
        if target == ignore_index:
            continue
        below = logits[n] - logits[n].max()
        probability = below.exp() / below.exp().sum()
        loss += below.exp().sum().log() - below[target]
        gradient[n] = probability
        gradient[n, target] -= 1
    return loss, gradient
