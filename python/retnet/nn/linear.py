# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a RetNet, by faster products on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet import ops

__all__ = ["Linear", "linear"]

_ROWS = 4  # csrc/cpu/linear.h has it too


class Linear(nn.Linear):
    """torch's `nn.Linear`, by `retnet.ops.linear` where that is faster.

    That is on a CPU, in bfloat16 for up to 4 rows with grad mode off, and in float32 unless
    compiled. A program exported by torch.export holds torch's linear; with strict=True, which
    traces as torch.compile does, what the example inputs take. Exported with grad mode on it is
    torch's in both, for any batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]. Returns [..., out_features]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` as `Linear` computes it; torch's own for subclasses of tensors, as in export."""
    if (
        x.device.type == "cpu"
        and all(type(t) in (Tensor, nn.Parameter) for t in (x, weight))
        and (_may_be_one_dnns(x, weight) or _may_be_a_step(x, weight))
    ):
        return ops.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _may_be_one_dnns(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype == torch.float32 and not torch.compiler.is_compiling()


def _may_be_a_step(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.dtype == weight.dtype == torch.bfloat16
        and x.numel() <= _ROWS * x.shape[-1]  # last: no bound on a dimension that is exported
    )
