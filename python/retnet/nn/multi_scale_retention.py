# SPDX-License-Identifier: Apache-2.0
"""Gated multi-scale retention (Sun et al. 2023, section 2.2, Eq. 8)."""

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
    """Gated multi-scale retention (Sun et al. 2023, section 2.2, Eq. 8).

    It computes out_proj(norm(retention(rotary(q), rotary(k), v)) * swish(g)), with one gamma per
    head.

    State-dict keys:

    - `{q,k}_proj.weight` [H K, d], `{v,g}_proj.weight` [H V, d], `out_proj.weight` [d, H V],
    - `group_norm.*`,
    - a `bias` for each of these matrices if `config.bias`,
    - `log_decay_raw` [H] if `config.learnable_decay`.

    If the decay is learnable, ln gamma is reference * exp(log_decay_raw). The reference is the
    ln gamma of the configuration. The parameter starts at 0, and each of its values is legal:

    - An optimizer step changes ln gamma by a relative amount.
    - If it is 80 or more, gamma is exactly 0. If it is -80 or less, gamma is exactly 1. Such a head
      gets no gradient, so it stays there until the parameter is set. A head whose configured gamma
      is 1 starts at -80, and its reference is -2^-10.
    - It stays float32 in `.to(dtype)`. The mixed precision of FSDP may round it to bfloat16 for a
      call. This changes ln gamma by a factor within 1 +- 2^-9 abs(log_decay_raw).
    - The state dict of an older version holds `log_decay`, which is ln gamma itself. This is
      converted.

    The rotary frequencies are neither parameters nor buffers, and neither is ln gamma unless it is
    learnable. They follow from the configuration and are computed in float32 on each device that
    needs them.

    Args:
        config: sizes and switches.
        device: device of the parameters, by default torch's default.
        dtype: dtype of the parameters, by default torch's default.

    Attributes:
        log_decay: ln gamma of each head, [H] float32. Read-only. Differentiable if learnable.
        frequencies: rotary frequencies in radians per token, [K/2] float32. Read-only.

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
        """Reinitialises every part, as in torchscale.

        Matrices are Xavier uniform, with gain 2^-2.5 for q, k, v and g and 2^-1 for out. Biases are
        uniform within d^(-1/2) of 0, except the bias of out, which is 0.
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
        """Runs the layer on a block of tokens.

        It runs the fused decode step if T = 1, a state is given, cu_seqlens is not given, and grad
        mode is off.

        Args:
            x: [B, T, d].
            state: [B, H, K, V] after the tokens that were read before, None at the start.
                [N, H, K, V] if packed.
            positions: [T] or [B, T] int, the position of each token in its sequence. Required with
                a state or cu_seqlens, else 0..T-1 by default.
            cu_seqlens: [N + 1] int32, bounds of packed sequences (B = 1).
            form: "chunkwise", "parallel" or "recurrent". The values are the same up to rounding.
            inplace: the decode step may overwrite `state`.

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
        """Returns sizes and switches."""
        cfg = self.config
        return (
            f"embed_dim={cfg.embed_dim}, num_heads={cfg.num_heads}, key_dim={cfg.key_dim}, "
            f"value_dim={cfg.value_dim}, decay_norm={cfg.decay_norm}, "
            f"learnable_decay={cfg.learnable_decay}"
        )


def is_step(length: int, state: object, cu_seqlens: Tensor | None) -> bool:
    """Returns whether a call is a decode step: T = 1, a state, grad mode off, not packed."""
    if length != 1 or state is None or cu_seqlens is not None:
        return False
    return not torch.is_grad_enabled()


def _inverse_sqrt_weight_sum(log_decay: Tensor, positions: Tensor) -> Tensor:
    """Returns n_t^(-1/2), n_t = sum_{i<=t} gamma^i = (1 - gamma^(t+1)) / (1 - gamma), in float64.

    At gamma = 1, n_t is t + 1, and a learnable decay gets no gradient from this factor. The shape
    is [T, H, 1] for positions [T], and [B, T, H, 1] for positions [B, T].
    """
    g = log_decay.double()
    count = positions.double().unsqueeze(-1) + 1
    below_one = torch.where(g == 0, -1.0, g)
    total = torch.expm1(count * below_one) / torch.expm1(below_one)
    return torch.where(g == 0, count, total).rsqrt().unsqueeze(-1)
