# SPDX-License-Identifier: Apache-2.0
"""The operators of retnet, also found under ``torch.ops.retnet``.

Shapes: B batch, T time, H heads, Dk and Dv the head sizes of keys and values.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["retention"]

Form = Literal["chunkwise", "parallel", "recurrent"]


def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None = None,
    *,
    scale: float | None = None,
    form: Form = "chunkwise",
    chunk_size: int | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Retention of Sun et al. 2023 (section 2.1): linear attention with an exponential decay.

    Per batch and head, with :math:`\gamma = \exp(\text{log\_decay}_h)`,

    .. math::
        S_t = \gamma S_{t-1} + k_t^T v_t, \qquad \text{out}_t = \text{scale} \; q_t S_t

    Args:
        q: ``[B, T, H, Dk]``, float32, float64, bfloat16 or float16; any strides.
        k: ``[B, T, H, Dk]``, q's dtype.
        v: ``[B, T, H, Dv]``, q's dtype.
        log_decay: ``[H]``, ln gamma in [-inf, 0]; float32, or float64 where q is float64.
        initial_state: ``[N, H, Dk, Dv]`` of log_decay's dtype; zeros where it is not given. N is B,
            or the number of packed sequences.
        scale: factor of q.k, by default ``Dk ** -0.5``.
        form: ``"chunkwise"`` (Eq. 7, linear in T), ``"parallel"`` (Eq. 5, quadratic in T) or
            ``"recurrent"`` (Eq. 6, token by token). All give the same result and gradients.
        chunk_size: tokens per chunk of the chunkwise form; chosen where it is not given.
        cu_seqlens: ``[N + 1]`` int32, bounds of sequences packed along T (then B = 1): starts at 0,
            ends at T, never falls. Where no kernel runs it is read on the host, once.

    Returns:
        ``out [B, T, H, Dv]`` of q's dtype and ``final_state [N, H, Dk, Dv]`` of log_decay's dtype.

    Raises:
        RuntimeError: a shape, dtype, device, option or (on the CPU) value of log_decay or
            cu_seqlens is not as above.
    """
    return torch.ops.retnet.retention(
        q,
        k,
        v,
        log_decay,
        initial_state,
        scale=scale,
        form=form,
        chunk_size=chunk_size,
        cu_seqlens=cu_seqlens,
    )
