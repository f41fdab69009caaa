# SPDX-License-Identifier: Apache-2.0
"""The same bits from run to run, and under torch.use_deterministic_algorithms(True) the same bits
of a row whatever else the batch holds. One table of operators, each test for all of them."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from retnet import ops
from support.cases.ops import (
    Inputs,
    ask,
    asking,
    exact,
    fused_inputs,
    linear_inputs,
    norm_inputs,
    rotary_inputs,
    step_inputs,
    strided,
)
from support.cases.retention import DTYPES, FORMS, make_inputs
from support.oracles.gated_group_norm import gated_group_norm_by_definition
from support.oracles.retention import retention_by_definition
from support.oracles.rotary import rotary_by_definition
from support.oracles.step import retention_step_by_definition
from support.tolerances import assert_close_to_reference

parametrize = pytest.mark.parametrize
OF_A_ROW = {"q", "k", "v", "x", "gate", "state", "initial_state", "slots"}


@dataclass
class Op:
    """An operator, how to make its inputs for B, T, H, Dk, Dv, and those with a row per row."""

    name: str
    make: Callable[..., Inputs]
    oracle: Callable[..., tuple[Tensor, ...]]
    options: dict = field(default_factory=dict)
    of_a_row: set[str] = field(default_factory=lambda: OF_A_ROW)

    @property
    def is_step(self) -> bool:
        """Without gradients."""
        return self.name.endswith("step")

    @property
    def has_state(self) -> bool:
        return self.name.endswith("retention_step")

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Outputs and, of a step of retention, the state as it is then."""
        if self.has_state:
            inputs = {**inputs, "state": inputs["state"].clone()}
        out = getattr(ops, self.name)(**inputs, **self.options)
        state = (inputs["state"],) if self.has_state else ()
        return (*(out if isinstance(out, tuple) else (out,)), *state)

    def with_grads(self, inputs: Inputs, incoming: Sequence[Tensor] = ()) -> Inputs:
        """Outputs and, but for a step, gradients by name, for these or for random gradients of the
        outputs."""
        leaves = inputs if self.is_step else ask(inputs)
        outputs = self(leaves)
        results = {f"output {n}": x for n, x in enumerate(outputs)}
        if self.is_step:
            return results
        incoming = incoming or incoming_of(outputs)
        grads = torch.autograd.grad(outputs, list(asking(leaves).values()), incoming)
        return {**results, **dict(zip(asking(leaves), grads, strict=True))}


