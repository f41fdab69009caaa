# SPDX-License-Identifier: Apache-2.0
"""The feed-forward network of a decoder layer (paper Eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import RetNetConfig

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """down(act(up x)); with `config.ffn_gated`: down(act(gate x) * (up x)). No biases.

    Keys: `up_proj.weight` [F, d], `down_proj.weight` [d, F], gated also `gate_proj.weight` [F, d].

    Args:
        config: sizes and switches.
        device: where the parameters are made.
        dtype: of the parameters, by default torch's default.
    """

    def __init__(
        self,
        config: RetNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gated = config.ffn_gated
        self.activation = config.activation
        d, inner = config.embed_dim, config.ffn_dim
        if self.gated:
            self.gate_proj = nn.Linear(d, inner, bias=False, device=device, dtype=dtype)
        self.up_proj = nn.Linear(d, inner, bias=False, device=device, dtype=dtype)
        self.down_proj = nn.Linear(inner, d, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """torch's default for nn.Linear, as torchscale."""
        if self.gated:
            self.gate_proj.reset_parameters()
        self.up_proj.reset_parameters()
        self.down_proj.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., d]. Returns [..., d]."""
        act = F.silu if self.activation == "swish" else F.gelu
        if self.gated:
            return self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(act(self.up_proj(x)))

    def extra_repr(self) -> str:
        """Names the switches in use."""
        return f"gated={self.gated}, activation={self.activation}"
