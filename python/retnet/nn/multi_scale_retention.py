# SPDX-License-Identifier: Apache-2.0
"""Gated multi-scale retention (paper 2.2, Eq. 8)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from retnet import ops
from retnet.config import RetNetConfig
from retnet.nn.gated_group_norm import GatedGroupNorm
from retnet.nn.linear import Linear
from retnet.ops import Form

__all__ = ["MultiScaleRetention"]


class MultiScaleRetention(nn.Module):
    """out_proj(norm(retention(rotary(q), rotary(k), v)) * swish(g)), one gamma per head.

    Keys: `{q,k}_proj.weight` [H K, d], `{v,g}_proj.weight` [H V, d], `out_proj.weight` [d, H V],
    `group_norm.*`, `bias` beside each weight if `config.bias`, and `log_decay` [H] if
    `config.learnable_decay`.

    ln gamma and the rotary frequencies stay float32 whatever `.to(dtype)` does. Unless learnable
    they are buffers outside the state dict, made anew from the configuration whenever the module
    moves, so `to_empty` cannot leave them undefined.

    Args:
        config: sizes and switches.
        device: where the parameters are made.
        dtype: of the parameters, by default torch's default.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.nn import MultiScaleRetention
        >>> layer = MultiScaleRetention(RetNetConfig.preset("tiny"))
        >>> out, state = layer(torch.randn(2, 100, 128))
        >>> out.shape, state.shape
        (torch.Size([2, 100, 128]), torch.Size([2, 4, 32, 64]))
    """

    log_decay: Tensor
    frequencies: Tensor

    def __init__(
        self,
        config: RetNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        d = config.embed_dim
        keys, values = config.num_heads * config.key_dim, config.num_heads * config.value_dim
        self.q_proj = Linear(d, keys, bias=config.bias, device=device, dtype=dtype)
        self.k_proj = Linear(d, keys, bias=config.bias, device=device, dtype=dtype)
        self.v_proj = Linear(d, values, bias=config.bias, device=device, dtype=dtype)
        self.g_proj = Linear(d, values, bias=config.bias, device=device, dtype=dtype)
        self.out_proj = Linear(values, d, bias=config.bias, device=device, dtype=dtype)
        self.group_norm = GatedGroupNorm(config, device=device, dtype=dtype)
        if config.learnable_decay:
            self.log_decay = nn.Parameter(
                torch.empty(config.num_heads, device=device, dtype=torch.float32)
            )
        self._make_constants(self.q_proj.weight.device)
        self.reset_parameters()

    def _make_constants(self, device: torch.device) -> None:
        if not self.config.learnable_decay:
            decay = self.config.log_decay().to(device)
            self.register_buffer("log_decay", decay, persistent=False)
        frequencies = self.config.rotary_frequencies().to(device)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiScaleRetention:
        decay = self.log_decay

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor is decay or tensor is decay.grad:
                return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
            return moved

        super()._apply(keep_float32, recurse)
        self._make_constants(self.frequencies.device)
        return self

    def reset_parameters(self) -> None:
        """Xavier uniform, gain 2^-2.5 for q, k, v, g and 2^-1 for out, as torchscale.

        Biases are uniform within d^(-1/2) of 0, that of out is 0.
        """
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.g_proj):
            nn.init.xavier_uniform_(proj.weight, gain=2**-2.5)
            if proj.bias is not None:
                bound = self.config.embed_dim**-0.5
                nn.init.uniform_(proj.bias, -bound, bound)
        nn.init.xavier_uniform_(self.out_proj.weight, gain=2**-1)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)
        self.group_norm.reset_parameters()
        if self.config.learnable_decay:
            with torch.no_grad():
                self.log_decay.copy_(self.config.log_decay())

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
        """Runs the layer over a block of tokens.

        With T = 1, a state, no cu_seqlens and grad mode off it takes the fused step of decoding.

        Args:
            x: [B, T, d].
            state: [B, H, K, V] from the tokens before; None for a start. [N, H, K, V] if packed.
            positions: [T] or [B, T] int, position of each token in its sequence; needed with a
                state or cu_seqlens, else 0..T-1.
            cu_seqlens: [N + 1] int32, bounds of packed sequences (B = 1).
            form: "chunkwise", "parallel" or "recurrent"; the same values up to rounding.
            inplace: the step of decoding may overwrite `state`.

        Returns:
            The output [B, T, d] and the state after the last token.

        Raises:
            ValueError: positions are missing.
        """
        cfg = self.config
        if positions is None:
            if state is not None or cu_seqlens is not None:
                raise ValueError(
                    "MultiScaleRetention: positions must be given with state or cu_seqlens, "
                    "got None"
                )
            positions = torch.arange(x.shape[1], device=x.device)
        q = self.q_proj(x).unflatten(-1, (cfg.num_heads, cfg.key_dim))
        k = self.k_proj(x).unflatten(-1, (cfg.num_heads, cfg.key_dim))
        v = self.v_proj(x).unflatten(-1, (cfg.num_heads, cfg.value_dim))
        gate = self.g_proj(x).unflatten(-1, (cfg.num_heads, cfg.value_dim))
        log_decay = self.log_decay.double() if q.dtype == torch.float64 else self.log_decay
        if cfg.decay_norm:
            q = q * self._inverse_sqrt_weight_sum(positions).to(q.dtype)

        if is_step(x.shape[1], state, cu_seqlens):
            assert state is not None
            state = state if inplace else state.clone()
            out = ops.multi_scale_retention_step(
                q.squeeze(1),
                k.squeeze(1),
                v.squeeze(1),
                gate.squeeze(1),
                log_decay,
                state,
                positions.reshape(-1).expand(x.shape[0]),
                self.frequencies,
                weight=self.group_norm.weight,
                bias=self.group_norm.bias,
                eps=cfg.group_norm_eps,
                norm=cfg.group_norm,
                style=cfg.rotary_style,
            )
            return self.out_proj(out.flatten(-2)).unsqueeze(1), state

        q, k = ops.rotary(q, k, positions, self.frequencies, style=cfg.rotary_style)
        out, state = ops.retention(q, k, v, log_decay, state, form=form, cu_seqlens=cu_seqlens)
        return self.out_proj(self.group_norm(out, gate).flatten(-2)), state

    def _inverse_sqrt_weight_sum(self, positions: Tensor) -> Tensor:
        """n_t^(-1/2), n_t = sum_{i<=t} gamma^i = (1 - gamma^(t+1)) / (1 - gamma), in float64.

        n_t = t + 1 at gamma = 1, where a learnable decay gets no gradient from this factor.
        [T] -> [T, H, 1], [B, T] -> [B, T, H, 1].
        """
        g = self.log_decay.double()
        count = positions.double().unsqueeze(-1) + 1
        below_one = torch.where(g == 0, -1.0, g)
        total = torch.expm1(count * below_one) / torch.expm1(below_one)
        return torch.where(g == 0, count, total).rsqrt().unsqueeze(-1)

    def extra_repr(self) -> str:
        """Names sizes and switches."""
        cfg = self.config
        return (
            f"embed_dim={cfg.embed_dim}, num_heads={cfg.num_heads}, key_dim={cfg.key_dim}, "
            f"value_dim={cfg.value_dim}, decay_norm={cfg.decay_norm}, "
            f"learnable_decay={cfg.learnable_decay}"
        )


def is_step(length: int, state: object, cu_seqlens: Tensor | None) -> bool:
    """True when a call is one step of decoding: T = 1, a state, grad mode off, not packed."""
    if length != 1 or state is None or cu_seqlens is not None:
        return False
    return not torch.is_grad_enabled()