def incoming_of(outputs: Iterable[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(x.shape, generator=generator).to(x) for x in outputs]


def rotary_oracle(q, k, positions, frequencies, style="interleaved"):
    return tuple(rotary_by_definition(x, positions, frequencies, style) for x in (q, k))


def fused_oracle(q, k, v, gate, log_decay, state, positions, frequencies, slots=None, **norm):
    q, k = rotary_oracle(q, k, positions, frequencies)
    out, state = retention_step_by_definition(q, k, v, log_decay, state, slots=slots)
    out = gated_group_norm_by_definition(out, gate, **norm)
    return (out if slots is None else out.where((slots >= 0)[:, None, None], 0.0)), state


def norm_oracle(x, **rest):
    return (gated_group_norm_by_definition(x, **rest),)


def linear_oracle(x, weight, bias):
    return (x @ weight.T + bias,)


def with_slots(make: Callable[..., Inputs]) -> Callable[..., Inputs]:
    return lambda B, T, H, K, V, **kw: make(B, H, K, V, S=B + 2, **kw)


def of_tokens(make: Callable[..., Inputs]) -> Callable[..., Inputs]:
    return lambda B, T, H, K, V, **kw: make(B, H, K, V, **kw)


EPS = {"eps": 1e-5}
OPS = {
    **{f: Op("retention", make_inputs, retention_by_definition, {"form": f}) for f in FORMS},
    "rotary": Op(
        "rotary", lambda B, T, H, K, V, **kw: rotary_inputs(B, T, H, K, **kw), rotary_oracle
    ),
    "rotary_positions": Op(
        "rotary",
        lambda B, T, H, K, V, **kw: rotary_inputs(B, T, H, K, batch_positions=True, **kw),
        rotary_oracle,
        {"style": "half"},
        OF_A_ROW | {"positions"},
    ),
    "rotary_step": Op(
        "rotary",
        lambda B, T, H, K, V, **kw: rotary_inputs(B, None, H, K, **kw),
        rotary_oracle,
        {},
        OF_A_ROW | {"positions"},
    ),
    "norm_layer": Op(
        "gated_group_norm",
        lambda B, T, H, K, V, **kw: norm_inputs((B, T), H, V, **kw),
        norm_oracle,
        EPS,
    ),
    "norm_of_a_step": Op(
        "gated_group_norm",
        lambda B, T, H, K, V, **kw: norm_inputs((B,), H, V, **kw),
        norm_oracle,
        EPS,
    ),
    "norm_rms_plain": Op(
        "gated_group_norm",
        lambda B, T, H, K, V, **kw: norm_inputs((B,), H, V, gate=False, weight="", bias="", **kw),
        norm_oracle,
        {**EPS, "norm": "rms"},
    ),
    "linear": Op("linear", lambda B, T, H, K, V, **kw: linear_inputs(B, K, V, **kw), linear_oracle),
    "step": Op("retention_step", of_tokens(step_inputs), retention_step_by_definition),
    "step_slots": Op("retention_step", with_slots(step_inputs), retention_step_by_definition),
    "fused": Op(
        "multi_scale_retention_step",
        of_tokens(fused_inputs),
        fused_oracle,
        EPS,
        OF_A_ROW | {"positions"},
    ),
    "fused_slots": Op(
        "multi_scale_retention_step",
        with_slots(fused_inputs),
        fused_oracle,
        EPS,
        OF_A_ROW | {"positions"},
    ),
}
every_op = parametrize("op", OPS.values(), ids=OPS.keys())

RANDOM = random.Random(0)
SIZES = [2, 4, 7], [1, 3, 66, 101], [1, 2, 3], [2, 10, 26], [1, 3, 21]
SHAPES = [  # B, T, H, Dk, Dv: some of which show each operator that differs when batched
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
    """Together, and with the rows of the batch apart."""
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
    """Nor on strides: of the batch each row but that of slots lies apart."""
    if op.name == "linear" and (dtype != torch.bfloat16 or shape[0] > 4):
        pytest.skip("torch's linear, which does not promise it")
    inputs = op.make(*shape, dtype=dtype, device=device)
    per_row = op.of_a_row - ({"state"} if "slots" in inputs else set())
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
                continue  # sums over the whole batch
            if name == "output 1" and "slots" in inputs:  # the state
                used = inputs["slots"][row]
                used = used[used >= 0]
                assert torch.equal(x[used], together[name][used]), f"state of row {b}"
            else:
                assert torch.equal(x, together[name][row]), f"{name} of row {b}"


@pytest.mark.usefixtures("strictly_deterministic")
@every_op
@parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_apart_against_the_definition(dtype, op, device):
    """Values and gradients, those of log_decay, weight and bias included."""
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
def test_rows_apart_of_nothing(shape, op, device, request):
    """No row, no token or no head: the same shapes and zeros in the strict mode as without it."""
    batched = op.with_grads(op.make(*shape, dtype=torch.float32, device=device))
    request.getfixturevalue("strictly_deterministic")
    apart = op.with_grads(op.make(*shape, dtype=torch.float32, device=device))
    assert batched.keys() == apart.keys()
    for name, x in apart.items():
        torch.testing.assert_close(x, batched[name], msg=name)


@parametrize("form", FORMS)
def test_rows_are_apart_under_the_strict_mode_alone(form, request):
    """By the number of matrix products of the whole batch and of one row, in the composite."""

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
