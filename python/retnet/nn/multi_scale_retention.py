# SPDX-License-Identifier: Apache-2.0
"""Gated multi-scale retention (paper 2.2, Eq. 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retnet import ops
from retnet._decay import raw_of
from retnet.config import RetNetConfig
from retnet.nn.linear import Linear
from retnet.nn.norm import GatedGroupNorm
from retnet.nn.retention_constants import RetentionConstants, WithDecay
from retnet.ops import Form

__all__ = ["MultiScaleRetention"]


class MultiScaleRetention(WithDecay):
    """out_proj(norm(retention(rotary(q), rotary(k), v)) * swish(g)), one gamma per head.

    Keys: `{q,k}_proj.weight` [H K, d], `{v,g}_proj.weight` [H V, d], `out_proj.weight` [d, H V],
    `group_norm.*`, `bias` beside each weight if `config.bias`, and `log_decay_raw` [H] if
    `config.learnable_decay`.

    ln gamma is then reference * exp(log_decay_raw), where reference is the ln gamma of the
    configuration. The parameter begins at 0, and each of its values is legal:

    - A step of an optimizer changes ln gamma by a relative amount.
    - From 80 on gamma is exactly 0, from -80 down exactly 1. Such a head gets no gradient, so it
      stays there until the parameter is set. A head whose configured gamma is 1 begins at -80; its
      reference is -2^-10.
    - It stays float32 whatever `.to(dtype)` does. FSDP's mixed precision may round it to bfloat16
      for a call, which changes ln gamma by a factor within 1 +- 2^-9 abs(log_decay_raw).
    - A state dict of an older version with `log_decay`, ln gamma itself, is converted.

    The rotary frequencies, and ln gamma unless learnable, are neither parameters nor buffers: they
    follow from the configuration and are made in float32 on each device that needs them.

    Args:
        config: sizes and switches.
        device: where the parameters are made.
        dtype: of the parameters, by default torch's default.

    Attributes:
        log_decay: ln gamma of each head, [H] float32. Read-only; differentiable if learnable.
        frequencies: of the rotation, [K/2] float32, radians per token. Read-only.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.nn import MultiScaleRetention
        >>> layer = MultiScaleRetention(RetNetConfig.preset("tiny"))
        >>> out, state = layer(torch.randn(2, 100, 128))
        >>> out.shape, state.shape
        (torch.Size([2, 100, 128]), torch.Size([2, 4, 32, 64]))
    """

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
            self.log_decay_raw = nn.Parameter(
                torch.empty(config.num_heads, device=device, dtype=torch.float32)
            )
        self._constants = RetentionConstants(config)
        self._make_constants()
        self.reset_parameters()

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
            reference = self._constants.reference(torch.device("cpu"))
            with torch.no_grad():
                self.log_decay_raw.copy_(raw_of(self.config.log_decay(), reference))

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
        log_decay = self._log_decay(x.device)
        if cfg.decay_norm:
            q = q * _inverse_sqrt_weight_sum(log_decay, positions).to(q.dtype)
        if q.dtype == torch.float64:
            log_decay = log_decay.double()
        frequencies = self._constants.frequencies(x.device)

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
                frequencies,
                weight=self.group_norm.weight,
                bias=self.group_norm.bias,
                eps=cfg.group_norm_eps,
                norm=cfg.group_norm,
                style=cfg.rotary_style,
            )
            return self.out_proj(out.flatten(-2)).unsqueeze(1), state

        q, k = ops.rotary(q, k, positions, frequencies, style=cfg.rotary_style)
        out, state = ops.retention(q, k, v, log_decay, state, form=form, cu_seqlens=cu_seqlens)
        return self.out_proj(self.group_norm(out, gate).flatten(-2)), state

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


def _inverse_sqrt_weight_sum(log_decay: Tensor, positions: Tensor) -> Tensor:
    """n_t^(-1/2), n_t = sum_{i<=t} gamma^i = (1 - gamma^(t+1)) / (1 - gamma), in float64.

    n_t = t + 1 at gamma = 1, where a learnable decay gets no gradient from this factor.
    [T] -> [T, H, 1], [B, T] -> [B, T, H, 1].
    """
    g = log_decay.double()
    count = positions.double().unsqueeze(-1) + 1
    below_one = torch.where(g == 0, -1.0, g)
    total = torch.expm1(count * below_one) / torch.expm1(below_one)
    return torch.where(g == 0, count, total).rsqrt().unsqueeze(-1)
