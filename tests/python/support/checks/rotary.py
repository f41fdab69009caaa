# SPDX-License-Identifier: Apache-2.0
"""Compares outputs and gradients of rotary with its oracle."""

from retnet.ops import rotary
from support.cases.ops import ask, asking, assert_rounded_once, exact
from support.cases.retention import grads
from support.oracles.rotary import rotary_by_definition
from support.tolerances import assert_close_to_reference


def definition(inputs, style):
    """Returns q and k as the oracle rotates them."""
    rest = (inputs["positions"], inputs["frequencies"], style)
    return rotary_by_definition(inputs["q"], *rest), rotary_by_definition(inputs["k"], *rest)


def check(inputs, style):
    """Compares both outputs and both gradients with the oracle, at the tolerances of the table."""
    dtype = inputs["q"].dtype
    inputs = ask(inputs)
    outputs, reference = rotary(**inputs, style=style), exact(inputs)
    expected = definition(reference, style)
    for name, x, y in zip("qk", outputs, expected, strict=True):
        assert x.dtype == dtype and x.is_contiguous()
        assert_close_to_reference(x, y, dtype, name=f"rotated {name}")
        assert_rounded_once(x, y)
    actual, expected = grads(outputs, asking(inputs)), grads(expected, asking(reference))
    for name in "qk":
        assert actual[name].dtype == dtype
        assert_close_to_reference(actual[name], expected[name], dtype, grad=True, name=name)
        assert_rounded_once(actual[name], expected[name])
