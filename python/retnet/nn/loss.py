# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy of the logits of a linear layer, without holding all logits at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from retnet.nn.linear import Linear, linear

__all__ = ["IGNORE_INDEX", "Reduction", "check_targets", "linear_cross_entropy"]

IGNORE_INDEX = -100
Reduction = Literal["mean", "sum"]
# The number of logits in a chunk, and the least number of tokens per chunk.
# csrc/nn/linear_cross_entropy.cpp has the same values.
_LOGITS = 2**25
_TOKENS = 1024
# The product that a linear layer computes, by the forward of its class at import. If a forward is
# replaced later, it belongs to another kind of module.
_PRODUCTS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    nn.Linear.forward: F.linear,
    Linear.forward: linear,
}


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Module | Tensor,
    targets: Tensor,
    vocab_size: int,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """Computes `F.cross_entropy(head(hidden), targets)` without holding all logits at once.

    The time axis is cut into equal chunks of B n <= max(1024, 2^25 / vocab_size) tokens, n >= 1.
    The logits of a chunk are freed before those of the next chunk are computed. If one chunk holds
    everything, this is `F.cross_entropy` itself. Otherwise the method depends on `head`:

    - `head` is a weight, or a linear layer without module hooks. (The layer is torch's, retnet's,
      or a subclass that inherits their forward.) With grad mode on, the gradients are computed
      chunk by chunk in the forward pass. No logit is computed twice, and the gradient of the logits
      of a chunk overwrites them. The gradients of weight and bias are summed in float32 or wider.
      Differentiating them again raises. A parametrized weight is computed once.
    - `head` is a module with module hooks. The hooks may be on the module, on a part of it, or on
      all modules. The module is called once with all of `hidden`, so that each hook sees what it
      would see without chunks. All logits then exist at once. The hooks of FSDP2 do not count if
      `head` is an FSDP unit of its own.
    - `head` is any other module or any tensor subclass. It is called for each chunk, and again in
      the backward pass (activation checkpointing). Under `torch.compile`, this applies to all heads
      without hooks.

    In each case, the hooks of the weights and of `hidden` (gradient hooks, post-accumulate hooks,
    `retain_grad`) run once, in the backward pass, on the whole gradient.

    Args:
        hidden: [B, T, d].
        head: a module that maps hidden states [B, n, d] to logits [B, n, vocab], or the weight
            [vocab, d] of a linear layer without bias.
        targets: [B, T] int64, the class of each token. -100 is ignored.
        vocab_size: the number of logits per token.
        reduction: "mean" over the targets that are not ignored (NaN without any), or "sum".

    Returns:
        The loss in nats, a scalar. It is float64 if the logits are, else float32.

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
    call, product, tensors = _parts(head)
    if product is None and _must_be_whole(head):
        chunks = [(hidden, targets)]
    else:
        chunks = _chunks(hidden, targets, vocab_size)
    if len(chunks) == 1 or not torch.is_grad_enabled():
        loss = _total([_nats(call, *chunk) for chunk in chunks])
    elif product is not None and _are_plain(tensors):
        loss = _WithGradients.apply(hidden, targets, vocab_size, product, *tensors)
    else:
        # The tensors of the head too, so that autograd sees changes of them before the second call.
        loss = _total([checkpoint(_nats, call, *c, *tensors, use_reentrant=False) for c in chunks])
    if reduction == "sum":
        return loss
    count = (targets != IGNORE_INDEX).sum()
    # Not 0 / 0: its gradient would be NaN, but the gradient of cross_entropy is 0 there.
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
    if count == 1:
        return [(hidden, targets)]
    chunk_size = -(-length // count)
    return list(zip(hidden.split(chunk_size, 1), targets.split(chunk_size, 1), strict=True))


def _nats(
    call: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *_: Tensor | None
) -> Tensor:
    """Returns the summed loss of a chunk."""
    logits = call(hidden).flatten(0, 1)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def _total(losses: list[Tensor]) -> Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _parts(
    head: nn.Module | Tensor,
) -> tuple[Callable[[Tensor], Tensor], Callable[..., Tensor] | None, list[Tensor | None]]:
    """Returns a function to logits, the product that it computes, and its tensors.

    The product is `product(x, weight, bias)`, and the tensors are weight and bias. If the product
    is not known, it is None, and the tensors are the parameters of the head.
    """
    if isinstance(head, Tensor):
        return partial(linear, weight=head), linear, [head, None]
    if (
        torch.compiler.is_compiling()
        or not isinstance(head, nn.Linear)
        or type(head).forward not in _PRODUCTS
        or "forward" in vars(head)
        or _hooks(head)
        or _has_any_global_hook()
    ):
        return head, None, list(head.parameters())
    product, weight, bias = _PRODUCTS[type(head).forward], head.weight, head.bias
    return partial(product, weight=weight, bias=bias), product, [weight, bias]


def _hooks(module: nn.Module) -> list[Callable[..., Any]]:
    kinds = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return [hook for hooks in kinds for hook in hooks.values()]


def _must_be_whole(head: nn.Module | Tensor) -> bool:
    """Returns whether a call of head does more than compute logits.

    Module hooks see its inputs and outputs, and a parametrization may have a state of its own.
    """
    return isinstance(head, nn.Module) and (
        bool(_has_any_global_hook())
        or any(map(is_parametrized, head.modules()))
        or not all(_is_of_fsdp(hook) for module in head.modules() for hook in _hooks(module))
    )


def _is_of_fsdp(hook: Callable[..., Any]) -> bool:
    """Returns whether the hook gathers and frees the weights of one module for FSDP2, per call."""
    of = type(getattr(hook, "__self__", None))
    # torch.compile cannot trace the comparison.
    return not torch.compiler.is_compiling() and of.__module__.startswith("torch.distributed.fsdp.")


def _are_plain(tensors: list[Tensor | None]) -> bool:
    return not torch.compiler.is_compiling() and all(
        x is None or type(x) in (Tensor, nn.Parameter) for x in tensors
    )


class _WithGradients(torch.autograd.Function):
    """Computes the summed loss and the gradients of hidden, weight and bias in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        vocab_size: int,
        product: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        # Use aliases: autograd.grad runs the hooks of its inputs, here on partial sums.
        aliases = [
            x if x is None else x.detach().requires_grad_(x.requires_grad) for x in (weight, bias)
        ]
        learning = [x for x in aliases if x is not None and x.requires_grad]
        losses: list[Tensor] = []
        of_hidden: list[Tensor] = []
        sums: list[Tensor] = []  # the gradients of learning
        for part, target in _chunks(hidden.detach(), targets, vocab_size):
            part.requires_grad_(hidden.requires_grad)
            asked = [part] * hidden.requires_grad + learning
            with torch.enable_grad():
                logits = product(part, *aliases).flatten(0, 1)
            # The graph of a linear layer does not keep its output: the gradient may overwrite it.
            # Not detach(): if the version of a view goes up, autograd makes a new node with copies.
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
            if sums:
                for total, grad in zip(sums, found, strict=True):
                    total.add_(grad)
            else:
                sums = list(map(_wide, found))
        torch.clear_autocast_cache()  # which would keep casts of the aliases
        of_tensors = [None if x is None or not x.requires_grad else sums.pop(0) for x in aliases]
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        ctx.save_for_backward(torch.cat(of_hidden, 1) if of_hidden else None, *of_tensors)
        return _total(losses)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("linear_cross_entropy: double backward is not supported")
        grads = [
            None if grad is None else _scaled(grad, grad_loss, dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return grads[0], None, None, None, *grads[1:]


def _wide(grad: Tensor) -> Tensor:
    return grad if grad.dtype == torch.float64 else grad.float()


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    # Widen first: a product would round the factor to the dtype of a 16-bit gradient.
    return (_wide(grad) * factor).to(dtype)
