# SPDX-License-Identifier: Apache-2.0
"""Gated group norm in float64, written as it is defined. It shares no code with the package."""

import torch
from torch import Tensor


def gated_group_norm_by_definition(
    x: Tensor,
    gate: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    norm: str = "layer",
) -> Tensor:
    """Computes row by row and head by head. x and gate are [..., H, V], weight and bias [V] or [H,
    V].

    Differentiable in all inputs.
    """
    H, V = x.shape[-2:]
    rows = x.reshape(-1, H, V)
    gates = None if gate is None else gate.reshape(-1, H, V)
    results = []
    for n in range(len(rows)):
        for h in range(H):
            row = rows[n, h]
            if norm == "layer":
                row = row - sum(row) / V
            variance = sum(value * value for value in row) / V
            y = row / (variance + eps) ** 0.5
            if weight is not None:
                y = y * (weight[h] if weight.dim() == 2 else weight)
            if bias is not None:
                y = y + (bias[h] if bias.dim() == 2 else bias)
            if gates is not None:
                y = y * gates[n, h] / (1 + torch.exp(-gates[n, h]))
            results.append(y)
    return torch.stack(results).view(x.shape)
