# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels on every instruction set of this machine: tests of what only they do. `make
paths` also runs the tables of the operators on each.
"""

import math
import time
from functools import partial
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from retnet.ops import gated_group_norm, retention, retention_plan
from support.cases.operators import OPS, incoming_of
from support.cases.ops import STYLES, ask, asking, exact, rotary_inputs, strided
from support.cases.retention import as_float64, grads, make_inputs, require_grad
from support.checks.retention import check_all
from support.checks.rotary import check as check_rotary
from support.instruction_sets import instruction_sets
from support.oracles.log_decay import derivative_by_recurrence
from support.oracles.retention import packed_by_definition, retention_by_recurrence
from support.tolerances import (
    LOG_DECAY_LIMITS,
    assert_as_good_as_composite,
    assert_close_to_reference,
)

parametrize = pytest.mark.parametrize
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_every_machine_has_two(path):
    assert {"portable", "emulated"} <= set(instruction_sets())
    plan = retention_plan(**make_inputs(dtype=torch.bfloat16))
    assert plan.implementation == f"cpu_{path}"


def test_threads_share_the_work(threads):
    threads(2)
    before = time.process_time(), time.thread_time()
    torch.ops.retnet._multiply_adds(torch.float32, 1 << 24)
    of_all, of_this = time.process_time() - before[0], time.thread_time() - before[1]
    # Each thread does half of the work. On a busy machine this thread also waits for its turn.
    assert of_all - of_this > 0.1 * of_this


# Heads of one block, of several and of part of one. Tokens of part of a chunk, of one and of
# several.
SHAPES = [
    (1, 8, 12),
    (2, 1, 1),
    (3, 3, 5),
    (63, 20, 36),
    (65, 36, 132),
    (130, 6, 40),
]


@parametrize("shape", SHAPES, ids=str)
@parametrize("dtype", DTYPES, ids=str)
def test_against_the_definition(dtype, shape, path):
    T, Dk, Dv = shape
    check_all(make_inputs(2, T, 4, Dk, Dv, dtype=dtype))


@parametrize("dtype", DTYPES, ids=str)
def test_packed(dtype, path):
    lengths = [0, 5, 64, 0, 65, 1]
    inputs = make_inputs(1, sum(lengths), 2, 20, 68, dtype=dtype, num_states=6)
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    check_all(inputs, oracle=partial(packed_by_definition, lengths=lengths), cu_seqlens=cu_seqlens)


@parametrize("use", [(True, False), (False, True)], ids=["out_only", "state_only"])
def test_one_undefined_gradient(use, path):
    check_all(make_inputs(T=70, dtype=torch.bfloat16), use=use)


def test_gamma_zero_forgets_even_nan(path):
    inputs = make_inputs(1, 70, dtype=torch.bfloat16, log_decay=[-math.inf] * 4)
    inputs["initial_state"].fill_(math.nan)
    inputs = require_grad(inputs)
    outputs = retention(**inputs)
    result = grads(outputs, inputs)
    assert not result["log_decay"].any() and not result["initial_state"].any()
    assert all(torch.isfinite(x).all() for x in [*outputs, *result.values()])


@parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_the_composite(dtype, path):
    """This compares the values and the gradients of the tokens."""
    inputs = require_grad(make_inputs(1, 130, 2, 64, 96, dtype=dtype))
    reference_inputs = as_float64(inputs)
    reference = retention_by_recurrence(**reference_inputs)
    results = []
    for chunk_size in (None, 63):
        outputs = retention(**inputs, chunk_size=chunk_size)
        results.append({"out": outputs[0], **grads(outputs, inputs)})
    expected = {"out": reference[0], **grads(reference, reference_inputs)}
    for name in ["out", "q", "k", "v"]:
        assert_as_good_as_composite(results[0][name], results[1][name], expected[name], name)


@parametrize("dtype", DTYPES, ids=str)
def test_gradient_of_log_decay_of_a_long_sequence(dtype, path):
    """As in test_retention_log_decay.py, but for float32 states of 8 by 8 over 8192 tokens, at 8
    seeds.
    """
    decays = [math.log1p(-(2.0**-n)) for n in (5, 9.37, 12)] + [0.0]
    inputs = make_inputs(1, 8192, 32, 8, 8, dtype=dtype, log_decay=decays * 8)
    del inputs["initial_state"]
    grad_out = torch.randn(inputs["v"].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grad_state = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(2))
    exact = {name: x.double() for name, x in inputs.items()}
    expected = derivative_by_recurrence(
        **exact, grad_out=grad_out.double(), grad_state=grad_state.double()
    ).view(8, 4)
    log_decay = inputs["log_decay"].requires_grad_()
    (actual,) = torch.autograd.grad(retention(**inputs), log_decay, [grad_out, grad_state])
    error = (actual.double().view(8, 4) - expected).square().mean(0).sqrt()
    relative = error / expected.square().mean(0).sqrt()
    assert (relative <= LOG_DECAY_LIMITS[dtype]).all(), relative


def all_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs = require_grad(inputs)
    outputs = retention(**inputs)
    return {"out": outputs[0], "state": outputs[1], **grads(outputs, inputs)}


@parametrize(("heads", "count"), [(1, 3), (3, 2), (4, 3)], ids=["all", "1 of 3", "1 of 4"])
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_slices_change_no_bit(dtype, heads, count, path, threads):
    """If the heads cannot be divided evenly among the threads, the remaining heads are cut into
    slices.
    """
    inputs = make_inputs(1, 100, heads, 130, 200, dtype=dtype)
    threads(1)
    whole = all_of(inputs)
    threads(count)
    assert retention_plan(**inputs).slice < 200
    for name, x in all_of(inputs).items():
        if name == "log_decay":  # a sum over slices
            torch.testing.assert_close(x, whole[name], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(x, whole[name]), name


@parametrize("packed", [False, True], ids=["one", "packed"])
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_segments_against_the_definition(dtype, packed, path, threads):
    """This runs with the gradient of log_decay, whose pass keeps sequences whole, and without
    it.
    """
    threads(4)
    lengths = [100, 0, 600] if packed else [700]
    bounds = [0, *accumulate(lengths)]
    inputs = make_inputs(1, 700, 1, 4, 6, dtype=dtype, num_states=len(lengths), log_decay=[-0.003])
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32) if packed else None
    plan = retention_plan(**inputs, cu_seqlens=cu_seqlens)
    assert (plan.segment_length, plan.segments) == ((512, 4) if packed else (512, 2))

    def oracle(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial_state: Tensor):
        results = []
        for n, (first, end) in enumerate(pairwise(bounds)):
            state = initial_state[n : n + 1]
            tokens = [x[:, first:end] for x in (q, k, v)]
            empty = (tokens[2], state)
            results.append(
                retention_by_recurrence(*tokens, log_decay, state) if end > first else empty
            )
        outs, states = zip(*results, strict=True)
        return torch.cat(outs, 1), torch.cat(states)

    for but in ["log_decay", ""]:
        check_all(inputs, oracle=oracle, but=but, cu_seqlens=cu_seqlens)


@pytest.mark.usefixtures("strictly_deterministic")
def test_strict_mode_has_the_bits_of_each_row(path, threads):
    threads(4)
    batch = make_inputs(3, 600, 1, 4, 6, dtype=torch.float32, log_decay=[-0.003])
    alone = {n: x if n == "log_decay" else x[1:2] for n, x in batch.items()}
    together = retention(**{n: strided(x) if n in "qkv" else x for n, x in batch.items()})
    for x, y in zip(retention(**alone), together, strict=True):
        assert torch.equal(x[0], y[1])


@parametrize("name", ["norm_layer", "norm_rms_plain", "step", "step_slots", "fused", "fused_slots"])
@parametrize("V", [5, 37, 200])
@parametrize("dtype", DTYPES, ids=str)
def test_other_operators_against_their_definitions(dtype, V, name, path):
    """The channels fill less than a vector, one, several, and several with some left over."""
    op = OPS[name]
    inputs = op.make(3, 5, 4, 6, V, dtype=dtype)
    actual, leaves = op.with_grads(inputs), exact(ask(inputs))
    outputs = op.oracle(**leaves, **{n: x for n, x in op.options.items() if n != "form"})
    for x, y in zip(actual.values(), outputs, strict=False):
        assert_close_to_reference(x, y, dtype)
    if not op.is_step:
        incoming = [x.double() for x in incoming_of(list(actual.values())[: len(outputs)])]
        grads = torch.autograd.grad(outputs, list(asking(leaves).values()), incoming)
        for name, y in zip(asking(leaves), grads, strict=True):
            assert_close_to_reference(actual[name], y, dtype, grad=True, name=name)


@parametrize("style", STYLES)
@parametrize("Dk", [2, 14, 66])
@parametrize("dtype", DTYPES, ids=str)
def test_rotary_at_any_position(dtype, Dk, style, path):
    inputs = rotary_inputs(2, 6, 3, Dk, dtype=dtype)
    inputs["positions"] = torch.tensor([0, 1, -70, 4097, 1_000_000, 2**31 - 1])
    check_rotary(inputs, style)


def test_gates_far_out(path):
    """The gates reach the ends of the range of the exponential and go beyond them."""
    x = torch.tensor([-3.0, -1.0, 1.0, 2.0, 5.0, 7.0, 11.0, 13.0]).expand(2, 8).contiguous()
    gate = torch.tensor([-1e30, -200.0, -88.0, -87.0, 87.0, 89.0, 200.0, 1e30]).expand(2, 8)
    out = gated_group_norm(x, gate, eps=1e-5)
    normed = gated_group_norm(x, eps=1e-5)
    expected = normed.double() * torch.nn.functional.silu(gate.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-30)
    assert torch.isnan(gated_group_norm(x, torch.full_like(x, math.nan), eps=1e-5)).all()
