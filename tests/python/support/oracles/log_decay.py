# SPDX-License-Identifier: Apache-2.0
"""The gradient of log_decay, computed by differentiating the recurrence."""

import torch
from torch import Tensor


def derivative_by_recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, grad_out: Tensor, grad_state: Tensor
) -> Tensor:
    """Returns d/d log_decay of sum(out * grad_out) + sum(state * grad_state), [B, H], in float64.

    It differentiates the recurrence forward: dS_t = gamma (dS_{t-1} + S_{t-1}).
    """
    gamma = torch.exp(log_decay)[:, None, None]
    state = torch.zeros(*k.shape[0:1], *k.shape[2:], v.shape[-1], dtype=torch.float64)
    derivative, total = torch.zeros_like(state), torch.zeros(k.shape[0], k.shape[2]).double()
    for t in range(k.shape[1]):
        derivative = gamma * (derivative + state)
        state = gamma * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        row = (q[:, t, :, :, None] * derivative).sum(-2)
        total += k.shape[-1] ** -0.5 * (row * grad_out[:, t]).sum(-1)
    return total + (derivative * grad_state).sum((-1, -2))
