# SPDX-License-Identifier: Apache-2.0
"""Rotary positions in float64, written as they are defined. The code is not shared with the
package.
"""

import math

import torch
from torch import Tensor


def rotary_by_definition(x: Tensor, positions: Tensor, frequencies: Tensor, style: str) -> Tensor:
    """Turns each pair of channels of x [B, T, H, K] by position * frequency, one by one.

    positions are [T] or [B, T]. An x [B, H, K] with positions [B] is a batch of single tokens. The
    result is differentiable in x.
    """
    if x.dim() == 3:
        return rotary_by_definition(x[:, None], positions[:, None], frequencies, style)[:, 0]
    B, T, _, K = x.shape
    pair = {
        "interleaved": [(2 * i, 2 * i + 1) for i in range(K // 2)],
        "half": [(i, i + K // 2) for i in range(K // 2)],
    }[style]
    rows = []
    for b in range(B):
        for t in range(T):
            position = int(positions[t] if positions.dim() == 1 else positions[b, t])
            channels: list[Tensor] = [x.new_zeros(())] * K
            for (first, second), frequency in zip(pair, frequencies.tolist(), strict=True):
                cos, sin = math.cos(position * frequency), math.sin(position * frequency)
                a, c = x[b, t, :, first], x[b, t, :, second]
                channels[first] = a * cos - c * sin
                channels[second] = a * sin + c * cos
            rows.append(torch.stack(channels, -1))
    return torch.stack(rows).view(x.shape)
