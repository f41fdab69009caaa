# SPDX-License-Identifier: Apache-2.0
"""The feed-forward network of a decoder layer (Sun et al. 2023, Eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retnet.config import RetNetConfig
from retnet.nn.linear import Linear
from retnet.nn.norm import make_norm

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """The feed-forward network of a decoder layer (Sun et al. 2023, Eq. 9).

    It computes down(act(up x)). If `config.ffn_gated`, it computes down(act(gate x) * (up x)). If
    `config.ffn_inner_norm`, a norm precedes down.

    State-dict keys:

    - `up_proj.weight` [F, d] and `down_proj.weight` [d, F],
    - `gate_proj.weight` [F, d] if `config.ffn_gated`,
    - `inner_norm.*` [F] if `config.ffn_inner_norm`,
    - a `bias` for each of these matrices if `config.bias`.

    Args:
        config: sizes and switches.
        device: device of the parameters, by default torch's default.
        dtype: dtype of the parameters, by default torch's default.
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
        d, inner, bias = config.embed_dim, config.ffn_dim, config.bias
        if self.gated:
            self.gate_proj = Linear(d, inner, bias=bias, device=device, dtype=dtype)
        self.up_proj = Linear(d, inner, bias=bias, device=device, dtype=dtype)
        self.inner_norm = (
            make_norm(config, inner, device=device, dtype=dtype) if config.ffn_inner_norm else None
        )
        self.down_proj = Linear(inner, d, bias=bias, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Reinitialises every part. Matrices get the default of nn.Linear, as in torchscale."""
        if self.gated:
            self.gate_proj.reset_parameters()
        self.up_proj.reset_parameters()
        if self.inner_norm is not None:
            self.inner_norm.reset_parameters()
        self.down_proj.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Runs the network on x [..., d]. Returns [..., d]."""
        act = F.silu if self.activation == "swish" else F.gelu
        inner = act(self.gate_proj(x)) * self.up_proj(x) if self.gated else act(self.up_proj(x))
        return self.down_proj(inner if self.inner_norm is None else self.inner_norm(inner))

    def extra_repr(self) -> str:
        """Returns the switches in use."""
        return f"gated={self.gated}, activation={self.activation}"
