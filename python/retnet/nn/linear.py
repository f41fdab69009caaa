# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a RetNet, by faster products on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet import _C, ops

__all__ = ["Linear", "linear"]

_FEW_ROWS = _C.linear_few_rows


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
    """`F.linear` as `Linear` computes it.

    The operator chooses the kernel. Two decisions are left to Python, which alone sees what they
    depend on: subclasses of tensors (DTensor, fake tensors of torch.export, quantized weights) are
    torch's, since they know F.linear, and so is most of what torch.compile traces.
    """
    if _is_plain(x) and _is_plain(weight):
        compiling = torch.compiler.is_compiling()
        if _is_faster_compiled(x, weight) if compiling else _C.has_faster_linear(x, weight):
            return ops.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _is_plain(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter)


def _is_faster_compiled(x: Tensor, weight: Tensor) -> bool:
    """What `_C.has_faster_linear` answers, in Python that torch.compile can trace and guard.

    Its sizes may be symbols. In float32 the answer is no: Inductor has products to choose from.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not x.is_nested
        and weight.dim() == 2
        # Last: no bound on a dimension that is exported.
        and x.numel() <= _FEW_ROWS * x.shape[-1]
    )
