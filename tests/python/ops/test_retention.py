# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of the three forms agree with float64 oracles."""

import math
from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet.ops import retention
from support.cases.retention import (
    DTYPES,
    FORMS,
    as_float64,
    grads,
    make_inputs,
    require_grad,
)
from support.checks.retention import assert_close_log_decay, check_all
from support.on_simt import ON_SIMT
from support.oracles.retention import (
    packed_by_definition,
    retention_by_definition,
    retention_by_recurrence,
)
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize


@parametrize("form", FORMS)
@parametrize("dtype", DTYPES, ids=str)
@parametrize("T", [1, 2, 63, 64, 65, 130])
def test_against_the_definition(T, dtype, form, device):
    check_all(make_inputs(B=1, T=T, dtype=dtype, device=device), form=form)


@parametrize("chunk_size", [1, 7, 16, 64, 1000])
def test_chunk_size_changes_nothing(chunk_size, device):
    check_all(make_inputs(T=70, dtype=torch.float32, device=device), chunk_size=chunk_size)


@parametrize("form", FORMS)
@parametrize(("Dk", "Dv"), [(1, 1), (1, 512), (3, 2), (64, 64), (20, 428)])
def test_head_sizes(Dk, Dv, form, device):
    check_all(make_inputs(B=1, T=9, Dk=Dk, Dv=Dv, dtype=torch.float32, device=device), form=form)


# One shape for each tile of the kernel, and sizes that fill no tile.
KERNEL_HEADS = [(4, 4), (64, 64), (36, 132), (128, 128), (256, 260)]


@parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@parametrize(("Dk", "Dv"), KERNEL_HEADS)
def test_head_sizes_of_the_kernel(Dk, Dv, dtype, device):
    check_all(make_inputs(1, 65, 2, Dk, Dv, dtype=dtype, device=device))


@parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@parametrize("T", [63, 64, 65, 129])
def test_lengths_around_a_chunk(T, dtype, device):
    check_all(make_inputs(1, T, 2, 64, 128, dtype=dtype, device=device))


@parametrize("dtype", DTYPES, ids=str)
@parametrize("form", FORMS)
def test_packed_against_the_definition(form, dtype, device):
    lengths = [0, 5, 64, 0, 65, 1]
    inputs = make_inputs(1, sum(lengths), 2, 20, 68, dtype=dtype, device=device, num_states=6)
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    oracle = partial(packed_by_definition, lengths=lengths)
    check_all(inputs, oracle=oracle, form=form, cu_seqlens=cu_seqlens)


@parametrize("form", FORMS)
@parametrize("use", [(True, False), (False, True)], ids=["out_only", "state_only"])
def test_one_undefined_gradient(use, form, device):
    check_all(make_inputs(T=70, dtype=torch.float32, device=device), form=form, use=use)


@parametrize("form", FORMS)
def test_without_initial_state_is_with_zeros(form, device):
    inputs = require_grad(make_inputs(device=device))
    zeros = {**inputs, "initial_state": torch.zeros_like(inputs["initial_state"])}
    without = {**inputs, "initial_state": None}
    actual, expected = retention(**without, form=form), retention(**zeros, form=form)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    del without["initial_state"], zeros["initial_state"]
    actual_grads, expected_grads = grads(actual, without), grads(expected, zeros)
    for name in without:
        torch.testing.assert_close(
            actual_grads[name], expected_grads[name], rtol=1e-12, atol=1e-12, msg=name
        )


@parametrize("scale", [1.0, -0.3, 0.0])
@parametrize("form", FORMS)
def test_scale(scale, form, device):
    inputs, exact = make_inputs(T=20, device=device), as_float64(make_inputs(T=20))
    out, state = retention(**inputs, form=form, scale=scale)
    expected, expected_state = retention_by_definition(**exact, scale=scale)
    assert_close_to_reference(out, expected, torch.float64)
    assert_close_to_reference(state, expected_state, torch.float64)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    B=st.integers(0, 3),
    T=st.integers(0, 24),
    H=st.integers(0, 3),
    Dk=st.integers(1, 9),
    Dv=st.integers(1, 9),
    chunk_size=st.one_of(st.none(), st.integers(1, 50)),
    form=st.sampled_from(FORMS),
    log_decay=st.lists(st.floats(max_value=0.0, allow_nan=False), min_size=3, max_size=3),
)
def test_any_shape_and_decay(B, T, H, Dk, Dv, chunk_size, form, log_decay):
    inputs = require_grad(make_inputs(B, T, H, Dk, Dv, log_decay=log_decay[:H]))
    outputs = retention(**inputs, form=form, chunk_size=chunk_size)
    result = grads(outputs, inputs)
    if B * T * H == 0:
        assert torch.equal(outputs[1], inputs["initial_state"])
        assert all(result[name].shape == x.shape for name, x in inputs.items())
        return
    exact = as_float64(inputs)
    expected = retention_by_definition(**exact)
    for x, reference in zip(outputs, expected, strict=True):
        assert_close_to_reference(x, reference, torch.float64)
    reference_grads = grads(expected, exact)
    for name in ["q", "k", "v"]:
        assert_close_to_reference(result[name], reference_grads[name], torch.float64, grad=True)
    for name in ["log_decay", "initial_state"]:
        torch.testing.assert_close(result[name], reference_grads[name], rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    H=st.integers(1, 3),
    Dk=st.integers(4, 9),
    Dv=st.integers(4, 9),
    chunk_size=st.one_of(st.none(), st.integers(1, 10)),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(DTYPES),
)
def test_any_packing_and_dtype(lengths, H, Dk, Dv, chunk_size, form, dtype):
    T, N = sum(lengths), len(lengths)
    inputs = require_grad(make_inputs(1, T, H, Dk, Dv, dtype=dtype, num_states=N))
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    outputs = retention(**inputs, form=form, chunk_size=chunk_size, cu_seqlens=cu_seqlens)
    exact = as_float64(inputs)
    expected = packed_by_definition(**exact, lengths=lengths)
    for name, x, y in zip(["out", "final_state"], outputs, expected, strict=True):
        assert_close_to_reference(x, y, dtype, name=name)
    result, reference = grads(outputs, inputs), grads(expected, exact)
    for name in ["q", "k", "v", "initial_state"]:
        assert_close_to_reference(result[name], reference[name], dtype, grad=True, name=name)
    assert_close_log_decay(result["log_decay"], reference["log_decay"], dtype)


