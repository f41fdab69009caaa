# SPDX-License-Identifier: Apache-2.0
"""The operators of retnet. They are also available as ``torch.ops.retnet``.

In shapes, B is the batch size, T the number of tokens and H the number of heads. Dk and Dv are the
head sizes of keys and values.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = [
    "RetentionPlan",
    "gated_group_norm",
    "linear",
    "multi_scale_retention_step",
    "retention",
    "retention_plan",
    "retention_step",
    "rotary",
]

Form = Literal["chunkwise", "parallel", "recurrent"]
Norm = Literal["layer", "rms"]
RotaryStyle = Literal["interleaved", "half"]


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

    For each batch and head, with :math:`\gamma = e^g` and g = ``log_decay[h]``,

    .. math::
        S_t = \gamma S_{t-1} + k_t^T v_t, \qquad \text{out}_t = \text{scale} \; q_t S_t

    Args:
        q: ``[B, T, H, Dk]``, float32, float64, bfloat16 or float16; any strides.
        k: ``[B, T, H, Dk]``, q's dtype.
        v: ``[B, T, H, Dv]``, q's dtype.
        log_decay: ``[H]``, ln gamma in [-inf, 0]; float32, or float64 if q is float64.
        initial_state: ``[N, H, Dk, Dv]`` of log_decay's dtype, by default zeros. N is B, or the
            number of packed sequences.
        scale: factor of q.k, by default ``Dk ** -0.5``.
        form: ``"chunkwise"`` (Eq. 7, linear in T), ``"parallel"`` (Eq. 5, quadratic in T) or
            ``"recurrent"`` (Eq. 6, token by token). All give the same result and gradients.
        chunk_size: tokens per chunk in the chunkwise form. By default the implementation chooses.
        cu_seqlens: ``[N + 1]`` int32, bounds of sequences packed along T. It starts at 0, ends at T
            and never decreases, and B must be 1. It is read once on the host, except by the CUDA
            kernel, which reads it on the device.

    Returns:
        ``out [B, T, H, Dv]`` of q's dtype and ``final_state [N, H, Dk, Dv]`` of log_decay's dtype.

    Raises:
        RuntimeError: a shape, dtype, device or option is not as above. On the CPU, also a value of
            log_decay or cu_seqlens.

    Example:
        >>> import torch
        >>> from retnet.ops import retention
        >>> q, k = torch.randn(2, 2, 100, 4, 32)
        >>> v = torch.randn(2, 100, 4, 64)
        >>> log_decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(4)))
        >>> out, state = retention(q, k, v, log_decay)
        >>> out.shape, state.shape
        (torch.Size([2, 100, 4, 64]), torch.Size([2, 4, 32, 64]))

        The same in two parts, with the state carried from the first to the second:

        >>> first, state = retention(q[:, :60], k[:, :60], v[:, :60], log_decay)
        >>> rest, state = retention(q[:, 60:], k[:, 60:], v[:, 60:], log_decay, state)
        >>> torch.allclose(torch.cat([first, rest], dim=1), out, atol=1e-5)
        True
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


class RetentionPlan(NamedTuple):
    """What a call of :func:`retention` runs.

    The numbers describe the kernel. They are 0 if no kernel runs.

    Attributes:
        implementation: ``"kernel"`` on CUDA. On the CPU, ``"cpu_"`` and the instruction set of the
            kernel, such as ``"cpu_avx2"``. ``"composite"`` if ATen operators run instead.
        reason: why no kernel runs; empty if one runs.
        inner: the ``head_dim_qk`` of the kernel's tile, to which Dk is padded.
        slice: the columns of Dv that one thread block owns. On the CPU, those that one of the
            threads that share a head owns.
        chunk: tokens of a chunk.
        segment_length: tokens after which a sequence is cut into segments; 0 if it is not cut.
        segments: the number of sequences, or an upper bound of the number of their segments.
        copies: how many of q, k and v are made contiguous first, because a stride is not a multiple
            of 4.
        backward_reason: why the kernels do not compute all gradients; empty if they do. A log_decay
            that requires grad counts as one whose gradient is needed.
    """

    implementation: str
    reason: str
    inner: int
    slice: int
    chunk: int
    segment_length: int
    segments: int
    copies: int
    backward_reason: str


def retention_plan(
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
) -> RetentionPlan:
    """Returns which implementation :func:`retention` runs with these arguments, and why.

    The plan depends on

    - shapes, strides, dtype and device,
    - :func:`torch.use_deterministic_algorithms`,
    - on the CPU, the number of threads, the environment variable ``RETNET_CPU`` and the values of
      ``cu_seqlens``.

    It does not depend on other values.

    Raises:
        RuntimeError: for the same reasons as :func:`retention`.

    Example:
        >>> import torch
        >>> from retnet.ops import retention_plan
        >>> q = k = v = torch.randn(1, 100, 4, 32)
        >>> plan = retention_plan(q, k, v, torch.zeros(4))
        >>> plan.chunk, plan.implementation.startswith("cpu_")
        (64, True)
        >>> retention_plan(q.double(), q.double(), q.double(), torch.zeros(4).double()).reason
        'the kernel supports only float32, bfloat16 and float16'
    """
    plan = torch.ops.retnet.retention_plan(
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
    return RetentionPlan(*plan)


def retention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    *,
    scale: float | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    r"""One token of the recurrent form of :func:`retention` (Sun et al. 2023, Eq. 6).

    It updates the state in place. For each batch entry and head, with :math:`\gamma = e^g` and
    g = ``log_decay[h]``,

    .. math::
        S \leftarrow \gamma S + k^T v, \qquad \text{out} = \text{scale} \; q S

    Args:
        q: ``[B, H, Dk]``, float32, float64, bfloat16 or float16; any strides.
        k: ``[B, H, Dk]``, q's dtype.
        v: ``[B, H, Dv]``, q's dtype.
        log_decay: ``[H]``, ln gamma in [-inf, 0], of the state's dtype. At -inf the old state is
            ignored, even if it holds NaN.
        state: ``[B, H, Dk, Dv]``, or ``[S, H, Dk, Dv]`` with slots; float32, or float64 if q is
            float64. It may have any strides, but it must not overlap itself or share memory with
            an input. It is overwritten.
        scale: factor of q.k, by default ``Dk ** -0.5``.
        slots: ``[B]`` int32. Batch entry b uses ``state[slots[b]]``. A negative slot skips the
            entry: its output is 0, and no state changes. The slots must be distinct and below S.
            The CPU raises if they are not. Other devices do not read them on the host, so the
            behaviour there is undefined.

    Returns:
        ``out [B, H, Dv]`` of q's dtype.

    Raises:
        RuntimeError: a shape, dtype, device or stride is not as above. On the CPU, also a value of
            log_decay or slots. It is also raised if an input requires grad while grad mode is on,
            because the step has no gradient.

    Example:
        >>> import torch
        >>> from retnet.ops import retention, retention_step
        >>> q, k, v = torch.randn(3, 2, 100, 4, 32)
        >>> log_decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(4)))
        >>> state = torch.zeros(2, 4, 32, 32)
        >>> for t in range(100):
        ...     last = retention_step(q[:, t], k[:, t], v[:, t], log_decay, state)
        >>> out, final_state = retention(q, k, v, log_decay)
        >>> torch.allclose(last, out[:, -1], atol=1e-5)
        True
        >>> torch.allclose(state, final_state, atol=1e-4)
        True
    """
    return torch.ops.retnet.retention_step(q, k, v, log_decay, state, scale=scale, slots=slots)


def rotary(
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    *,
    style: RotaryStyle = "interleaved",
) -> tuple[Tensor, Tensor]:
    r"""Rotary position embedding of queries and keys (Su et al. 2021; Sun et al. 2023, Eq. 3).

    Each pair of channels (a, b) of q and k is rotated by ``angle = position * frequencies[i]``:

    .. math::
        x_a' = x_a \cos - x_b \sin, \qquad x_b' = x_a \sin + x_b \cos

    Args:
        q: ``[B, T, H, Dk]`` or ``[B, H, Dk]``, Dk even; float32, float64, bfloat16 or float16.
        k: of q's shape and dtype. It may be q itself.
        positions: int32 or int64. ``[T]`` or ``[B, T]`` if q is ``[B, T, H, Dk]``, ``[B]`` if q is
            ``[B, H, Dk]``.
        frequencies: ``[Dk / 2]`` float32, radians per position. Not differentiable.
        style: ``"interleaved"`` pairs the channels (2i, 2i + 1), ``"half"`` (i, i + Dk/2).

    Returns:
        Rotated q and k, of q's dtype. The angle is computed in float64, so that position 10^6 is as
        accurate as position 1. Its cosine and sine, and the rotation, are computed in float32 (in
        float64 if q is float64).

    Raises:
        RuntimeError: a shape, dtype, device or style is not as above, or frequencies requires grad
            while grad mode is on.

    Example:
        >>> import torch
        >>> from retnet.ops import rotary
        >>> q, k = torch.randn(2, 1, 5, 4, 32)
        >>> frequencies = 10000.0 ** -torch.linspace(0, 1, 16)
        >>> near, far = torch.arange(5), torch.arange(5) + 1000

        q.k depends only on the difference of the positions:

        >>> scores = [(a * b.flip(1)).sum(-1) for a, b in
        ...           (rotary(q, k, positions, frequencies) for positions in (near, far))]
        >>> torch.allclose(scores[0], scores[1], atol=1e-4)
        True
    """
    return torch.ops.retnet.rotary(q, k, positions, frequencies, style=style)


def gated_group_norm(
    x: Tensor,
    gate: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    norm: Norm = "layer",
) -> Tensor:
    r"""Normalisation of each head's channels, times the swish gate (Sun et al. 2023, Eq. 8).

    .. math::
        \text{out} = (\text{norm}(x) \cdot \text{weight} + \text{bias})
        \cdot \text{gate} \cdot \sigma(\text{gate})

    where norm(x) is :math:`(x - \bar x) / \sqrt{\text{var}(x) + \text{eps}}` with the biased
    variance (``"layer"``) or :math:`x / \sqrt{\overline{x^2} + \text{eps}}` (``"rms"``), over the
    last dimension.

    Args:
        x: ``[..., H, Dv]``, float32, float64, bfloat16 or float16; any strides.
        gate: of x's shape and dtype. By default there is no gate.
        weight: ``[Dv]`` or ``[H, Dv]``, of x's dtype or float32 (float64 if x is float64).
        bias: like weight. It may be given without weight, and with either norm.
        eps: added to the variance, at least 0.
        norm: ``"layer"`` or ``"rms"``.

    Returns:
        A tensor of x's shape and dtype. It is computed in float32 (in float64 if x is float64) and
        rounded once.

    Raises:
        RuntimeError: a shape, dtype, device or option is not as above.

    Example:
        >>> import torch
        >>> from retnet.ops import gated_group_norm
        >>> x, gate = torch.randn(2, 2, 100, 4, 64)
        >>> out = gated_group_norm(x, gate, eps=1e-6)
        >>> normed = torch.nn.functional.layer_norm(x, (64,), eps=1e-6)
        >>> torch.allclose(out, normed * torch.nn.functional.silu(gate), atol=1e-5)
        True
    """
    return torch.ops.retnet.gated_group_norm(x, gate, weight, bias, eps=eps, norm=norm)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` with two faster products on a CPU.

    - A kernel handles up to 4 rows of bfloat16 without a gradient. It reads the weight at nearly
      the speed of memory. Products are exact, sums are float32, and the result with the bias is
      rounded once. The bits of a row depend neither on the other rows (up to 4) nor on the number
      of threads.
    - oneDNN handles 128 or more rows of float32 if ``in`` and ``out`` are at least 256 and the CPU
      is an AMD CPU with AVX-512. It also computes the gradient of ``x``. ``F.linear`` uses MKL,
      which does not use AVX-512 there. ``torch.backends.mkldnn`` turns oneDNN off.

    All other calls run ``F.linear``. The environment variable ``RETNET_CPU_LINEAR`` is read at each
    call:

    - ``0`` turns both products off.
    - ``1`` uses oneDNN on any CPU for which torch has it.

    Args:
        x: ``[..., in]``, float32, float64, bfloat16 or float16; any strides.
        weight: ``[out, in]``, x's dtype. For the kernel, rows must be contiguous; the row stride is
            free.
        bias: ``[out]``, x's dtype.

    Returns:
        ``[..., out]`` of x's dtype.

    Raises:
        RuntimeError: a shape, dtype or device is not as above.
        ValueError: ``RETNET_CPU_LINEAR`` has another value.

    Example:
        >>> import torch
        >>> from retnet.ops import linear
        >>> x, weight = torch.randn(1, 64).bfloat16(), torch.randn(32, 64).bfloat16()
        >>> out = linear(x, weight)
        >>> torch.allclose(out.float(), x.float() @ weight.float().T, atol=0.2)
        True
    """
    return torch.ops.retnet.linear(x, weight, bias)


