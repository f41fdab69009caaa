# SPDX-License-Identifier: Apache-2.0
"""The RetNet language model. It has a body, an output matrix and a loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F
from torch.utils._pytree import _register_namedtuple

from retnet.config import RetNetConfig
from retnet.nn.linear import Linear, linear
from retnet.nn.loss import (
    IGNORE_INDEX,
    Reduction,
    check_targets,
    linear_cross_entropy,
)
from retnet.nn.retnet import RetNet
from retnet.ops import Form
from retnet.state import RetNetState
from retnet.weights import write_checkpoint

__all__ = ["CausalLMOutput", "RetNetForCausalLM", "weight_shapes"]


class CausalLMOutput(NamedTuple):
    """What `RetNetForCausalLM` returns.

    Attributes:
        logits: [B, T, vocab], the logits of the token after each position. None with labels or
            targets.
        loss: cross-entropy in nats, a scalar. None without labels or targets.
        state: the state after the last token.
    """

    logits: Tensor | None
    loss: Tensor | None
    state: RetNetState


_register_namedtuple(CausalLMOutput, serialized_type_name="retnet.CausalLMOutput")


class RetNetForCausalLM(RetNet):
    """A RetNet that predicts the next token.

    State-dict keys: those of `RetNet`, and `lm_head.weight` [vocab, d] unless
    `config.tie_embeddings`.

    Args:
        config: sizes and switches.
        device: device of the parameters, by default torch's default.
        dtype: dtype of the parameters, by default torch's default.

    Example:
        >>> import torch
        >>> from retnet import RetNetConfig
        >>> from retnet.nn import RetNetForCausalLM
        >>> model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> tokens = torch.randint(256, (4, 128))
        >>> output = model(tokens, labels=tokens)
        >>> output.loss.backward()
        >>> optimizer.step()
        >>> output.state.positions
        tensor([128, 128, 128, 128])
        >>> model(tokens).logits.shape
        torch.Size([4, 128, 256])
    """

    def __init__(
        self,
        config: RetNetConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, device=device, dtype=dtype)
        self.lm_head: nn.Linear | None = None
        if not config.tie_embeddings:
            self.lm_head = Linear(
                config.embed_dim, config.vocab_size, bias=False, device=device, dtype=dtype
            )
            self._reset_head()

    def _reset_head(self) -> None:
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=self.config.embed_dim**-0.5)

    def reset_parameters(self) -> None:
        """Reinitialises every part. The output matrix is drawn from N(0, 1/d), as in torchscale."""
        super().reset_parameters()
        self._reset_head()

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, which `retnet.load` reads.

        `retnet.checkpoint.write` documents the guarantees and the errors.
        """
        shapes = weight_shapes(self.config)
        write_checkpoint(Path(folder), self.config, shapes, self.state_dict())

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        state: RetNetState | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
        form: Form = "chunkwise",
        inplace: bool = False,
        last_only: bool = False,
        targets: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> CausalLMOutput:
        """Runs the model on a block of tokens. Returns logits or a loss.

        `linear_cross_entropy` computes the loss. Not all logits exist at once, unless `lm_head` has
        module hooks.

        Args:
            input_ids: [B, T] int64 or int32.
            state: the state after the tokens that were read before, None at the start. If the
                sequences are packed, it holds N sequences.
            cu_seqlens: [N + 1] int32, bounds of N packed sequences (B = 1).
            labels: [B, T] int64, usually input_ids itself. Position t is scored against
                labels[t + 1] of the same sequence. -100 is ignored.
            form: "chunkwise", "parallel" or "recurrent". The values are the same up to rounding.
            inplace: a decode step (T = 1 with a state, grad mode off) overwrites `state` instead of
                a copy. Other calls never change `state`.
            last_only: return only the logits of the last token of each sequence, [B, 1, vocab], or
                [1, N, vocab] if packed. Decoding needs no others. It excludes labels and targets.
                No sequence may be empty. Bounds on a CPU are checked. On other devices and in
                compiled code, the logits of an empty sequence are NaN.
            targets: [B, T] int64, instead of labels. Position t is scored against targets[t], so
                that the last position counts too. -100 is ignored.
            reduction: "mean" over the targets that are not ignored, or "sum".

        Returns:
            The logits, or the loss if labels or targets are given, and the state. Without any
            target, as with T = 0, a mean is NaN and a sum is 0, as in torch.

        Raises:
            ValueError: input_ids, labels, targets or state has a wrong shape, labels or targets has
                a wrong dtype, more than one of labels, targets and last_only is given, or last_only
                finds no token.
        """
        if (labels is not None) + (targets is not None) + last_only > 1:
            raise ValueError(
                "RetNetForCausalLM: only one of labels, targets and last_only may be given"
            )
        for name, given in (("labels", labels), ("targets", targets)):
            if given is not None:
                check_targets("RetNetForCausalLM", name, given, input_ids.shape, "input_ids")
        hidden, state = super().forward(
            input_ids, state=state, cu_seqlens=cu_seqlens, form=form, inplace=inplace
        )
        if labels is not None:
            targets = _next_tokens(labels, cu_seqlens)
        if targets is not None:
            head = self.embed_tokens.weight if self.lm_head is None else self.lm_head
            loss = linear_cross_entropy(
                hidden, head, targets, self.config.vocab_size, reduction=reduction
            )
            return CausalLMOutput(None, loss, state)
        empty = None
        if last_only:
            hidden, empty = _last_tokens(hidden, cu_seqlens)
        if self.lm_head is None:
            logits = linear(hidden, self.embed_tokens.weight)
        else:
            logits = self.lm_head(hidden)
        if empty is not None:
            logits = logits.masked_fill(empty[:, None], math.nan)
        return CausalLMOutput(logits, None, state)


def weight_shapes(config: RetNetConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor in the state dict of a model of `config`."""
    model = RetNetForCausalLM(config, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _last_tokens(hidden: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Returns the last token of each sequence.

    If the bounds cannot be read here, it also returns which of the N sequences are empty.
    """
    if hidden.shape[1] == 0:
        raise ValueError(
            "RetNetForCausalLM: input_ids must have T >= 1 tokens with last_only, got "
            f"{list(hidden.shape[:2])}"
        )
    if cu_seqlens is None:
        return hidden[:, -1:], None
    last, empty = cu_seqlens[1:].long() - 1, cu_seqlens.diff() == 0
    # On another device, reading would wait for the device. While tracing there is no value to read.
    if cu_seqlens.device.type != "cpu" or type(empty) is not Tensor or is_compiling():
        return hidden[:, last.clamp(min=0)], empty
    if empty.any():
        raise ValueError(
            "RetNetForCausalLM: cu_seqlens must have no empty sequence with last_only, got "
            f"sequence {empty.nonzero()[0].item()} of length 0"
        )
    return hidden[:, last], None


def _next_tokens(labels: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Returns labels [B, T] shifted left by one, with -100 at the end of each sequence."""
    if cu_seqlens is not None:
        starts = torch.zeros(labels.shape[1] + 1, dtype=torch.bool, device=labels.device)
        starts = starts.index_fill(0, cu_seqlens.long(), True)
        labels = labels.masked_fill(starts[:-1], IGNORE_INDEX)
    return F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:]
