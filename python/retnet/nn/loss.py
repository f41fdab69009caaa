# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of the logits of a linear layer, of which a part exists at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from retnet.nn.linear import Linear, linear

__all__ = ["IGNORE_INDEX", "Reduction", "check_targets", "linear_cross_entropy"]

IGNORE_INDEX = -100
Reduction = Literal["mean", "sum"]
# The logits of a chunk, and its tokens at least. csrc/nn/linear_cross_entropy.cpp has them too.
_LOGITS = 2**25
_TOKENS = 1024


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Module | Tensor,
    targets: Tensor,
    vocab_size: int,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """`F.cross_entropy(head(hidden), targets)` without all logits at once.

    The time axis is cut into equal chunks of B n <= max(1024, 2^25 / vocab_size) tokens, n >= 1.
    Each chunk's logits come from a call of `head`, and are gone before the next chunk's.

    Where one chunk holds everything, this is `F.cross_entropy` itself. Otherwise, with grad mode
    on, a plain `head`, which is a weight or an `nn.Linear`, torch's or retnet's, without hooks (no
    other subclass, nor one of Tensor), has its gradients computed chunk by chunk in the forward
    pass: no logit is computed twice, and the gradient of a chunk's logits takes their memory. The
    gradients of its parameters are summed in float32 or wider, and differentiating them again
    raises. Any other module, and any under `torch.compile`, is called a second time for each chunk
    in the backward pass (activation checkpointing), hooks included.

    Args:
        hidden: [B, T, d].
        head: gives logits [B, n, vocab] of hidden states [B, n, d]; or the weight [vocab, d] of a
            linear layer without bias.
        targets: [B, T] int64, the class of each token; -100 is ignored.
        vocab_size: the number of logits of a token.
        reduction: "mean" over the targets that are not ignored (NaN without any), or "sum".

    Returns:
        A scalar, the loss in nats; float64 where the logits are, else float32.

    Raises:
        ValueError: hidden, targets or reduction is not as above.
    """
    if hidden.dim() != 3:
        raise ValueError(
            f"linear_cross_entropy: hidden must have shape [B, T, d], got {list(hidden.shape)}"
        )
    check_targets("linear_cross_entropy", "targets", targets, hidden.shape[:-1], "hidden's tokens")
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f'linear_cross_entropy: reduction must be "mean" or "sum", got {reduction!r}'
        )
    call = partial(linear, weight=head) if isinstance(head, Tensor) else head
    chunks = _chunks(hidden, targets, vocab_size)
    if len(chunks) == 1 or not torch.is_grad_enabled():
        loss = _total([_nats(call, *chunk) for chunk in chunks])
    elif _is_plain(head):
        loss = _WithGradients.apply(hidden, targets, call, vocab_size, *_learning(head))
    else:
        loss = _total([checkpoint(_nats, call, *c, use_reentrant=False) for c in chunks])
    if reduction == "sum":
        return loss
    count = (targets != IGNORE_INDEX).sum()
    # Not 0 / 0, whose gradient would be NaN: that of cross_entropy is 0 there.
    return torch.where(count > 0, loss / count.clamp(min=1), math.nan)


def check_targets(where: str, name: str, targets: Tensor, shape: torch.Size, of: str) -> None:
    """Raises ValueError unless `targets` are int64 and have the shape of `of`."""
    if targets.shape != shape:
        raise ValueError(
            f"{where}: {name} must have the shape of {of}, {list(shape)}, got {list(targets.shape)}"
        )
    if targets.dtype != torch.int64:
        raise ValueError(f"{where}: {name} must be torch.int64, got {targets.dtype}")


def _chunks(hidden: Tensor, targets: Tensor, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    batch, length = targets.shape
    longest = max(max(_TOKENS, _LOGITS // vocab_size) // max(batch, 1), 1)
    count = max(-(-length // longest), 1)
    step = max(-(-length // count), 1)
    return list(zip(hidden.split(step, 1), targets.split(step, 1), strict=True))


def _nats(call: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """The summed loss of a chunk."""
    logits = call(hidden).flatten(0, 1)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def _total(losses: list[Tensor]) -> Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _is_plain(head: nn.Module | Tensor) -> bool:
    """Whether the gradients of a call are those of hidden and `_learning(head)` and no others."""
    if torch.compiler.is_compiling():
        return False
    if isinstance(head, Tensor):
        return type(head) in (Tensor, nn.Parameter)
    return (
        type(head) in (nn.Linear, Linear)
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not (head._backward_hooks or head._backward_pre_hooks)
        and not _has_any_global_hook()
        and all(x is None or type(x) in (Tensor, nn.Parameter) for x in (head.weight, head.bias))
    )


def _learning(head: nn.Module | Tensor) -> list[Tensor]:
    tensors = [head] if isinstance(head, Tensor) else [head.weight, head.bias]
    return [x for x in tensors if isinstance(x, Tensor) and x.requires_grad]


class _WithGradients(torch.autograd.Function):
    """The summed loss, and the gradients of hidden and the parameters in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        call: Callable[[Tensor], Tensor],
        vocab_size: int,
        *parameters: Tensor,
    ) -> Tensor:
        losses: list[Tensor] = []
        of_hidden: list[Tensor] = []
        of_parameters: list[Tensor] = []
        for part, target in _chunks(hidden.detach(), targets, vocab_size):
            part.requires_grad_(hidden.requires_grad)
            asked = [part] * hidden.requires_grad + list(parameters)
            with torch.enable_grad():
                logits = call(part).flatten(0, 1)
            # A linear layer's graph does not keep its output: its gradient may overwrite it.
            # Not by detach(): of a view whose version goes up autograd makes a new node, by copies.
            grad = logits.data
            losses.append(
                torch.ops.retnet.cross_entropy_with_gradient_(
                    grad, target.flatten(), ignore_index=IGNORE_INDEX
                )
            )
            found = list(torch.autograd.grad(logits, asked, grad)) if asked else []
            del logits, grad  # before the next chunk's
            if hidden.requires_grad:
                of_hidden.append(found.pop(0))
            if of_parameters:
                for total, grad in zip(of_parameters, found, strict=True):
                    total.add_(grad)
            else:
                of_parameters = list(map(_wide, found))
        ctx.dtypes = [p.dtype for p in parameters]
        ctx.save_for_backward(torch.cat(of_hidden, 1) if of_hidden else None, *of_parameters)
        return _total(losses)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("linear_cross_entropy: double backward is not supported")
        of_hidden, *of_parameters = ctx.saved_tensors
        if of_hidden is not None:
            of_hidden = _scaled(of_hidden, grad_loss, of_hidden.dtype)
        grads = zip(of_parameters, ctx.dtypes, strict=True)
        return of_hidden, None, None, None, *(_scaled(g, grad_loss, dtype) for g, dtype in grads)


def _wide(grad: Tensor) -> Tensor:
    return grad if grad.dtype == torch.float64 else grad.float()


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    # Wide first: a product would round a factor to the dtype of a 16-bit gradient.
    return (_wide(grad) * factor).to(dtype)
