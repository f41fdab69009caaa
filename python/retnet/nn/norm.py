# SPDX-License-Identifier: Apache-2.0
"""The norm of blocks, embeddings and inner activations."""

from __future__ import annotations

import torch
from torch import nn

from retnet.config import RetNetConfig

__all__ = ["make_norm"]


def make_norm(
    config: RetNetConfig,
    channels: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.LayerNorm | nn.RMSNorm:
    """Returns torch's norm over the last dimension, with the kind and eps of the configuration."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(channels, eps=config.norm_eps, device=device, dtype=dtype)
