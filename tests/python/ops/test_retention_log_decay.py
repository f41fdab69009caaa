# SPDX-License-Identifier: Apache-2.0
"""The gradient of log_decay. Implementations often get it wrong, because it is a sum that
cancels.
"""

import math

import pytest
import torch
from torch import Tensor

from retnet.ops import retention
from support.cases.retention import FORMS, as_float64, grads, make_inputs, require_grad
from support.oracles.log_decay import derivative_by_recurrence
from support.oracles.retention import retention_by_definition
from support.tolerances import LOG_DECAY_LIMITS as LIMITS

EXPONENTS = (5, 9.37, 12, math.inf)  # gamma = 1 - 2^-n
SEEDS = 8


@pytest.mark.not_poisoned
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.large
def test_long_sequence(dtype, form, device):
    """The error is the root mean square over seeds at T = 8192, relative to that of the gradient.
    The parallel form takes T = 2048, because its time is quadratic.
    """
    T = 2048 if form == "parallel" else 8192
    decays = [math.log1p(-(2.0**-n)) for n in EXPONENTS]
    # The seeds are heads, because the operator sums over the batch.
    H = SEEDS * len(decays)
    inputs = make_inputs(1, T, H, 8, 8, dtype=dtype, log_decay=decays * SEEDS)
    del inputs["initial_state"]
    generator = torch.Generator().manual_seed(1)
    grad_out = torch.randn(inputs["v"].shape, generator=generator).to(dtype)
    grad_state = torch.randn(1, H, 8, 8, generator=generator).to(inputs["log_decay"])
    exact = {name: x.double() for name, x in inputs.items()}
    expected = derivative_by_recurrence(**exact, grad_out=grad_out, grad_state=grad_state)
    inputs = {name: x.to(device) for name, x in inputs.items()}
    log_decay = inputs["log_decay"].requires_grad_()
    incoming = [grad_out.to(device), grad_state.to(device)]
    (actual,) = torch.autograd.grad(retention(**inputs, form=form), log_decay, incoming)
    expected = expected.view(SEEDS, -1)
    error = (actual.cpu().double().view(SEEDS, -1) - expected).square().mean(0).sqrt()
    relative = error / expected.square().mean(0).sqrt()
    assert (relative <= LIMITS[dtype]).all(), relative


@pytest.mark.parametrize("form", FORMS)
def test_one_sided_at_gamma_one(form, device):
    """gamma = 1 is the end of the domain, so the gradient is compared with a difference from
    inside.
    """
    inputs = require_grad(make_inputs(T=20, log_decay=[0.0] * 4, device=device))
    actual = grads(retention(**inputs, form=form), inputs)["log_decay"]

    def objective(log_decay: float) -> Tensor:
        exact = as_float64(inputs)
        exact["log_decay"] = torch.full((4,), log_decay, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros(4, dtype=torch.float64)
        for x in retention_by_definition(**exact):
            weight = torch.randint(-128, 129, x.shape, generator=generator) / 64
            heads = 2 if x.shape[1] == 20 else 1
            total += (x * weight).transpose(heads, -1).flatten(0, -2).sum(0).detach()
        return total

    step = 1e-5
    difference = (3 * objective(0.0) - 4 * objective(-step) + objective(-2 * step)) / (2 * step)
    torch.testing.assert_close(actual.cpu(), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_zero_at_gamma_zero(form, device):
    inputs = require_grad(make_inputs(T=20, log_decay=[-math.inf] * 4, device=device))
    result = grads(retention(**inputs, form=form), inputs)
    assert torch.equal(result["log_decay"], torch.zeros_like(inputs["log_decay"]))
    assert torch.equal(result["initial_state"], torch.zeros_like(inputs["initial_state"]))
