# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a RetNet, by faster products on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet import ops

__all__ = ["Linear", "linear"]

_FEW_ROWS = 4  # kernels/cpu/linear/params.h has it too
_MANY_ROWS, _MANY_CHANNELS = 128, 256  # and csrc/ops/cpu/linear.cpp these


class Linear(nn.Linear):
    """torch's `nn.Linear`, by `retnet.ops.linear` where that is faster.

    That is on a CPU: in bfloat16 for up to 4 rows with grad mode off, and on some in float32 for
    128 rows and more, unless compiled. A program exported by torch.export holds torch's linear;
    with strict=True, which traces as torch.compile does, what the example inputs take. Exported
    with grad mode on it is torch's in both, for any batch.

    Tools that look for the type `nn.Linear` itself pass this subclass by, torch's
    `quantize_dynamic` among them: set `__class__` to `nn.Linear` before (the guide has an example).
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]. Returns [..., out_features]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` as `Linear` computes it; torch's own for subclasses of tensors, as in export."""
    if x.device.type == "cpu" and (_may_take_onednn(x, weight) or _may_take_step(x, weight)):
        return ops.linear(x, weight, bias)
    return F.linear(x, weight, bias)


# The rows come last: no bound on a dimension that is exported.


def _may_take_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and _are_plain(x, weight)
        and min(weight.shape) >= _MANY_CHANNELS
        and x.numel() >= _MANY_ROWS * x.shape[-1]
    )


def _may_take_step(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and _are_plain(x, weight)
        and x.numel() <= _FEW_ROWS * x.shape[-1]
    )


def _are_plain(x: Tensor, weight: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and not x.is_nested
        and weight.dim() == 2
    )
