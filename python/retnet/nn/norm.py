# SPDX-License-Identifier: Apache-2.0
"""The norms of blocks, embeddings and inner activations, and the head norm (paper Eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retnet import ops
from retnet.config import RetNetConfig

__all__ = ["GatedGroupNorm", "make_norm"]


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


class GatedGroupNorm(nn.Module):
    """Normalises the output of each head and applies the swish gate (Sun et al. 2023, Eq. 8).

    It computes y = norm(x) * swish(gate). The norm is taken over the V channels of each head.

    State-dict keys, if `config.group_norm_affine`: `weight` [V], and `bias` [V] if
    `config.group_norm` is "layer". Otherwise there are none.

    Args:
        config: sizes and switches.
        device: device of the parameters, by default torch's default.
        dtype: dtype of the parameters, by default torch's default.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        config: RetNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kind = config.group_norm
        self.eps = config.group_norm_eps
        affine = config.group_norm_affine
        for name, wanted in (("weight", affine), ("bias", affine and self.kind == "layer")):
            tensor = torch.empty(config.value_dim, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(tensor) if wanted else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets weight to 1 and bias to 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Normalises x [B, T, H, V] and applies gate [B, T, H, V]. Returns [B, T, H, V]."""
        return ops.gated_group_norm(x, gate, self.weight, self.bias, eps=self.eps, norm=self.kind)

    def extra_repr(self) -> str:
        """Returns the switches in use."""
        return f"{self.kind}, eps={self.eps:g}, affine={self.weight is not None}"
