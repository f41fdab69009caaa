# SPDX-License-Identifier: Apache-2.0
"""Operators give the same bits from run to run. Under torch.use_deterministic_algorithms(True), a
batch entry has the same bits whatever else the batch holds. Each test runs on one table of
operators.
"""

import random

import pytest
import torch

from retnet import ops
from support.cases.operators import every_op, incoming_of
from support.cases.ops import (
    ask,
    asking,
    exact,
    strided,
)
from support.cases.retention import DTYPES, FORMS, make_inputs
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize


RANDOM = random.Random(0)
SIZES = [2, 4, 7], [1, 3, 66, 101], [1, 2, 3], [2, 10, 26], [1, 3, 21]
SHAPES = [  # B, T, H, Dk, Dv. Each operator that differs when batched shows it in some of these.
    (5, 150, 4, 16, 32),
    (5, 1, 2, 128, 5),
    (3, 33, 1, 6, 7),
    (2, 1, 1, 128, 129),
    (3, 7, 3, 128, 13),
    (8, 65, 1, 128, 8),
    *(tuple(RANDOM.choice(sizes) for sizes in SIZES) for _ in range(3)),
]


@every_op
@parametrize("dtype", DTYPES, ids=str)
@parametrize("mode", ["poisoned_memory", "strictly_deterministic"])
def test_run_to_run(mode, dtype, op, device, request):
    """This holds for the whole batch, and if the batch entries are computed separately."""
    request.getfixturevalue(mode)
    first, second = (
        op.with_grads(op.make(3, 150, 4, 8, 12, dtype=dtype, device=device)) for _ in range(2)
    )
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@pytest.mark.usefixtures("strictly_deterministic")
@every_op
@parametrize("shape", SHAPES, ids=str)
@parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_the_batch(dtype, shape, op, device):
    """It does not depend on strides either: the rows of all inputs except slots lie apart."""
    if op.name == "linear" and (dtype != torch.bfloat16 or shape[0] > 4):
        pytest.skip("torch's linear, which does not promise it")
    inputs = op.make(*shape, dtype=dtype, device=device)
    per_row = op.of_an_entry - ({"state"} if "slots" in inputs else set())
    batch = {n: strided(x) if n in per_row and n != "slots" else x for n, x in inputs.items()}
    outputs = op(batch)
    incoming = incoming_of(outputs)
    together = op.with_grads(batch, incoming)
    for b in {0, shape[0] // 2, shape[0] - 1}:
        row = slice(b, b + 1)
        alone = op.with_grads(
            {n: x[row] if n in per_row else x for n, x in inputs.items()},
            [x[row] for x in incoming],
        )
        for name, x in alone.items():
            if name in {"log_decay", "weight", "bias"}:
                continue  # these are summed over the whole batch
            if name == "output 1" and "slots" in inputs:  # the state
                used = inputs["slots"][row]
                used = used[used >= 0]
                assert torch.equal(x[used], together[name][used]), f"state of row {b}"
            else:
                assert torch.equal(x, together[name][row]), f"{name} of row {b}"


@pytest.mark.usefixtures("strictly_deterministic")
@every_op
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_invariance_against_the_definition(dtype, op, device):
    """This compares values and gradients, also those of log_decay, weight and bias."""
    inputs = op.make(3, 7, 4, 6, 5, dtype=dtype, device=device)
    actual, leaves = op.with_grads(inputs), exact(ask(inputs))
    options = {name: value for name, value in op.options.items() if name != "form"}
    outputs = op.oracle(**leaves, **options)
    for x, y in zip(actual.values(), outputs, strict=False):
        assert_close_to_reference(x, y, dtype)
    if not op.is_step:
        incoming = [x.double().cpu() for x in incoming_of(list(actual.values())[: len(outputs)])]
        grads = torch.autograd.grad(outputs, list(asking(leaves).values()), incoming)
        for name, y in zip(asking(leaves), grads, strict=True):
            assert_close_to_reference(actual[name], y, dtype, grad=True, name=name)


@every_op
@parametrize("shape", [(0, 3, 2, 4, 5), (2, 0, 2, 4, 5), (2, 3, 0, 4, 5)], ids=str)
def test_batch_invariance_of_nothing(shape, op, device, request):
    """If there is no row, token or head, the strict mode gives the same shapes and zeros."""
    batched = op.with_grads(op.make(*shape, dtype=torch.float32, device=device))
    request.getfixturevalue("strictly_deterministic")
    apart = op.with_grads(op.make(*shape, dtype=torch.float32, device=device))
    assert batched.keys() == apart.keys()
    for name, x in apart.items():
        torch.testing.assert_close(x, batched[name], msg=name)


@parametrize("form", FORMS)
def test_rows_are_apart_under_the_strict_mode_alone(form, request):
    """The test counts the matrix products of the composite for a batch and for one entry."""

    def products(B: int) -> int:
        inputs = make_inputs(B, 20, dtype=torch.float64)
        with torch.profiler.profile() as profile:
            ops.retention(**inputs, form=form)
        return sum(event.name == "aten::bmm" for event in profile.events())

    assert products(3) == products(1)
    torch.use_deterministic_algorithms(False)
    assert products(3) == products(1)
    request.getfixturevalue("strictly_deterministic")
    assert products(3) == 3 * products(1)
