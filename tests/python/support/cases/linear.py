# SPDX-License-Identifier: Apache-2.0
"""Inputs of the tests of linear."""

import torch
from torch import Tensor

BF16 = torch.bfloat16


def normal(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_onednn(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "CppFunction"
