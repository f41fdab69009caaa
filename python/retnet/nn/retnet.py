# SPDX-License-Identifier: Apache-2.0
"""The RetNet body: embedding, decoder layers, last norm (Sun et al. 2023, section 2)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retnet.config import RetNetConfig
from retnet.nn.decoder_layer import DecoderLayer
from retnet.nn.multi_scale_retention import is_step
from retnet.nn.norm import make_norm
from retnet.ops import Form
from retnet.state import RetNetState

__all__ = ["RetNet"]


class RetNet(nn.Module):
    """The RetNet body, which maps token ids to hidden states (Sun et al. 2023, section 2).

    State-dict keys: `embed_tokens.weight` [vocab, d], `embed_norm.*` if `config.embed_norm`,
    `layers.N.*`, and `norm.*` if `config.pre_norm`.

    Args:
        config: sizes and switches.
        device: device of the parameters, by default torch's default.
        dtype: dtype of the parameters, by default torch's default.

    Attributes:
        checkpoint_layers: keep only the inputs of each layer for the backward pass, which then
            runs the forward of the layer again (activation checkpointing). False by default. The
            backward pass raises if an input or a parameter of a layer has changed in place before
            it.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.nn import RetNet
        >>> body = RetNet(RetNetConfig.preset("tiny"))
        >>> hidden, state = body(torch.randint(256, (4, 128)))
        >>> hidden.shape
        torch.Size([4, 128, 128])
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
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.embed_dim, device=device, dtype=dtype
        )
        norm = partial(make_norm, config, config.embed_dim, device=device, dtype=dtype)
        self.embed_norm = norm() if config.embed_norm else None
        self.layers = nn.ModuleList(
            DecoderLayer(config, device=device, dtype=dtype) for _ in range(config.num_layers)
        )
        self.norm = norm() if config.pre_norm else None
        self.checkpoint_layers = False
        self._reset_embedding()
        self._scale_layers()

    def _reset_embedding(self) -> None:
        nn.init.normal_(self.embed_tokens.weight, std=self.config.embed_dim**-0.5)

    @torch.no_grad()
    def _scale_layers(self) -> None:
        """Scales v, out and the outer matrices of the feed-forward network by the model's depth."""
        factor = 1.0
        if self.config.residual_scale != 1:  # DeepNet: alpha = (2L)^(1/4), beta = (8L)^(-1/4)
            factor /= math.sqrt(2) * self.config.residual_scale
        if self.config.ffn_inner_norm:  # Magneto's sub-LayerNorm
            factor *= math.sqrt(math.log(2 * self.config.num_layers))
        if factor == 1:
            return
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            first = layer.ffn.gate_proj if self.config.ffn_gated else layer.ffn.up_proj
            retention = layer.retention
            for proj in (retention.v_proj, retention.out_proj, first, layer.ffn.down_proj):
                proj.weight.mul_(factor)

    def reset_parameters(self) -> None:
        """Reinitialises every part. The embedding is drawn from N(0, 1/d), as in torchscale.

        Two switches scale v, out and the first and last matrix of the feed-forward network:

        - If residual_scale is a != 1 (DeepNet), they are divided by sqrt(2) a. For the value of
          DeepNet, a = (2L)^(1/4), this is (8L)^(1/4).
        - If ffn_inner_norm is true (Magneto), they are multiplied by sqrt(ln 2L).
        """
        self._reset_embedding()
        if self.embed_norm is not None:
            self.embed_norm.reset_parameters()
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.reset_parameters()
        if self.norm is not None:
            self.norm.reset_parameters()
        self._scale_layers()

    def forward(
        self,
        input_ids: Tensor,
        *,
        state: RetNetState | None = None,
        cu_seqlens: Tensor | None = None,
        form: Form = "chunkwise",
        inplace: bool = False,
    ) -> tuple[Tensor, RetNetState]:
        """Runs the body on a block of tokens.

        Args:
            input_ids: [B, T] int64 or int32.
            state: the state after the tokens that were read before, None at the start. If the
                sequences are packed, it holds N sequences.
            cu_seqlens: [N + 1] int32, bounds of N packed sequences (B = 1).
            form: "chunkwise", "parallel" or "recurrent". The values are the same up to rounding.
            inplace: a decode step (T = 1 with a state, grad mode off) overwrites `state` instead of
                a copy. Other calls never change `state`.

        Returns:
            Hidden states [B, T, d] and the state after the last token.

        Raises:
            ValueError: input_ids or state has a wrong shape.
        """
        if input_ids.dim() != 2:
            raise ValueError(
                f"RetNet: input_ids must have shape [B, T], got {list(input_ids.shape)}"
            )
        sequences = input_ids.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        if state is not None:
            self._check_state(state, sequences)
        positions = _positions(input_ids.shape[1], input_ids.device, state, cu_seqlens)
        hidden = self.embed_tokens(input_ids) * self.config.embed_scale
        if self.embed_norm is not None:
            hidden = self.embed_norm(hidden)

        one_step = is_step(input_ids.shape[1], state, cu_seqlens)
        if state is not None and one_step and not torch.compiler.is_compiling():
            state = state if inplace else state.fork()
            for index, layer in enumerate(self.layers):
                hidden, _ = layer(
                    hidden, state=state.retention[index], positions=positions, inplace=True
                )
            state.positions.add_(1)
        else:
            after = []
            for index, layer in enumerate(self.layers):
                before = None if state is None else state.retention[index]
                inputs = (layer, form, hidden, before, positions, cu_seqlens)
                if self.checkpoint_layers and torch.is_grad_enabled():
                    # checkpoint detects only changes of its positional arguments, and raises.
                    hidden, layer_state = checkpoint(
                        _run, *inputs, *layer.parameters(), use_reentrant=False
                    )
                else:
                    hidden, layer_state = _run(*inputs)
                after.append(layer_state)
            # A traced step also takes this path. Writing to views of one stacked state would copy
            # the whole state for each layer.
            retention = torch.stack(after)
            positions_after = _advance(input_ids, sequences, state, cu_seqlens)
            if state is not None and one_step and inplace:
                state.retention.copy_(retention)
                state.positions.copy_(positions_after)
            else:
                state = RetNetState(retention, positions_after)
        return hidden if self.norm is None else self.norm(hidden), state

    def _check_state(self, state: RetNetState, batch: int) -> None:
        cfg = self.config
        want = [cfg.num_layers, batch, cfg.num_heads, cfg.key_dim, cfg.value_dim]
        if list(state.retention.shape) != want:
            raise ValueError(
                f"RetNet: state.retention must have shape [L, B, H, K, V] = {want}, "
                f"got {list(state.retention.shape)}"
            )
        if list(state.positions.shape) != [batch]:
            raise ValueError(
                f"RetNet: state.positions must have shape [B] = [{batch}], "
                f"got {list(state.positions.shape)}"
            )


