# SPDX-License-Identifier: Apache-2.0
"""Retention in float64, written as it is defined. It shares no code with the package."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor


def _gamma_power(log_decay: Tensor, n: int) -> Tensor:
    """Returns gamma^n of every head, [H]. It is 1 for n = 0, and 0 for n > 0 if gamma = 0."""
    if n == 0:
        return torch.ones_like(log_decay)
    forgets = log_decay == -math.inf
    return torch.where(forgets, 0.0, torch.exp(n * torch.where(forgets, 0.0, log_decay)))


def retention_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the double loop of the definition, for short sequences. It is differentiable in all
    inputs.

    q, k [B, T, H, Dk], v [B, T, H, Dv], log_decay [H], initial_state [B, H, Dk, Dv], all float64.
    """
    B, T, H, Dk = q.shape
    scale = Dk**-0.5 if scale is None else scale
    start = q.new_zeros(B, H, Dk, v.shape[-1]) if initial_state is None else initial_state
    # gamma = 0 ignores the initial state, even if that holds NaN.
    start = torch.where((log_decay == -math.inf)[:, None, None], 0.0, start)
    power = [_gamma_power(log_decay, n) for n in range(T + 1)]
    rows = []
    for n in range(T):
        row = power[n + 1][:, None] * torch.einsum("bhk,bhkv->bhv", q[:, n], start)
        for m in range(n + 1):
            score = (q[:, n] * k[:, m]).sum(-1)
            row = row + (power[n - m] * score)[..., None] * v[:, m]
        rows.append(scale * row)
    state = power[T][:, None, None] * start
    for m in range(T):
        outer = k[:, m, :, :, None] * v[:, m, :, None, :]
        state = state + power[T - 1 - m][:, None, None] * outer
    return torch.stack(rows, 1), state


def retention_by_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the recurrence of Eq. 6 token by token, for long sequences and gamma > 0."""
    B, _, H, Dk = q.shape
    scale = Dk**-0.5 if scale is None else scale
    gamma = torch.exp(log_decay)[:, None, None]
    state = q.new_zeros(B, H, Dk, v.shape[-1]) if initial_state is None else initial_state
    outs = []
    for q_t, k_t, v_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        state = gamma * state + k_t[..., None] * v_t[..., None, :]
        outs.append(scale * (q_t[..., None] * state).sum(-2))
    return torch.stack(outs, 1), state


def packed_by_definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor,
    lengths: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Computes each sequence of q, k, v [1, sum of lengths, H, D] by itself, with its own state."""
    outs, states = [q[:, :0, :, :1] * v[:, :0]], []
    for n, (first, end) in enumerate(pairwise(accumulate(lengths, initial=0))):
        state = initial_state[n : n + 1]
        if end > first:
            tokens = (x[:, first:end] for x in (q, k, v))
            out, state = retention_by_definition(*tokens, log_decay, state)
            outs.append(out)
        states.append(state)
    return torch.cat(outs, 1), torch.cat(states)
