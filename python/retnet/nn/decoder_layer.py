# SPDX-License-Identifier: Apache-2.0
"""One layer of a RetNet: retention and feed-forward with residuals (Sun et al. 2023, Eq. 9)."""

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
    """One layer of a RetNet (Sun et al. 2023, Eq. 9).

    It computes y = a x + retention(norm(x)) and z = a y + ffn(norm(y)), with
    a = `config.residual_scale`. If `config.pre_norm` is false, the norms follow the sums:
    y = norm(a x + retention(x)).

    State-dict keys: `retention_norm.*`, `retention.*`, `ffn_norm.*` and `ffn.*`.

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
        self.pre_norm = config.pre_norm
        self.residual_scale = config.residual_scale
        self.retention_norm = make_norm(config, config.embed_dim, device=device, dtype=dtype)
        self.retention = MultiScaleRetention(config, device=device, dtype=dtype)
        self.ffn_norm = make_norm(config, config.embed_dim, device=device, dtype=dtype)
        self.ffn = FeedForward(config, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Reinitialises every part."""
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
        """Runs the layer on x [B, T, d].

        The other arguments, the results and the errors are those of `MultiScaleRetention.forward`.
        """
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
        """Returns the switches in use."""
        return f"pre_norm={self.pre_norm}, residual_scale={self.residual_scale:g}"