def _run(
    layer: nn.Module,
    form: Form,
    hidden: Tensor,
    state: Tensor | None,
    positions: Tensor,
    cu_seqlens: Tensor | None,
    *_: Tensor,
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = layer(
        hidden, state=state, positions=positions, cu_seqlens=cu_seqlens, form=form
    )
    return result


def _positions(
    length: int, device: torch.device, state: RetNetState | None, cu_seqlens: Tensor | None
) -> Tensor:
    """Returns the position of each token in its own sequence, [T] or [B, T]."""
    index = torch.arange(length, device=device)
    if cu_seqlens is None:
        return index if state is None else state.positions.unsqueeze(1) + index
    start = -cu_seqlens[:-1].long()
    if state is not None:
        start = start + state.positions
    ends = cu_seqlens[1:].long()
    # A token is after every end that is not above it. The clamp leaves bad bounds to the op.
    sequence = torch.searchsorted(ends, index, right=True).clamp(max=ends.shape[0] - 1)
    return (index + start[sequence]).unsqueeze(0)


def _advance(
    input_ids: Tensor, sequences: int, state: RetNetState | None, cu_seqlens: Tensor | None
) -> Tensor:
    """Returns the position after the last token of each sequence, [B]."""
    if cu_seqlens is None:
        read = torch.full(
            (sequences,), input_ids.shape[1], device=input_ids.device, dtype=torch.int64
        )
    else:
        read = cu_seqlens.diff().long()
    return read if state is None else state.positions + read