@register_flop_formula(torch.ops.retnet.linear)
def _flop_of_linear(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """The number that FlopCounterMode counts for torch's linear."""
    return 2 * math.prod(x) * weight[0]


def multi_scale_retention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    log_decay: Tensor,
    state: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float,
    norm: Norm = "layer",
    style: RotaryStyle = "interleaved",
    scale: float | None = None,
    slots: Tensor | None = None,
) -> Tensor:
    """Decodes one token between the projections of a layer (Sun et al. 2023, Eq. 8).

    It computes ``gated_group_norm(retention_step(rotary(q, k), v, ...), gate, ...)`` and rounds
    once at the end, not after each of the three operators. It updates the state in place.

    Args:
        q: ``[B, H, Dk]``, Dk even; float32, float64, bfloat16 or float16.
        k: of q's shape and dtype.
        v: ``[B, H, Dv]``, q's dtype.
        gate: of v's shape and dtype.
        log_decay: ``[H]``, see :func:`retention_step`.
        state: ``[B, H, Dk, Dv]`` or ``[S, H, Dk, Dv]``, see :func:`retention_step`. It is
            overwritten.
        positions: ``[B]``, int32 or int64.
        frequencies: ``[Dk / 2]`` float32, see :func:`rotary`.
        weight: ``[Dv]`` or ``[H, Dv]``, see :func:`gated_group_norm`.
        bias: like weight.
        eps: see :func:`gated_group_norm`.
        norm: ``"layer"`` or ``"rms"``.
        style: ``"interleaved"`` or ``"half"``, see :func:`rotary`.
        scale: factor of q.k, by default ``Dk ** -0.5``.
        slots: ``[B]`` int32, see :func:`retention_step`.

    Returns:
        ``out [B, H, Dv]`` of q's dtype. The batch entries that slots skip are 0.

    Raises:
        RuntimeError: for the same reasons as the three operators, or an input requires grad while
            grad mode is on.

    Example:
        >>> import torch
        >>> from retnet.ops import multi_scale_retention_step
        >>> q, k = torch.randn(2, 8, 4, 32)
        >>> v, gate = torch.randn(2, 8, 4, 64)
        >>> log_decay = torch.log1p(-torch.exp2(-5.0 - torch.arange(4)))
        >>> frequencies = 10000.0 ** -torch.linspace(0, 1, 16)
        >>> state = torch.zeros(8, 4, 32, 64)
        >>> positions = torch.zeros(8, dtype=torch.int64)  # of the first token
        >>> out = multi_scale_retention_step(
        ...     q, k, v, gate, log_decay, state, positions, frequencies, eps=1e-6
        ... )
        >>> out.shape
        torch.Size([8, 4, 64])
    """
    return torch.ops.retnet.multi_scale_retention_step(
        q,
        k,
        v,
        gate,
        log_decay,
        state,
        positions,
        frequencies,
        weight=weight,
        bias=bias,
        eps=eps,
        norm=norm,
        style=style,
        scale=scale,
        slots=slots,
    )
