# SPDX-License-Identifier: Apache-2.0
"""Compares outputs and gradients of retention with an oracle."""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.ops import retention
from support.cases.retention import as_float64, grads, require_grad, state_dtype
from support.oracles.retention import retention_by_definition
from support.tolerances import LOG_DECAY_LIMITS, assert_close_to_reference

_expected: dict = {}


def expect(
    inputs: dict[str, Tensor], use: tuple[bool, bool], oracle: Callable
) -> tuple[tuple, dict[str, Tensor]]:
    """Returns the outputs and gradients of the oracle. They are cached, because several tests use
    the same inputs.
    """
    exact = as_float64(inputs)
    key = (use, oracle, *(x.detach().numpy().tobytes() for x in exact.values()))
    if key not in _expected:
        outputs = oracle(**exact)
        _expected[key] = outputs, grads(outputs, exact, use=use)
    return _expected[key]


def check_all(
    inputs: dict[str, Tensor],
    use: tuple[bool, bool] = (True, True),
    oracle: Callable = retention_by_definition,
    but: str = "",
    **options,
) -> None:
    """Compares output, final state and all gradients except ``but`` with the oracle, at the
    tolerances of the table.
    """
    dtype = inputs["q"].dtype
    leaves = require_grad({name: x for name, x in inputs.items() if name != but})
    inputs = {**inputs, **leaves}
    outputs, (expected, reference) = retention(**inputs, **options), expect(inputs, use, oracle)
    for name, x, y in zip(["out", "final_state"], outputs, expected, strict=True):
        assert_close_to_reference(x, y, dtype, name=name)
    assert outputs[0].dtype == dtype and outputs[1].dtype == state_dtype(dtype)
    assert all(x.is_contiguous() for x in outputs)
    actual = grads(outputs, leaves, use=use)
    for name in leaves:
        if name == "log_decay":  # this sum cancels; see test_retention_log_decay.py
            assert_close_log_decay(actual[name], reference[name], dtype)
        else:
            assert_close_to_reference(actual[name], reference[name], dtype, grad=True, name=name)


def assert_close_log_decay(
    actual: Tensor, reference: Tensor, dtype: torch.dtype, factor: float = 1.0
) -> None:
    limit = factor * LOG_DECAY_LIMITS[dtype]
    scale = reference.square().mean().sqrt()
    assert torch.isfinite(actual).all()
    assert (actual - reference.to(actual.device)).abs().max() <= limit * scale
