# SPDX-License-Identifier: Apache-2.0
"""Values of multi_scale_retention_step agree with the float64 oracles of its three parts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.ops import gated_group_norm, multi_scale_retention_step, retention_step, rotary
from support.cases.ops import (
    EXACT_AND_KERNEL,
    INT32,
    NORMS,
    STYLES,
    fused_inputs,
)
from support.cases.retention import DTYPES
from support.checks.multi_scale_retention_step import EPS, check, definition
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize


@parametrize("shape", [(8, 12), (10, 45)], ids=str)
@parametrize("norm", NORMS)
@parametrize("style", STYLES)
@parametrize("S", [None, 7], ids=["rows", "slots"])
@parametrize("dtype", DTYPES, ids=str)
def test_against_the_definition(dtype, S, style, norm, shape, device):
    check(fused_inputs(3, 4, *shape, S=S, dtype=dtype, device=device), style=style, norm=norm)


@parametrize("without", [["weight"], ["bias"], ["weight", "bias"]], ids="-".join)
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_without_weight_or_bias(dtype, without, device):
    inputs = fused_inputs(dtype=dtype, device=device)
    check({n: x for n, x in inputs.items() if n not in without})


@parametrize("weight_layout", [(12,), (4, 12)], ids=str)
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layout_and_dtype_of_weight_and_bias(dtype, weight_layout, device):
    """With bfloat16 tokens they may be float32 or bfloat16, and [Dv] or [H, Dv]."""
    inputs = fused_inputs(dtype=torch.bfloat16, device=device)
    generator = torch.Generator().manual_seed(3)
    for name in ("weight", "bias"):
        inputs[name] = torch.randn(weight_layout, generator=generator).to(device, dtype)
    check(inputs)


@parametrize("options", [{"scale": 2.0}, {"scale": -0.1}, {"eps": 0.5}], ids=str)
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_scale_and_eps(dtype, options, device):
    check(fused_inputs(dtype=dtype, device=device), **options)


@parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounds_once(dtype, device):
    """Nearly every element is the rounded reference. If the three operators ran one after the other
    and each rounded its result, only half of the elements would be.
    """
    inputs = fused_inputs(8, dtype=dtype, device=device)
    expected = definition(inputs)[0].to(dtype)
    q, k = rotary(*(inputs[n] for n in ("q", "k", "positions", "frequencies")))
    thrice = retention_step(q, k, inputs["v"], inputs["log_decay"], inputs["state"].clone())
    affine = (inputs["gate"], inputs["weight"], inputs["bias"])
    thrice = gated_group_norm(thrice, *affine, eps=EPS)
    once = multi_scale_retention_step(**inputs, eps=EPS)
    hits = [(x.cpu() == expected).double().mean().item() for x in (once, thrice)]
    assert hits[0] > 0.99, hits
    assert hits[1] < 0.9, hits


@parametrize("S", [None, 7], ids=["rows", "slots"])
@parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_the_three_operators(dtype, S, device):
    inputs, apart = (fused_inputs(S=S, dtype=dtype, device=device) for _ in range(2))
    out = multi_scale_retention_step(**inputs, eps=EPS)
    q, k = rotary(*(apart[n] for n in ("q", "k", "positions", "frequencies")))
    rest = (apart["v"], apart["log_decay"], apart["state"])
    expected = retention_step(q, k, *rest, slots=apart.get("slots"))
    affine = (apart["gate"], apart["weight"], apart["bias"])
    expected = gated_group_norm(expected, *affine, eps=EPS)
    if S is not None:
        expected[apart["slots"] < 0] = 0
    assert_close_to_reference(out, expected.double(), dtype, factor=2)
    assert_close_to_reference(inputs["state"], apart["state"].double(), dtype, factor=2)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    dtype=st.sampled_from(DTYPES),
    B=st.integers(1, 4),
    H=st.integers(1, 3),
    pairs=st.integers(1, 20),
    Dv=st.integers(1, 70),
    norm=st.sampled_from(NORMS),
    style=st.sampled_from(STYLES),
    permutation=st.permutations(range(5)),
    skipped=st.one_of(st.none(), st.sets(st.integers(0, 3))),
)
def test_any_shape_and_slots(dtype, B, H, pairs, Dv, norm, style, permutation, skipped):
    inputs = fused_inputs(B, H, 2 * pairs, Dv, S=None if skipped is None else 5, dtype=dtype)
    if skipped is not None:
        slots = [-1 if b in skipped else permutation[b] for b in range(B)]
        inputs["slots"] = torch.tensor(slots, dtype=INT32)
    check(inputs, norm=norm, style=style, eps=0.1)


@parametrize("slots", [[-1, 2, -5], [-1, -1, -1]], ids=["some", "none"])
@parametrize("dtype", DTYPES, ids=str)
def test_skipped_rows_are_zero_whatever_they_hold(dtype, slots, device):
    """Neither bias nor a NaN in a skipped token has an effect, and only the used state changes."""
    inputs = fused_inputs(S=4, dtype=dtype, device=device)
    inputs["slots"] = torch.tensor(slots, dtype=INT32, device=device)
    for b, slot in enumerate(slots):
        for name in ("q", "k", "v", "gate"):
            if slot < 0:
                inputs[name][b] = math.nan
    before = inputs["state"].clone()
    out = multi_scale_retention_step(**inputs, eps=EPS)
    used = [b for b, slot in enumerate(slots) if slot >= 0]
    assert not out[[b for b in range(3) if b not in used]].any()
    assert torch.isfinite(out).all() and all(out[b].any() for b in used)
    changed = (inputs["state"] != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [slots[b] for b in used]


@parametrize("S", [None, 3], ids=["rows", "slots"])
@parametrize(("B", "H"), [(0, 4), (2, 0)])
def test_empty(B, H, S, device):
    out = multi_scale_retention_step(**fused_inputs(B, H, S=S, device=device), eps=EPS)
    assert out.shape == (B, H, 12)


def test_no_slot_at_all(device):
    inputs = fused_inputs(2, S=0, device=device)
    inputs["slots"].fill_(-1)
    out = multi_scale_retention_step(**inputs, eps=EPS)
    assert out.shape == (2, 4, 12) and not out.any()


def test_version_of_the_state_goes_up_by_one(device):
    inputs = fused_inputs(device=device)
    for count in (1, 2):
        multi_scale_retention_step(**inputs, eps=EPS)
        assert inputs["state"]._version == count
        assert all(x._version == 0 for name, x in inputs.items() if name != "state")


@parametrize("name", [n for n in fused_inputs() if n != "positions"])
def test_gradients_are_refused(name):
    inputs = fused_inputs()
    inputs[name].requires_grad_()
    message = f"multi_scale_retention_step: {name} must not require grad while grad mode is on"
    with pytest.raises(RuntimeError, match=message):
        multi_scale_retention_step(**inputs, eps=EPS)
    with torch.no_grad():
        assert not multi_scale_retention_step(**inputs, eps=EPS).requires_grad


@parametrize("name", ["q", "k", "v", "gate", "log_decay", "frequencies", "weight", "bias"])
def test_state_that_shares_memory_with_an_input_raises(name):
    inputs = fused_inputs(dtype=torch.float32)  # the message about frequencies
    shape = inputs[name].shape
    inputs[name] = inputs["state"].flatten()[: shape.numel()].view(shape)
    if name == "log_decay":
        inputs["state"].fill_(-1)
    message = f"multi_scale_retention_step: state must not share memory with {name}, got tensors"
    with pytest.raises(RuntimeError, match=message):
        multi_scale_retention_step(**inputs, eps=EPS)


def test_state_that_overlaps_itself_raises():
    inputs = fused_inputs()
    inputs["state"] = inputs["state"][:1].expand(3, -1, -1, -1)
    with pytest.raises(RuntimeError, match="multi_scale_retention_step: state must not overlap it"):
        multi_scale_retention_step(**inputs, eps=EPS)


def test_inference_mode():
    expected = multi_scale_retention_step(**fused_inputs(), eps=EPS)
    with torch.inference_mode():
        assert torch.equal(multi_scale_retention_step(**fused_inputs(), eps=EPS), expected)
