# SPDX-License-Identifier: Apache-2.0
"""What the tables of tests/python/ops leave out of csrc/ops/cuda, or do only with shapes that are
too large for the SIMT emulator: segments, each subset of gradients, layouts of every operand."""

from functools import partial
from itertools import accumulate, product

import pytest
import torch

from retnet.ops import (
    gated_group_norm,
    multi_scale_retention_step,
    retention,
    retention_plan,
    retention_step,
    rotary,
)
from support.cases.ops import exact, fused_inputs, norm_inputs, rotary_inputs, step_inputs, strided
from support.cases.retention import make_inputs
from support.checks.retention import check_all
from support.on_simt import ON_SIMT, launches
from support.oracles.gated_group_norm import gated_group_norm_by_definition
from support.oracles.retention import retention_by_recurrence
from support.tolerances import assert_close_to_reference

pytestmark = pytest.mark.skipif(not ON_SIMT, reason="the package of tests/on_simt")
parametrize = pytest.mark.parametrize
HALF = torch.bfloat16


@parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_segments(dtype):
    inputs = make_inputs(1, 1100, 1, 8, 12, dtype=dtype, log_decay=[-0.01])
    assert retention_plan(**inputs).segments == 3
    check_all(inputs, oracle=retention_by_recurrence)


def test_segments_of_packed_sequences():
    lengths = [0, 530, 5, 525]
    inputs = make_inputs(1, sum(lengths), 1, 8, 12, dtype=HALF, num_states=4, log_decay=[-0.01])
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    assert retention_plan(**inputs, cu_seqlens=cu_seqlens).segment_length == 512
    check_all(inputs, oracle=partial(packed_by_recurrence, lengths=lengths), cu_seqlens=cu_seqlens)


def packed_by_recurrence(q, k, v, log_decay, initial_state, lengths):
    outs, states, first = [], [], 0
    for n, length in enumerate(lengths):
        part = [x[:, first : first + length] for x in (q, k, v)]
        start = initial_state[n : n + 1]
        out, state = retention_by_recurrence(*part, log_decay, start) if length else (None, start)
        outs += [] if out is None else [out]
        states.append(state)
        first += length
    return torch.cat(outs, 1), torch.cat(states)


def backward_arguments(packed: bool):
    lengths = [3, 0, 40]
    inputs = make_inputs(1, sum(lengths), 2, 8, 12, dtype=HALF, num_states=3 if packed else None)
    inputs["log_decay"] = torch.tensor([-0.1, -0.01])
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) if packed else None
    options = {"scale": None, "form": "chunkwise", "chunk_size": None, "cu_seqlens": cu_seqlens}
    return inputs, options


@parametrize("packed", [False, True], ids=["whole", "packed"])
@parametrize("given", [(True, True), (True, False), (False, True)], ids=str)
@parametrize("state", [True, False], ids=["state", "no_state"])
def test_each_subset_of_the_gradients_of_retention(state, given, packed):
    inputs, options = backward_arguments(packed)
    out, final_state = retention(**inputs, cu_seqlens=options["cu_seqlens"])
    incoming = [
        torch.randn(x.shape).to(x) if there else None
        for x, there in zip((out, final_state), given, strict=True)
    ]
    if not state:
        inputs["initial_state"] = None
    backward = partial(torch.ops.retnet.retention_backward, *incoming, *inputs.values(), **options)
    expected = backward(output_mask=[True] * 5)
    assert (expected[4] is not None) == state
    for mask in product([False, True], repeat=5):
        before = launches()
        found = backward(output_mask=list(mask))
        asked = [*mask[:4], mask[4] and state]
        # grad_v and grad_initial_state come of one launch; zeros need none.
        passes = [asked[0] and given[0], asked[1], asked[2] or asked[4], asked[3]]
        assert launches() == before + sum(passes)
        for wanted, x, y in zip(asked, found, expected, strict=True):
            assert (x is not None) == wanted
            assert not wanted or torch.equal(x, y)


def test_no_gradient_that_comes_in():
    inputs, options = backward_arguments(False)
    masks = {"output_mask": [True] * 5}
    found = torch.ops.retnet.retention_backward(None, None, *inputs.values(), **options, **masks)
    assert not any(x.any() for x in found)


LAYOUTS = {
    "strided": strided,
    "inner": lambda x: x.mT.contiguous().mT if x.dim() > 1 else strided(x),
    "odd": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}
OPERATORS = {
    "retention": (retention, partial(make_inputs, 2, 9, 3, 8, 12)),
    "retention_step": (retention_step, partial(step_inputs, S=5)),
    "multi_scale_retention_step": (
        partial(multi_scale_retention_step, eps=1e-5),
        partial(fused_inputs, S=5),
    ),
    "gated_group_norm": (partial(gated_group_norm, eps=1e-5), norm_inputs),
    "rotary": (rotary, partial(rotary_inputs, batch_positions=True)),
    "rotary of one token": (rotary, partial(rotary_inputs, T=None)),
}


@parametrize("layout", LAYOUTS)
@parametrize("name", OPERATORS)
def test_layouts(name, layout):
    """Each operand alone, and all: the same bits, whatever is copied on the way. But rows of
    gated_group_norm that start at no multiple of 8 bytes are composed of torch's operators."""
    if name == "gated_group_norm" and layout != "inner":
        pytest.skip("composed")
    (operator, make), change = OPERATORS[name], LAYOUTS[layout]
    names = list(make())
    for changed in [[name] for name in names] + [names]:
        plain, inputs = make(dtype=HALF), make(dtype=HALF)
        for name in changed:
            if name != "state" or layout != "inner":
                inputs[name] = change(inputs[name])
        before = launches()
        found, expected = operator(**inputs), operator(**plain)
        assert launches() == before + 2
        if isinstance(found, torch.Tensor):
            found, expected = (found,), (expected,)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), changed
        if "state" in names:
            assert torch.equal(inputs["state"], plain["state"]), changed


@parametrize("name", ["x", "gate"])
def test_a_norm_of_rows_that_are_not_aligned_is_composed(name):
    inputs, before = norm_inputs(dtype=HALF), launches()
    inputs[name] = LAYOUTS["odd"](inputs[name])
    found = gated_group_norm(**inputs, eps=1e-5)
    assert launches() == before
    expected = gated_group_norm_by_definition(**exact(inputs), eps=1e-5, norm="layer")
    assert_close_to_reference(found, expected, HALF)


def test_a_state_whose_columns_are_apart_is_composed():
    inputs = step_inputs(dtype=HALF)
    inputs["state"] = inputs["state"].mT.contiguous().mT
    before = launches()
    retention_step(**inputs)
    assert launches() == before


@parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@parametrize("wide", [True, False])
def test_each_width_of_the_rows_of_a_norm(wide, dtype):
    """Rows of each tile, with accesses of 16 bytes and of less."""
    for Dv in (128, 256, 512, 1024):
        Dv -= 0 if wide else 4
        x = torch.randn(2, 1, Dv).to(dtype)
        before = launches()
        out = gated_group_norm(x, eps=1e-5)
        assert launches() == before + 1
        expected = torch.nn.functional.layer_norm(x.double(), (Dv,), eps=1e-5)
        torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)
