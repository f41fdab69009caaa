# SPDX-License-Identifier: Apache-2.0
"""Values, state and slots of retention_step agree with the float64 oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.ops import retention, retention_step
from support.cases.ops import EXACT_AND_KERNEL, INT32, assert_rounded_once, exact, step_inputs
from support.cases.retention import DTYPES, make_inputs, state_dtype
from support.oracles.step import retention_step_by_definition
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize

# Sizes of one vector or less, and of several with rows and columns left over.
SHAPES = [(8, 12), (7, 45)]


def check(inputs, scale=None):
    """Compares the output and the state after the step with the oracle, at the tolerances of the
    table, each for its own dtype.
    """
    dtype = inputs["q"].dtype
    expected, expected_state = retention_step_by_definition(**exact(inputs), scale=scale)
    out = retention_step(**inputs, scale=scale)
    assert out.dtype == dtype and out.is_contiguous()
    assert_close_to_reference(out, expected, dtype)
    assert_rounded_once(out, expected)
    assert_close_to_reference(inputs["state"], expected_state, state_dtype(dtype), name="state")


@parametrize("shape", SHAPES, ids=str)
@parametrize("S", [None, 7], ids=["rows", "slots"])
@parametrize("dtype", DTYPES, ids=str)
def test_against_the_definition(dtype, S, shape, device):
    check(step_inputs(3, 4, *shape, S=S, dtype=dtype, device=device))


@parametrize("scale", [1.0, -0.3, 0.0])
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_scale(dtype, scale, device):
    check(step_inputs(3, 4, 7, 45, dtype=dtype, device=device), scale)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    dtype=st.sampled_from(DTYPES),
    B=st.integers(1, 5),
    H=st.integers(1, 3),
    Dk=st.integers(1, 20),
    Dv=st.integers(1, 70),
    log_decay=st.lists(st.floats(max_value=0.0, allow_nan=False), min_size=3, max_size=3),
    permutation=st.permutations(range(7)),
    skipped=st.one_of(st.none(), st.sets(st.integers(0, 4))),
)
def test_any_shape_and_slots(dtype, B, H, Dk, Dv, log_decay, permutation, skipped):
    """If skipped is None there are no slots. Otherwise it lists the skipped rows, which may be
    all.
    """
    S = None if skipped is None else 7
    inputs = step_inputs(B, H, Dk, Dv, S=S, dtype=dtype, log_decay=log_decay[:H])
    if skipped is not None:
        slots = [-1 if b in skipped else permutation[b] for b in range(B)]
        inputs["slots"] = torch.tensor(slots, dtype=INT32)
    check(inputs)


@parametrize("dtype", DTYPES, ids=str)
def test_steps_are_the_recurrent_form(dtype, device):
    """A sequence of steps gives the same outputs and the same final state."""
    inputs = make_inputs(T=70, dtype=dtype, device=device)
    state = inputs["initial_state"].clone()
    tokens = zip(*(inputs[name].unbind(1) for name in "qkv"), strict=True)
    outs = [retention_step(*token, inputs["log_decay"], state) for token in tokens]
    expected, expected_state = retention(**inputs, form="recurrent")
    both = {"dtype": dtype, "factor": 2}  # two results are compared, each within the table
    assert_close_to_reference(torch.stack(outs, 1), expected.double(), **both)
    assert_close_to_reference(state, expected_state.double(), **both, name="state")


@pytest.mark.large
@pytest.mark.not_poisoned
def test_long_decay_does_not_drift():
    """8192 steps at a gamma that is not 1 - 2^-k. If gamma were rounded to float32, the error would
    be 1e-5.
    """
    T, decay = 8192, math.log1p(-(2.0**-11.4))
    tokens = make_inputs(1, T, 2, 4, 4, dtype=torch.float32, log_decay=[decay] * 2)
    state = tokens["initial_state"].clone()
    for t in range(T):
        row = [tokens[name][:, t] for name in "qkv"]
        retention_step(*row, tokens["log_decay"], state)
    gamma = tokens["log_decay"].double().exp()[:, None, None]
    age = torch.arange(T - 1, -1, -1, dtype=torch.float64)[:, None, None]
    k, v = tokens["k"][0].double(), tokens["v"][0].double()
    expected = torch.einsum("thk,thv->hkv", gamma[:, 0] ** age * k, v)
    expected += gamma**T * tokens["initial_state"][0].double()
    assert_close_to_reference(state[0], expected, torch.float32)


@parametrize("S", [None, 5], ids=["rows", "slots"])
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_gamma_zero_forgets_even_nan(dtype, S, device):
    inputs = step_inputs(3, 4, 7, 45, S=S, dtype=dtype, log_decay=[-math.inf] * 4, device=device)
    if S is not None:
        inputs["slots"] = torch.tensor([3, 0, 4], dtype=INT32, device=device)
    inputs["state"].fill_(math.nan)
    out = retention_step(**inputs)
    state = inputs["state"] if S is None else inputs["state"][inputs["slots"].long()]
    assert torch.equal(state, inputs["k"][..., None] * inputs["v"][..., None, :])
    q, k, v = (inputs[name].double() for name in "qkv")
    assert_close_to_reference(out, 7**-0.5 * (q * k).sum(-1, keepdim=True) * v, dtype)


@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_poison_stays_in_its_row(dtype, device):
    clean, dirty = (step_inputs(3, 4, 7, 45, S=5, dtype=dtype, device=device) for _ in range(2))
    for inputs in (clean, dirty):
        inputs["slots"] = torch.tensor([3, 0, 1], dtype=INT32, device=device)
    dirty["state"][[2, 3, 4]] = math.nan
    dirty["v"][0] = math.inf
    outs = [retention_step(**inputs) for inputs in (clean, dirty)]
    assert torch.equal(outs[0][1:], outs[1][1:])
    assert torch.equal(clean["state"][:2], dirty["state"][:2])


LAYOUTS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "layer_of_many": lambda x: torch.full((2, *x.shape), math.nan).to(x).copy_(x)[1],
    "every_second_row": lambda x: x.repeat_interleave(2, 0)[::2],
    "odd_offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "padded": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 0))[:, :, 1:, 1:-2],
}


@parametrize("S", [None, 7], ids=["rows", "slots"])
@parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_state_of_any_strides(dtype, layout, S, device):
    inputs, dense = (step_inputs(3, 4, 7, 45, S=S, dtype=dtype, device=device) for _ in range(2))
    inputs["state"] = state = layout(inputs["state"])
    out, expected = retention_step(**inputs), retention_step(**dense)
    for x, y in [(out, expected), (state, dense["state"])]:
        assert_close_to_reference(x, y.double(), dtype, factor=2)
        # The CPU kernel leaves strided columns to ATen.
        assert torch.equal(x, y) or (dtype == torch.float32 and state.stride(3) != 1)


@parametrize(("Dk", "Dv"), SHAPES)
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_what_surrounds_the_state_is_left_alone(dtype, Dk, Dv, device):
    wide = torch.randn(3, 4, Dk + 2, Dv + 2, dtype=dtype, device=device)
    before = wide.clone()
    inputs = step_inputs(3, 4, Dk, Dv, dtype=dtype, device=device)
    inputs["state"] = wide[:, :, 1:-1, 1:-1]
    retention_step(**inputs)
    assert not torch.equal(wide, before)
    before[:, :, 1:-1, 1:-1] = wide[:, :, 1:-1, 1:-1]
    assert torch.equal(wide, before)


SLOTS = {
    "some": [4, -1, 0, -7],
    "none": [-1, -1, -1, -1],
    "first_skipped": [-1, 3, 2, -1],
    "slot_0_and_skipped": [-1, -1, -1, 0],
    "all": [6, 0, 3, 1],
}


@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@parametrize("slots", SLOTS.values(), ids=SLOTS.keys())
def test_slots(slots, dtype, device):
    """Each used row is a step of its own slot. All other slots stay the same bit by bit. A skipped
    row gives 0 even if its token is NaN.
    """
    inputs = step_inputs(4, 4, 7, 45, S=7, dtype=dtype, device=device)
    inputs["slots"] = torch.tensor(slots, dtype=INT32, device=device)
    before = inputs["state"].clone()
    for b, slot in enumerate(slots):
        if slot < 0:
            for name in "qkv":
                inputs[name][b] = math.nan
    out = retention_step(**inputs)
    expected_state = before.clone()
    for b, slot in enumerate(slots):
        if slot < 0:
            assert not out[b].any()
            continue
        row = expected_state[slot : slot + 1].clone()
        token = [inputs[name][b : b + 1] for name in "qkv"]
        alone = retention_step(*token, inputs["log_decay"], row)
        expected_state[slot] = row[0]
        assert torch.equal(out[b], alone[0])
    assert torch.equal(inputs["state"], expected_state)


def test_no_slot_at_all(device):
    inputs = step_inputs(2, S=0, device=device)
    inputs["slots"].fill_(-1)
    out = retention_step(**inputs)
    assert out.shape == (2, 4, 12) and not out.any()


@parametrize("S", [None, 3], ids=["rows", "slots"])
@parametrize(("B", "H"), [(0, 4), (2, 0), (0, 0)])
def test_empty(B, H, S, device):
    inputs = step_inputs(B, H, S=S, device=device)
    before = inputs["state"].clone()
    out = retention_step(**inputs)
    assert out.shape == (B, H, 12) and torch.equal(inputs["state"], before)


@parametrize("slots", [False, True], ids=["rows", "slots"])
def test_version_of_the_state_goes_up_by_one(slots, device):
    inputs = step_inputs(S=7 if slots else None, device=device)
    for count in range(1, 4):
        retention_step(**inputs)
        assert inputs["state"]._version == count
        assert all(x._version == 0 for name, x in inputs.items() if name != "state")


def test_a_graph_that_saved_the_state_notices():
    inputs = step_inputs()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    used = (weight * inputs["state"]).sum()
    with torch.no_grad():
        retention_step(**inputs)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        used.backward()


@parametrize("name", ["q", "k", "v", "log_decay", "state"])
def test_gradients_are_refused(name):
    inputs = step_inputs()
    before = inputs["state"].clone()
    inputs[name].requires_grad_()
    message = f"retention_step: {name} must not require grad while grad mode is on .*torch.no_grad"
    with pytest.raises(RuntimeError, match=message):
        retention_step(**inputs)
    assert torch.equal(inputs["state"], before)
    with torch.no_grad():
        out = retention_step(**inputs)
    assert not out.requires_grad and not torch.equal(inputs["state"], before)


def test_inference_mode():
    expected = retention_step(**step_inputs())
    inputs = step_inputs()
    with torch.inference_mode():
        assert torch.equal(retention_step(**inputs), expected)
        born_there = step_inputs()
        assert torch.equal(retention_step(**born_there), expected)
    assert inputs["state"]._version == 1
    with pytest.raises(RuntimeError, match="inference tensor outside InferenceMode"):
        retention_step(**born_there)


OVERLAPS = {
    "expanded_batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "expanded_values": lambda x: x[..., :1].expand(-1, -1, -1, 12),
    "windows": lambda x: x.flatten().unfold(0, 12, 1)[:96].view(3, 4, 8, 12),
}


@parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS.keys())
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_state_that_overlaps_itself_raises(dtype, overlap):
    inputs = step_inputs(dtype=dtype)
    inputs["state"] = overlap(inputs["state"])
    message = r"retention_step: state must not overlap itself, got shape \[3, 4, 8, 12\] with strid"
    with pytest.raises(RuntimeError, match=message):
        retention_step(**inputs)


@parametrize("name", ["q", "k", "v", "log_decay"])
@parametrize("dtype", EXACT_AND_KERNEL, ids=str)
def test_state_that_shares_memory_with_an_input_raises(dtype, name):
    inputs = step_inputs(dtype=dtype)
    shape = inputs[name].shape
    inputs[name] = inputs["state"].flatten()[: shape.numel()].view(shape)
    if name == "log_decay":
        inputs["state"].fill_(-1)
    message = f"retention_step: state must not share memory with {name}, got tensors that overlap"
    with pytest.raises(RuntimeError, match=message):
        retention_step(**inputs)


def test_neighbours_in_one_storage_are_no_overlap():
    expected = retention_step(**step_inputs())
    inputs = step_inputs()
    storage = torch.cat([inputs["v"].flatten(), inputs["state"].flatten()])
    inputs["v"] = storage[: 3 * 4 * 12].view(3, 4, 12)
    inputs["state"] = storage[3 * 4 * 12 :].view(3, 4, 8, 12)
    assert torch.equal(retention_step(**inputs), expected)


def test_one_tensor_as_query_and_key():
    inputs = step_inputs()
    inputs["k"] = inputs["q"]
    check(inputs)
