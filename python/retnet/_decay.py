# SPDX-License-Identifier: Apache-2.0
"""ln gamma as a parameter that may have any value.

A learnable ln gamma is reference * exp(raw). The parameter is `raw`. It may have any value, so an
optimizer cannot move ln gamma out of its range, [-inf, 0]. `reference` is the ln gamma of the
configuration, so that raw = 0 reproduces it exactly. raw >= 80 means gamma = 0, and raw <= -80
means gamma = 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retnet.config import RetNetConfig

__all__ = ["check_log_decay", "log_decay_of", "raw_of", "reference_of"]

_LIMIT = 80.0
# The last value inside. bfloat16 and float16 represent it, so rounding does not make it an end.
_INSIDE = 79.5
# These replace a configured ln gamma of 0 and of -inf, which no factor would change.
_REFERENCE_OF_ONE = -(2.0**-10)
_REFERENCE_OF_ZERO = -1.0


def reference_of(config: RetNetConfig) -> Tensor:
    """Returns the reference of a learnable ln gamma: [H] float64 on the CPU, negative."""
    value = config.log_decay().double()
    value = torch.where(value == 0, _REFERENCE_OF_ONE, value)
    return torch.where(value == -math.inf, _REFERENCE_OF_ZERO, value)


def log_decay_of(raw: Tensor, reference: Tensor) -> Tensor:
    """Returns ln gamma = reference * exp(raw).

    Products are computed in float64, so that neither they nor the gradient overflow. At the ends
    the gradient is exactly 0. NaN stays NaN.

    Args:
        raw: [H], any floating dtype.
        reference: [H] float64.

    Returns:
        [H] float32, in [-inf, 0].
    """
    raw = raw.double()
    zero, one = raw >= _LIMIT, raw <= -_LIMIT
    inside = torch.where(zero | one, 0.0, raw)  # an end must give no gradient, not even inf * 0
    value = (reference * inside.exp()).float()
    return torch.where(zero, -math.inf, torch.where(one, 0.0, value))


def raw_of(log_decay: Tensor, reference: Tensor) -> Tensor:
    """Returns the raw [H] float32 that gives ln gamma, which must lie in [-inf, 0].

    A finite ln gamma other than 0 does not become an end. It is clamped to exp(79.5) times and
    exp(-79.5) times the reference.
    """
    raw = torch.log(log_decay.double() / reference).clamp(-_INSIDE, _INSIDE)
    raw = torch.where(log_decay == 0, -_LIMIT, raw)
    return torch.where(log_decay == -math.inf, _LIMIT, raw).float()


def check_log_decay(name: str, log_decay: Tensor) -> None:
    """Raises ValueError if any ln gamma [H] is above 0 or NaN. The message begins with `name`."""
    for head, value in enumerate(log_decay.tolist()):
        if not value <= 0:
            raise ValueError(f"{name} must lie in [-inf, 0], got {value:g} in head {head}")
