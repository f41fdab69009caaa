# SPDX-License-Identifier: Apache-2.0
"""The norms: of blocks, embeddings and inner activations; of each head's output (paper Eq. 8)."""

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
    """torch's norm over the last dimension, of the kind and eps that the configuration names."""
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(channels, eps=config.norm_eps, device=device, dtype=dtype)


class GatedGroupNorm(nn.Module):
    """y = norm(x) * swish(gate), the norm taken over each head's V channels.

    Keys: `weight` [V] and, for the "layer" kind, `bias` [V], if `config.group_norm_affine`;
    otherwise none.

    Args:
        config: sizes and switches.
        device: where the parameters are made.
        dtype: of the parameters, by default torch's default.
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
        """weight = 1, bias = 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x, gate: [B, T, H, V]. Returns [B, T, H, V]."""
        return ops.gated_group_norm(x, gate, self.weight, self.bias, eps=self.eps, norm=self.kind)

    def extra_repr(self) -> str:
        """Names the switches in use."""
        return f"{self.kind}, eps={self.eps:g}, affine={self.weight is not None}"
