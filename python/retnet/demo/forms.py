# SPDX-License-Identifier: Apache-2.0
"""Compares the three forms of retention on trained weights and measures decoding."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.nn import RetNetForCausalLM
from retnet.ops import Form

__all__ = ["Decoding", "Difference", "compare_forms", "measure_decoding"]


class Difference(NamedTuple):
    """The difference of two ways to the same logits: max |a - b|, and |a - b| / |b| over all."""

    pair: str
    max_abs: float
    relative: float


@torch.no_grad()
def compare_forms(model: RetNetForCausalLM, ids: Tensor) -> list[Difference]:
    """Computes the logits of ids [B, T] in each form and by decode steps, and compares them."""
    forms: tuple[Form, ...] = ("parallel", "chunkwise", "recurrent")
    logits: dict[str, Tensor] = {form: model(ids, form=form).logits for form in forms}
    steps, state = [], model.config.make_state(ids.shape[0])
    for token in ids.split(1, dim=1):
        output = model(token, state=state, inplace=True)
        steps.append(output.logits)
        state = output.state
    logits["decode steps"] = torch.cat(steps, dim=1)
    pairs = [
        ("chunkwise", "parallel"),
        ("recurrent", "parallel"),
        ("recurrent", "chunkwise"),
        ("decode steps", "chunkwise"),
    ]
    return [_difference(a, b, logits[a].double(), logits[b].double()) for a, b in pairs]


def _difference(name: str, other: str, a: Tensor, b: Tensor) -> Difference:
    gap = a - b
    return Difference(f"{name} - {other}", gap.abs().max().item(), (gap.norm() / b.norm()).item())


class Decoding(NamedTuple):
    """A measurement of decoding: microseconds of each step and bytes of the state after it."""

    step_us: list[float]
    state_bytes: list[int]


@torch.no_grad()
def measure_decoding(model: RetNetForCausalLM, length: int) -> Decoding:
    """Times `length` decode steps at B = 1, one token after the other."""
    state = model.config.make_state(1)
    token = torch.zeros(1, 1, dtype=torch.int64)
    step_us, state_bytes = [], []
    for _ in range(length):
        start = time.perf_counter()
        output = model(token, state=state, inplace=True)
        token = output.logits.argmax(-1)
        step_us.append((time.perf_counter() - start) * 1e6)
        state = output.state
        state_bytes.append(state.retention.nbytes + state.positions.nbytes)
    return Decoding(step_us, state_bytes)
