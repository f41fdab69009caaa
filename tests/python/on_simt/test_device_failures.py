# SPDX-License-Identifier: Apache-2.0
"""A device that fails: the operator raises one clear error, what it was given stays as it was, and
the next call works. On the machine of tests/on_simt, which fails when it is told to."""

from functools import partial

import pytest
import torch
from torch import Tensor

from retnet.ops import (
    gated_group_norm,
    multi_scale_retention_step,
    retention,
    retention_plan,
    retention_step,
    rotary,
)
from support.cases.ops import ask, asking, fused_inputs, norm_inputs, rotary_inputs, step_inputs
from support.cases.retention import grads, make_inputs, require_grad
from support.on_simt import (
    LAUNCH_FAILURE,
    NO_CODE,
    NO_DEVICE,
    OLD_DRIVER,
    ON_SIMT,
    OUT_OF_MEMORY,
    device,
    fail,
    launches,
)
from support.tolerances import assert_close_to_reference

pytestmark = pytest.mark.skipif(not ON_SIMT, reason="the package of tests/on_simt")
parametrize = pytest.mark.parametrize
HALF = torch.bfloat16


def of_tokens(op, inputs, **options):
    with torch.no_grad():
        result = op(**inputs, **options)
    return result if isinstance(result, tuple) else (result,)


def of_gradients(op, inputs, **options):
    inputs = ask(inputs)
    outputs = op(**inputs, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = grads(outputs, asking(inputs), use=(True,) * len(outputs))
    return (*(x.detach() for x in outputs), *found.values())


def tokens(T=70, **options):
    return make_inputs(1, T, 1, 8, 12, dtype=HALF, **options)


# Each operator: its inputs, the call, and how many kernels that launches.
CALLS = {
    "retention": (tokens, partial(of_tokens, retention), 1),
    "retention in segments": (partial(tokens, 520), partial(of_tokens, retention), 3),
    "retention_backward": (tokens, partial(of_gradients, retention), 5),
    "retention_step": (partial(step_inputs, dtype=HALF), partial(of_tokens, retention_step), 1),
    "multi_scale_retention_step": (
        partial(fused_inputs, dtype=HALF),
        partial(of_tokens, multi_scale_retention_step, eps=1e-5),
        1,
    ),
    "gated_group_norm": (
        partial(norm_inputs, dtype=HALF),
        partial(of_tokens, gated_group_norm, eps=1e-5),
        1,
    ),
    "gated_group_norm_backward": (
        partial(norm_inputs, dtype=HALF),
        partial(of_gradients, gated_group_norm, eps=1e-5),
        4,
    ),
    "rotary": (partial(rotary_inputs, dtype=HALF), partial(of_tokens, rotary), 1),
    "rotary_backward": (partial(rotary_inputs, dtype=HALF), partial(of_gradients, rotary), 2),
}
each_call = parametrize("name", CALLS)
LAUNCHES = [(name, i) for name, (*_, count) in CALLS.items() for i in range(count)]


def check(name: str, inject, message: str) -> None:
    make, call, _ = CALLS[name]
    expected, inputs = call(make()), make()
    before = {n: x.clone() for n, x in inputs.items()}
    inject()
    with pytest.raises(RuntimeError) as error:
        call(inputs)
    assert str(error.value).partition("\n")[0] == f"CUDA error: {message}"
    for n, x in inputs.items():
        assert torch.equal(x, before[n]), n
    assert all(torch.equal(a, b) for a, b in zip(call(inputs), expected, strict=True))


@each_call
def test_launches(name):
    make, call, count = CALLS[name]
    before = launches()
    call(make())
    assert launches() == before + count


@parametrize("failure", [OUT_OF_MEMORY, NO_CODE, LAUNCH_FAILURE], ids=lambda failure: failure[1])
@parametrize(("name", "which"), LAUNCHES)
def test_each_launch(name, which, failure):
    number, message = failure
    check(name, partial(fail, "launch", number, which), message)


@parametrize("failure", [NO_DEVICE, OLD_DRIVER], ids=lambda failure: failure[1])
@each_call
def test_no_device(name, failure):
    number, message = failure
    check(name, partial(fail, "set_device", number), message)


@parametrize("name", ["retention", "retention_backward", "retention_step"])
def test_the_device_is_not_known(name):
    check(name, partial(fail, "get_attribute", NO_DEVICE[0]), NO_DEVICE[1])


def test_the_plan_of_a_device_that_is_not_known():
    fail("get_attribute", NO_DEVICE[0])
    with pytest.raises(RuntimeError, match=f"CUDA error: {NO_DEVICE[1]}"):
        retention_plan(**tokens())
    assert retention_plan(**tokens()).implementation == "kernel"


def results(limits, call) -> tuple[Tensor, ...]:
    with device(**limits):
        return call()


@parametrize("capability", [75, 70])
@each_call
def test_a_device_that_is_too_old(capability, name):
    """Its matrix instructions are not there: retention is composed of torch's operators."""
    make, call, count = CALLS[name]
    before = launches()
    found = results({"capability": capability}, lambda: call(make()))
    composed = name.startswith("retention") and name != "retention_step"
    assert launches() == before + (0 if composed else count)
    for a, b in zip(found, call(make()), strict=True):
        assert_close_to_reference(a, b.double(), HALF, grad=True, factor=2)


@each_call
def test_a_device_of_an_architecture_to_come(name):
    make, call, count = CALLS[name]
    before = launches()
    found = results({"capability": 130}, lambda: call(make()))
    assert launches() == before + count
    assert all(torch.equal(a, b) for a, b in zip(found, call(make()), strict=True))


def plan_on(limits, *shape):
    inputs = make_inputs(*shape, dtype=HALF)
    inputs["log_decay"].requires_grad_()
    return results(limits, lambda: retention_plan(**inputs))


def test_shared_memory_of_99_kb():
    small = {"capability": 86, "shared_bytes": 99 << 10}
    assert plan_on({}, 1, 20, 1, 256, 128).chunk == 64
    assert plan_on(small, 1, 20, 1, 256, 128).chunk == 32
    wide = plan_on(small, 1, 20, 1, 256, 512)
    assert wide.implementation == "kernel"
    assert wide.backward_reason == "the device has too little shared memory for every tile"


@parametrize("gradients", [False, True])
def test_wide_heads_with_99_kb(gradients):
    inputs = require_grad(make_inputs(1, 40, 1, 256, 132, dtype=HALF))
    call = partial(of_gradients if gradients else of_tokens, retention, inputs)
    found = results({"capability": 86, "shared_bytes": 99 << 10}, call)
    for a, b in zip(found, call(), strict=True):
        assert_close_to_reference(a, b.double(), HALF, grad=True, factor=2)


def test_shared_memory_of_no_tile():
    plan = plan_on({"shared_bytes": 16 << 10}, 1, 20, 1, 64, 64)
    assert plan.reason == "the device has too little shared memory for every tile"


@parametrize("code", [80, 90])
def test_code_without_clusters_on_a_device_that_has_them(code):
    """One row of wide heads, which blocks of a cluster would share."""
    inputs = [fused_inputs(1, 1, 64, 512, dtype=HALF) for _ in range(2)]
    step = partial(multi_scale_retention_step, eps=1e-5)
    found = results({"code_architecture": code}, lambda: (step(**inputs[0]),))
    assert torch.equal(found[0], step(**inputs[1]))
    assert torch.equal(inputs[0]["state"], inputs[1]["state"])
