# SPDX-License-Identifier: Apache-2.0
"""The linear layers of a RetNet, with faster products on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet import _C, ops

__all__ = ["Linear", "linear"]


class Linear(nn.Linear):
    """torch's `nn.Linear` that calls `retnet.ops.linear` if that is faster.

    `retnet.ops.linear` is faster

    - on a CPU in bfloat16, for a few rows with grad mode off;
    - on some CPUs in float32, for many rows, unless the layer is compiled.

    A program that torch.export exports contains torch's linear. With strict=True, which traces as
    torch.compile does, it contains the linear that the example inputs take. If grad mode was on
    during the export, it contains torch's linear in both cases, for any batch.

    Tools that look for the exact type `nn.Linear`, such as torch's `quantize_dynamic`, skip this
    subclass. Set `__class__` to `nn.Linear` before you use them (the guide has an example).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies x [..., in_features]. Returns [..., out_features]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes `F.linear` as `Linear` does.

    The operator chooses the kernel. Python makes two decisions, because only Python knows what
    they depend on:

    - Subclasses of tensors (DTensor, fake tensors of torch.export, quantized weights) go to torch,
      because they implement F.linear.
    - Most calls that torch.compile traces also go to torch.
    """
    if _is_plain(x) and _is_plain(weight):
        compiling = torch.compiler.is_compiling()
        if _is_faster_compiled(x, weight) if compiling else _C.has_faster_linear(x, weight):
            return ops.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def _is_plain(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter)


def _is_faster_compiled(x: Tensor, weight: Tensor) -> bool:
    """Returns what `_C.has_faster_linear` returns, in Python that torch.compile can trace.

    The sizes may be symbols. The answers differ in two cases:

    - In float32 this one is no, because Inductor has its own products to choose from.
    - It is yes without a look at RETNET_CPU_LINEAR, at empty tensors and at strides. There the
      operator runs torch's linear.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and not x.is_nested
        and weight.dim() == 2
        and x.dim() > 0
        # This comes last, so that an exported dimension gets no bound.
        and x.numel() <= _C.linear_few_rows * x.shape[-1]
    )