@parametrize("form", FORMS)
def test_no_token_copies_the_state(form, device):
    inputs = require_grad(make_inputs(T=0, device=device))
    out, state = retention(**inputs, form=form)
    assert out.shape == (2, 0, 4, 12)
    assert torch.equal(state, inputs["initial_state"])
    assert state.data_ptr() != inputs["initial_state"].data_ptr()
    assert torch.equal(grads((out, state), inputs)["initial_state"], grads_of_state(state))
    del inputs["initial_state"]
    assert not retention(**inputs, form=form)[1].any()


def grads_of_state(state: Tensor) -> Tensor:
    """Returns the gradients that `grads` feeds into a state if the output is empty."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(-128, 129, state.shape, generator=generator) / 64).to(state)


@parametrize("form", FORMS)
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_is_each_alone(dtype, form, device):
    bounds = [0, 0, 5, 69, 69, 133, 200, 200]
    packed = require_grad(make_inputs(1, 200, dtype=dtype, device=device, num_states=7))
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    outputs = retention(**packed, cu_seqlens=cu_seqlens, form=form)
    together = grads(outputs, packed)
    total = torch.zeros_like(together["log_decay"])
    for n, (first, end) in enumerate(pairwise(bounds)):
        alone = {name: x[:, first:end].detach() for name, x in packed.items() if name in "qkv"}
        alone["log_decay"] = packed["log_decay"].detach()
        alone["initial_state"] = packed["initial_state"][n : n + 1].detach()
        alone = require_grad(alone)
        out, state = retention(**alone, form=form)
        assert torch.equal(out, outputs[0][:, first:end])
        assert torch.equal(state, outputs[1][n : n + 1])
        generator = torch.Generator().manual_seed(1)
        g_out = torch.randint(-128, 129, outputs[0].shape, generator=generator) / 64
        g_state = torch.randint(-128, 129, outputs[1].shape, generator=generator) / 64
        result = torch.autograd.grad(
            [out, state],
            list(alone.values()),
            [g_out[:, first:end].to(out), g_state[n : n + 1].to(state)],
        )
        result = dict(zip(alone, result, strict=True))
        for name in "qkv":
            assert torch.equal(result[name], together[name][:, first:end]), name
        assert torch.equal(result["initial_state"], together["initial_state"][n : n + 1])
        total += result["log_decay"]
    torch.testing.assert_close(total, together["log_decay"], rtol=1e-5, atol=1e-3)


@parametrize("form", FORMS)
@parametrize("poison", [math.nan, math.inf])
def test_poison_in_one_row_stays_there(poison, form, device):
    results = []
    for value in (1.0, poison):
        inputs = make_inputs(3, 70, dtype=torch.bfloat16, device=device)
        for name in ["q", "k", "v", "initial_state"]:
            inputs[name][1] = value
        inputs = require_grad(inputs)
        outputs = retention(**inputs, form=form)
        found = {**grads(outputs, inputs), "out": outputs[0], "state": outputs[1]}
        results.append({n: x[[0, 2]] for n, x in found.items() if n != "log_decay"})
    for name, x in results[0].items():
        assert torch.equal(x, results[1][name]), name


@parametrize("form", FORMS)
@parametrize("poison", [math.nan, math.inf])
def test_poison_in_one_packed_sequence_stays_there(poison, form, device):
    cu_seqlens = torch.tensor([0, 70, 140, 200], dtype=torch.int32, device=device)
    clean = require_grad(make_inputs(1, 200, dtype=torch.bfloat16, device=device, num_states=3))
    dirty = {name: x.detach().clone() for name, x in clean.items()}
    for name in "qkv":
        dirty[name][:, 70:140] = poison
    dirty["initial_state"][1] = poison
    dirty = require_grad(dirty)
    results = []
    for inputs in (clean, dirty):
        out, state = retention(**inputs, cu_seqlens=cu_seqlens, form=form)
        result = grads((out, state), inputs)
        rows = [out, result["q"], result["k"], result["v"]]
        results.append(
            [torch.cat([x[:, :70], x[:, 140:]], 1) for x in rows]
            + [state[[0, 2]], result["initial_state"][[0, 2]]]
        )
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@parametrize("form", FORMS)
def test_gamma_zero_forgets_even_nan(form, device):
    inputs = make_inputs(B=1, T=70, log_decay=[-math.inf] * 4, device=device)
    inputs["initial_state"].fill_(math.nan)
    inputs = require_grad(inputs)
    out, state = retention(**inputs, form=form)
    q, k, v = (inputs[name] for name in "qkv")
    expected = 8**-0.5 * (q * k).sum(-1, keepdim=True) * v
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)
    last = k[:, -1, :, :, None] * v[:, -1, :, None, :]
    torch.testing.assert_close(state, last, rtol=1e-13, atol=1e-13)
    result = grads((out, state), inputs)
    assert not result["log_decay"].any() and not result["initial_state"].any()
    assert all(torch.isfinite(x).all() for x in result.values())


@parametrize("form", FORMS)
@parametrize("dtype", DTYPES, ids=str)
@pytest.mark.not_poisoned
@pytest.mark.large
def test_long_sequences(dtype, form, device):
    """T = 8192, and some gammas are 1 - 2^-k, some are not, and one is 1. This compares values and
    all gradients except that of log_decay, which test_retention_log_decay.py tests over several
    seeds.
    """
    decays = [math.log1p(-(2.0**-n)) for n in (5, 9.37, 11.4)] + [0.0]
    inputs = make_inputs(1, 8192, 4, 8, 8, dtype=dtype, device=device, log_decay=decays)
    check_all(inputs, oracle=retention_by_recurrence, but="log_decay", form=form)


@pytest.mark.skipif(ON_SIMT, reason="the CUDA kernel clamps it as an operand: docs/numerics.md")
def test_fp16_state_beyond_the_range_of_fp16():
    """Inputs of mean 1 at gamma = 1 take the state beyond 65,504, and the output stays finite."""
    T = 8192
    ones = torch.ones(1, T, 1, 4, dtype=torch.float16)
    out, state = retention(ones * 4, ones * 4, ones * 4, torch.zeros(1), scale=2.0**-10)
    assert torch.equal(state, torch.full((1, 1, 4, 4), 16.0 * T))
    expected = 4 * 16 * 4 * 2.0**-10 * torch.arange(1, T + 1, dtype=torch.float64)
    assert_close_to_reference(out, expected.view(1, T, 1, 1).expand(out.shape), torch.float16)


@parametrize("dtype", DTYPES, ids=str)
def test_forms_agree(dtype, device):
    """Outputs, states and gradients are equal to within the sum of two forms' tolerances."""
    inputs = require_grad(make_inputs(1, 200, 4, 16, 16, dtype=dtype, device=device))
    results = {}
    for form in FORMS:
        out, state = retention(**inputs, form=form)
        results[form] = {"out": out, "state": state, **grads((out, state), inputs)}
    for form in FORMS[1:]:
        for name, x in results[FORMS[0]].items():
            y = results[form][name].double()
            if name == "log_decay":
                assert_close_log_decay(x, y, dtype, factor=2)
            else:
                grad = name in inputs
                assert_close_to_reference(x, y, dtype, grad=grad, factor=2, name=f"{form} {name}")


