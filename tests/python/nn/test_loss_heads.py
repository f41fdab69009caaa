# SPDX-License-Identifier: Apache-2.0
"""How linear_cross_entropy calls its head."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from retnet.nn import linear_cross_entropy
from support.cases.loss import KINDS, PLAIN, D, V, close, make_head, make_inputs, whole
from support.cases.nn import make_model, random_ids


class Products(TorchFunctionMode):
    """Keeps tensors that are multiplied by a weight [V, D]."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear and (args[1:] or [kwargs["weight"]])[0].shape == (V, D):
            self.seen.append(args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", PLAIN)
def test_every_logit_of_a_plain_head_is_one_product(kind, short):
    head, _, _ = make_head(kind)
    hidden, targets = make_inputs()
    with Products() as mode:
        linear_cross_entropy(hidden, head, targets, V)
    assert [x.shape for x in mode.seen] == [(2, 5, D)] * 3 + [(2, 4, D)]
    assert torch.equal(torch.cat(mode.seen, 1), hidden)


@pytest.mark.parametrize("kind", KINDS[3:])
def test_calls_of_other_heads(kind, short):
    """Each chunk calls the head twice, in order. A head with hooks is called once with all of
    hidden.
    """
    head, _, _ = make_head(kind)
    hidden, targets = make_inputs()
    seen, forward = [], head.forward
    head.forward = lambda x: seen.append(x) or forward(x)
    loss = linear_cross_entropy(hidden, head, targets, V)
    parts = [(2, 19, D)] if kind == "hooked" else [(2, 5, D)] * 3 + [(2, 4, D)]
    assert [x.shape for x in seen] == parts
    assert torch.equal(torch.cat(seen, 1), hidden)
    loss.backward()
    assert len(seen) == (1 if kind == "hooked" else 8)


def test_dropout_of_an_adapter_is_drawn_once(short):
    """The second call of a chunk drops the same elements as the first."""
    head, learning, _ = make_head("adapted")
    head.train()
    hidden, targets = make_inputs()
    torch.manual_seed(5)
    loss = linear_cross_entropy(hidden, head, targets, V)
    actual = torch.autograd.grad(loss, learning)
    torch.manual_seed(5)
    parts = zip(hidden.split(5, 1), targets.split(5, 1), strict=True)
    nats = [whole(part, head, target, "sum") for part, target in parts]
    expected = sum(nats) / (targets != -100).sum()
    close(loss, expected)
    for a, b in zip(actual, torch.autograd.grad(expected, learning), strict=True):
        close(a, b)


def test_a_hook_on_every_module_is_seen(short):
    seen = []
    head, _, _ = make_head("linear")
    hook = nn.modules.module.register_module_forward_hook(lambda m, *rest: seen.append(m))
    linear_cross_entropy(make_inputs()[0], head, make_inputs()[1], V).backward()
    hook.remove()
    assert seen == [head]


def test_the_model_calls_its_head(short):
    model, seen = make_model(), []
    model.lm_head.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    ids = random_ids(2, 13)
    model(ids, labels=ids)
    assert seen == [13]


def test_double_backward_raises(short):
    hidden, targets = make_inputs()
    loss = linear_cross_entropy(hidden, make_head("linear")[0], targets, V)
    with pytest.raises(
        RuntimeError, match="linear_cross_entropy: double backward is not supported"
    ):
        torch.autograd.grad(loss, hidden, create_graph=True)
