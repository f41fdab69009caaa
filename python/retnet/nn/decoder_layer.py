# SPDX-License-Identifier: Apache-2.0
"""One layer of a RetNet: retention and feed-forward with residuals (paper Eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retnet.config import RetNetConfig
from retnet.nn.feed_forward import FeedForward
from retnet.nn.multi_scale_retention import MultiScaleRetention
from retnet.nn.norm import make_norm
from retnet.ops import Form

__all__ = ["DecoderLayer"]


class DecoderLayer(nn.Module):
    """y = a x + retention(norm(x)); z = a y + ffn(norm(y)), a = `config.residual_scale`.

    With `config.pre_norm` false the norms follow the sums instead: y = norm(a x + retention(x)).

    Keys: `retention_norm.*`, `retention.*`, `ffn_norm.*`, `ffn.*`.

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
        self.pre_norm = config.pre_norm
        self.residual_scale = config.residual_scale
        self.retention_norm = make_norm(config, config.embed_dim, device=device, dtype=dtype)
        self.retention = MultiScaleRetention(config, device=device, dtype=dtype)
        self.ffn_norm = make_norm(config, config.embed_dim, device=device, dtype=dtype)
        self.ffn = FeedForward(config, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialises every part anew."""
        self.retention_norm.reset_parameters()
        self.retention.reset_parameters()
        self.ffn_norm.reset_parameters()
        self.ffn.reset_parameters()

    def forward(
        self,
        x: Tensor,
        *,
        state: Tensor | None = None,
        positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        form: Form = "chunkwise",
        inplace: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """x: [B, T, d]; the rest, and what comes back, as `MultiScaleRetention.forward`."""
        out, state = self.retention(
            self.retention_norm(x) if self.pre_norm else x,
            state=state,
            positions=positions,
            cu_seqlens=cu_seqlens,
            form=form,
            inplace=inplace,
        )
        x = torch.add(out, x, alpha=self.residual_scale)
        if not self.pre_norm:
            x = self.retention_norm(x)
        out = self.ffn(self.ffn_norm(x) if self.pre_norm else x)
        x = torch.add(out, x, alpha=self.residual_scale)
        if not self.pre_norm:
            x = self.ffn_norm(x)
        return x, state

    def extra_repr(self) -> str:
        """Names the switches in use."""
        return f"pre_norm={self.pre_norm}, residual_scale={self.residual_scale:g}"