def products_of(call: Callable) -> list[tuple[int, ...]]:
    """Returns the shapes of the right-hand sides of the matrix products of a call."""
    with torch.profiler.profile(record_shapes=True) as profile:
        call()
    return [tuple(e.input_shapes[1]) for e in profile.events() if e.name == "aten::bmm"]


@parametrize("backward", [False, True], ids=["forward", "backward"])
def test_no_form_is_another(backward):
    """Their results are equal, but their work differs."""
    inputs, products = require_grad(make_inputs(1, 128, 2, 12, 12, dtype=torch.float32)), {}
    for form in FORMS:
        call = partial(retention, **inputs, form=form, chunk_size=16)
        products[form] = products_of(partial(grads, call(), inputs) if backward else call)
    per_token = 4 if backward else 1
    assert len(products["recurrent"]) == 128 * per_token
    assert any(128 in shape for shape in products["parallel"])  # the scores of the whole sequence
    assert not any(128 in shape for shape in products["chunkwise"] + products["recurrent"])
    assert len(products["chunkwise"]) < 16


def test_recurrence_oracle_is_the_definition():
    exact = as_float64(make_inputs(T=40, log_decay=[-0.03, -0.5, -1e-4, 0.0]))
    pairs = zip(retention_by_recurrence(**exact), retention_by_definition(**exact), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
