# SPDX-License-Identifier: Apache-2.0
"""Heads, inputs and the definition for the tests of linear_cross_entropy."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

V, D = 17, 8


class Adapted(nn.Linear):
    """A linear layer with an adapter of low rank after a dropout, as in LoRA."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.down, self.up = nn.Linear(D, 3).double(), nn.Linear(3, V).double()

    def forward(self, x):
        return super().forward(x) + self.up(F.dropout(self.down(x), 0.5, self.training))


def heads(dtype=torch.float64):
    """Returns, for each kind of head, the function, the tensors that it learns, and whether it is
    plain.
    """
    torch.manual_seed(0)
    bare, biased = (nn.Linear(D, V, bias=bias, dtype=dtype) for bias in (False, True))
    yield "weight", bare.weight, [bare.weight], True
    yield "linear", bare, [bare.weight], True
    yield "bias", biased, [biased.weight, biased.bias], True
    hooked = nn.Linear(D, V, dtype=dtype)
    outside = nn.Parameter(torch.ones(V, dtype=dtype))
    hooked.register_forward_hook(lambda m, args, out: out * outside)
    yield "hooked", hooked, [*hooked.parameters(), outside], False
    replaced = nn.Linear(D, V, dtype=dtype)
    replaced.forward = lambda x: F.linear(x, replaced.weight * outside[:, None])
    yield "replaced", replaced, [replaced.weight, outside], False
    if dtype == torch.float64:
        adapted = Adapted(D, V, dtype=dtype).eval()
        yield "adapted", adapted, list(adapted.parameters()), False


KINDS = ["weight", "linear", "bias", "hooked", "replaced", "adapted"]
PLAIN = KINDS[:3]
kinds = pytest.mark.parametrize("kind", KINDS)


def make_head(kind, dtype=torch.float64):
    return next(found[1:] for found in heads(dtype) if found[0] == kind)


def make_inputs(B=2, T=19, dtype=torch.float64, vocab=V):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocab, (B, T), generator=generator)
    targets[torch.rand(B, T, generator=generator) < 0.2] = -100
    return hidden.requires_grad_(), targets


def whole(hidden, head, targets, reduction="mean"):
    logits = F.linear(hidden, head) if isinstance(head, torch.Tensor) else head(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
