# SPDX-License-Identifier: Apache-2.0
"""A device that fails: the operator raises one clear error, what it was given stays as it was, and
the next call works. On the machine of tests/on_simt, which fails when it is told to."""

import os
import subprocess
import sys
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


# A process asks each device once for the architecture of its code.
STEP_ON_CODE = """
import sys
import torch
from retnet.ops import multi_scale_retention_step
from support.cases.ops import fused_inputs
from support.on_simt import device

inputs = fused_inputs(1, 1, 64, 512, dtype=torch.bfloat16)
with device(code_architecture=int(sys.argv[1])), torch.no_grad():
    out = multi_scale_retention_step(**inputs, eps=1e-5)
torch.save((out, inputs["state"], torch.ops.retnet_on_simt.last_cluster()), sys.argv[2])
"""


def test_code_without_clusters_on_a_device_that_has_them(tmp_path):
    """One token of a wide head, which the blocks of a cluster share."""
    found = {}
    for code in (80, 90):
        path = tmp_path / f"{code}.pt"
        subprocess.run(
            [sys.executable, "-c", STEP_ON_CODE, str(code), path],
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        found[code] = torch.load(path)
    (out, state, cluster), (expected, expected_state, wide) = found[80], found[90]
    assert cluster == 1
    assert wide > 1
    assert_close_to_reference(out, expected.double(), HALF, factor=2)
    assert_close_to_reference(state, expected_state.double(), torch.float32, factor=2)
