# SPDX-License-Identifier: Apache-2.0
"""Inputs of the tests of retention."""

import math

import torch
from torch import Tensor

FORMS = ["chunkwise", "parallel", "recurrent"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = ["q", "k", "v", "log_decay", "initial_state"]

# gamma is 1 - 2^-5, another value that is not 1 - 2^-k, 1 and 0.
LOG_DECAYS = [math.log1p(-(2.0**-5)), math.log1p(-(2.0**-9.37)), 0.0, -math.inf]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of states and log_decay for tokens of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def make_inputs(
    B: int = 2,
    T: int = 70,
    H: int = 4,
    Dk: int = 8,
    Dv: int = 12,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    log_decay: list[float] | None = None,
    num_states: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Returns q, k, v, log_decay and initial_state, rounded to the dtypes that the operator
    takes.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    decays = (LOG_DECAYS * (H // len(LOG_DECAYS) + 1))[:H] if log_decay is None else log_decay
    inputs = {
        "q": normal(B, T, H, Dk).to(dtype),
        "k": normal(B, T, H, Dk).to(dtype),
        "v": normal(B, T, H, Dv).to(dtype),
        "log_decay": torch.tensor(decays, dtype=state_dtype(dtype)),
        "initial_state": normal(num_states or B, H, Dk, Dv).to(state_dtype(dtype)),
    }
    return {name: x.to(device) for name, x in inputs.items()}


def require_grad(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns detached copies that require gradients."""
    return {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}


def as_float64(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the same rounded values in float64 on the CPU, as inputs of an oracle that require
    gradients.
    """
    return {name: x.detach().double().cpu().requires_grad_() for name, x in inputs.items()}


def grads(
    outputs: tuple[Tensor, Tensor],
    inputs: dict[str, Tensor],
    *,
    seed: int = 1,
    use: tuple[bool, bool] = (True, True),
) -> dict[str, Tensor]:
    """Returns the gradients of all inputs for random gradients of the outputs named by ``use``.

    The random numbers are the same for every dtype. They are multiples of 1/64 that bfloat16 can
    represent, so they are exact in every dtype.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, incoming = [], []
    for output, used in zip(outputs, use, strict=True):
        values = torch.randint(-128, 129, output.shape, generator=generator) / 64
        if used:
            chosen.append(output)
            incoming.append(values.to(output))
    result = torch.autograd.grad(
        chosen, list(inputs.values()), incoming, allow_unused=True, materialize_grads=True
    )
    return dict(zip(inputs, result, strict=True))
