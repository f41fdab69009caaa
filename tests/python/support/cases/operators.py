# SPDX-License-Identifier: Apache-2.0
"""One table of the operators: their inputs, oracles and options."""

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
    fused_inputs,
    linear_inputs,
    norm_inputs,
    rotary_inputs,
    step_inputs,
)
from support.cases.retention import FORMS, make_inputs
from support.oracles.gated_group_norm import gated_group_norm_by_definition
from support.oracles.retention import retention_by_definition
from support.oracles.rotary import rotary_by_definition
from support.oracles.step import retention_step_by_definition

OF_AN_ENTRY = {"q", "k", "v", "x", "gate", "state", "initial_state", "slots"}


@dataclass
class Op:
    """Holds an operator, a function that makes its inputs for B, T, H, Dk, Dv, and the inputs that
    have a part for each batch entry.
    """

    name: str
    make: Callable[..., Inputs]
    oracle: Callable[..., tuple[Tensor, ...]]
    options: dict = field(default_factory=dict)
    of_an_entry: set[str] = field(default_factory=lambda: OF_AN_ENTRY)

    @property
    def is_step(self) -> bool:
        """Returns whether the operator is a step, which has no gradients."""
        return self.name.endswith("step")

    @property
    def has_state(self) -> bool:
        return self.name.endswith("retention_step")

    def __call__(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Returns the outputs and, for a step of retention, the state after it."""
        if self.has_state:
            inputs = {**inputs, "state": inputs["state"].clone()}
        out = getattr(ops, self.name)(**inputs, **self.options)
        state = (inputs["state"],) if self.has_state else ()
        return (*(out if isinstance(out, tuple) else (out,)), *state)

    def with_grads(self, inputs: Inputs, incoming: Sequence[Tensor] = ()) -> Inputs:
        """Returns the outputs and, except for a step, gradients by name, for these or for random
        gradients of the outputs.
        """
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
        OF_AN_ENTRY | {"positions"},
    ),
    "rotary_step": Op(
        "rotary",
        lambda B, T, H, K, V, **kw: rotary_inputs(B, None, H, K, **kw),
        rotary_oracle,
        {},
        OF_AN_ENTRY | {"positions"},
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
        OF_AN_ENTRY | {"positions"},
    ),
    "fused_slots": Op(
        "multi_scale_retention_step",
        with_slots(fused_inputs),
        fused_oracle,
        EPS,
        OF_AN_ENTRY | {"positions"},
    ),
}


every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
