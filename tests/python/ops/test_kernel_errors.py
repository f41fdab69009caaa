# SPDX-License-Identifier: Apache-2.0
"""The error of a device's implementation is at most twice that of the composite, in outputs and in
the gradients of the tokens. The composite is the same operator on the CPU. If there is only a CPU,
the composite is compared with itself.
"""

from functools import cache

import pytest
import torch
from torch import Tensor

from retnet.ops import gated_group_norm, retention, rotary
from support.cases.ops import NORMS, STYLES, norm_inputs, rotary_inputs
from support.cases.retention import FORMS, as_float64, grads, make_inputs, require_grad
from support.oracles.gated_group_norm import gated_group_norm_by_definition
from support.oracles.retention import retention_by_recurrence
from support.oracles.rotary import rotary_by_definition
from support.tolerances import assert_as_good_as_composite

parametrize = pytest.mark.parametrize
each_dtype = parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
EPS = 1e-5
TOKENS = ["q", "k", "v", "x", "gate"]


def results(outputs: tuple[Tensor, ...], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the first output and the gradients of the tokens. States are only compared with the
    table.
    """
    found = grads(outputs, inputs, use=(True,) * len(outputs))
    return {"out": outputs[0].detach(), **{n: x for n, x in found.items() if n in TOKENS}}


def compare(op, inputs: dict[str, Tensor], expected: dict[str, Tensor], device) -> None:
    mine = require_grad({name: x.to(device) for name, x in inputs.items()})
    composite = require_grad(inputs)
    actual, yardstick = results(op(mine), mine), results(op(composite), composite)
    for name, reference in expected.items():
        assert_as_good_as_composite(actual[name], yardstick[name], reference, name)


@cache
def retention_case(dtype):
    inputs = make_inputs(2, 300, 2, 64, 128, dtype=dtype, log_decay=[-0.03, -0.002])
    exact = as_float64(inputs)
    return inputs, results(retention_by_recurrence(**exact), exact)


@parametrize("form", FORMS)
@each_dtype
def test_retention(dtype, form, device):
    compare(lambda x: retention(**x, form=form), *retention_case(dtype), device)


@parametrize("norm", NORMS)
@each_dtype
def test_gated_group_norm(dtype, norm, device):
    inputs = norm_inputs((20,), 2, 64, dtype=dtype)
    exact = as_float64(inputs)
    expected = results((gated_group_norm_by_definition(**exact, eps=EPS, norm=norm),), exact)
    compare(lambda x: (gated_group_norm(**x, eps=EPS, norm=norm),), inputs, expected, device)


@parametrize("style", STYLES)
@each_dtype
def test_rotary(dtype, style, device):
    inputs = rotary_inputs(2, 40, 3, 64, dtype=dtype)
    positions = inputs.pop("positions") + torch.arange(40) * 20_000_000
    frequencies, exact = inputs.pop("frequencies"), as_float64(inputs)
    rotated = tuple(rotary_by_definition(x, positions, frequencies, style) for x in exact.values())

    def op(x):
        rest = (positions.to(x["q"].device), frequencies.to(x["q"].device))
        return rotary(x["q"], x["k"], *rest, style=style)

    compare(op, inputs, results(rotated, exact), device)


def test_the_comparison():
    reference = torch.ones(3, 4, dtype=torch.float64)
    composite = reference + 1e-3
    assert_as_good_as_composite(reference - 1.9e-3, composite, reference)
    with pytest.raises(AssertionError, match=r"out: error 2.10e-03, the composite's is 1.00e-03"):
        assert_as_good_as_composite(reference + 2.1e-3, composite, reference, "out")
