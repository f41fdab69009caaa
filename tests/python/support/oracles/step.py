# SPDX-License-Identifier: Apache-2.0
"""One decode step in float64, written as it is defined. It shares no code with the package."""

import math

import torch
from torch import Tensor


def retention_step_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    *,
    scale: float | None = None,
    slots: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the output [B, H, V] and the new state. It does not change `state`.

    q, k [B, H, K], v [B, H, V], log_decay [H], state [B, H, K, V] or [S, H, K, V], all float64.
    """
    B, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    out, state = torch.zeros_like(v), state.clone()
    for b in range(B):
        slot = b if slots is None else int(slots[b])
        if slot < 0:
            continue
        for h in range(H):
            gamma = math.exp(float(log_decay[h].detach()))
            old = torch.zeros_like(state[slot, h]) if gamma == 0 else gamma * state[slot, h]
            state[slot, h] = old + torch.outer(k[b, h], v[b, h])
            out[b, h] = scale * (q[b, h] @ state[slot, h])
    return out, state
