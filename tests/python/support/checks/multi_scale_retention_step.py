# SPDX-License-Identifier: Apache-2.0
"""Compares output and state of multi_scale_retention_step with the oracles of its three parts."""

from retnet.ops import multi_scale_retention_step
from support.cases.ops import assert_rounded_once, exact
from support.cases.retention import state_dtype
from support.oracles.gated_group_norm import gated_group_norm_by_definition
from support.oracles.rotary import rotary_by_definition
from support.oracles.step import retention_step_by_definition
from support.tolerances import assert_close_to_reference

EPS = 1e-5


def definition(inputs, *, norm="layer", style="interleaved", eps=EPS, scale=None):
    """Returns output and state of the oracles, one after the other, in float64."""
    x = exact(inputs)
    q, k = (rotary_by_definition(x[n], x["positions"], x["frequencies"], style) for n in "qk")
    rest = (x["v"], x["log_decay"], x["state"])
    out, state = retention_step_by_definition(q, k, *rest, scale=scale, slots=x.get("slots"))
    affine = (x.get("weight"), x.get("bias"))
    out = gated_group_norm_by_definition(out, x["gate"], *affine, eps=eps, norm=norm)
    if "slots" in x:
        out[x["slots"] < 0] = 0
    return out, state


def check(inputs, **options):
    """Compares the output and the state after the step with the oracles, at the tolerances of the
    table, each for its own dtype.
    """
    dtype = inputs["q"].dtype
    expected, expected_state = definition(inputs, **options)
    out = multi_scale_retention_step(**inputs, **{"eps": EPS, **options})
    assert out.dtype == dtype and out.is_contiguous()
    assert_close_to_reference(out, expected, dtype)
    assert_rounded_once(out, expected)
    assert_close_to_reference(inputs["state"], expected_state, state_dtype(dtype), name="state")
