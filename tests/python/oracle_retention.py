# SPDX-License-Identifier: Apache-2.0
"""Retention in float64, written as it is defined. Shares no code with the package."""

import math

import torch
from torch import Tensor


def _gamma_power(log_decay: Tensor, head: int, n: int) -> Tensor | float:
    """gamma^n, which is 1 for n = 0 and 0 for n > 0 where gamma = 0."""
    if n == 0:
        return 1.0
    if log_decay[head].item() == -math.inf:
        return 0.0
    return torch.exp(n * log_decay[head])


def retention_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The double loop of the definition, for short sequences; differentiable in all inputs.

    q, k [B, T, H, Dk], v [B, T, H, Dv], log_decay [H], initial_state [B, H, Dk, Dv], all float64.
    """
    T, H, Dk = q.shape[1:]
    scale = Dk**-0.5 if scale is None else scale
    outs, states = [], []
    for h in range(H):
        rows = []
        for n in range(T):
            row = torch.zeros_like(v[:, 0, h])
            for m in range(n + 1):
                score = (q[:, n, h] * k[:, m, h]).sum(-1, keepdim=True)
                row = row + scale * _gamma_power(log_decay, h, n - m) * score * v[:, m, h]
            power = _gamma_power(log_decay, h, n + 1)
            if initial_state is not None and not isinstance(power, float):
                readout = torch.einsum("bk,bkv->bv", q[:, n, h], initial_state[:, h])
                row = row + scale * power * readout
            rows.append(row)
        outs.append(torch.stack(rows, 1))
        state = torch.zeros_like(torch.einsum("bk,bv->bkv", q[:, 0, h], v[:, 0, h]))
        for m in range(T):
            outer = torch.einsum("bk,bv->bkv", k[:, m, h], v[:, m, h])
            state = state + _gamma_power(log_decay, h, T - 1 - m) * outer
        power = _gamma_power(log_decay, h, T)
        if initial_state is not None and not isinstance(power, float):
            state = state + power * initial_state[:, h]
        states.append(state)
    return torch.stack(outs, 2), torch.stack(states, 1)


def retention_by_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of Eq. 6 token by token, for long sequences and gamma > 0."""
    B, T, H, Dk = q.shape
    scale = Dk**-0.5 if scale is None else scale
    gamma = torch.exp(log_decay)[:, None, None]
    state = q.new_zeros(B, H, Dk, v.shape[-1]) if initial_state is None else initial_state
    outs = []
    for t in range(T):
        state = gamma * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outs.append(scale * (q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outs, 1), state
