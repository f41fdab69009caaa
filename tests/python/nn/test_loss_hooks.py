# SPDX-License-Identifier: Apache-2.0
"""Hooks on the head of linear_cross_entropy, and the values that they get."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import retnet.cpp
from retnet.nn import linear_cross_entropy
from support.cases.loss import D, V, make_head, make_inputs, whole
from support.cases.nn import make_config


def scale_by_position(module, args, out):
    return out * torch.linspace(0, 1, out.shape[1], dtype=out.dtype)[:, None]


def descend(seen):
    """Runs an optimizer within the backward pass."""

    @torch.no_grad()
    def step(parameter):
        parameter.sub_(parameter.grad)
        seen.append(parameter.detach().clone())

    return step


def parametrized(seen, head):
    parametrize.register_parametrization(head, "weight", nn.Softplus())
    head.parametrizations.weight.original.register_hook(seen.append)
    head.parametrizations.weight[0].register_full_backward_hook(
        lambda module, before, after: seen.extend([*before, *after])
    )


def spectral(seen, head):
    torch.manual_seed(3)
    parametrizations.spectral_norm(head)
    head.parametrizations.weight.original.register_hook(seen.append)


def normed(seen, head):
    nn.utils.weight_norm(head)  # a forward hook does this
    head.weight_g.register_hook(seen.append)


def of_node(seen, head):
    node = head.weight.expand_as(head.weight).grad_fn.next_functions[0][0]
    node.register_prehook(seen.extend)
    head.keeps = node


HOOKS = {
    "weight": lambda seen, head, x: head.weight.register_hook(seen.append),
    "clamp": lambda seen, head, x: head.weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3)),
    "bias": lambda seen, head, x: head.bias.register_hook(seen.append),
    "hidden": lambda seen, head, x: x.register_hook(seen.append),
    "retain_grad": lambda seen, head, x: x.retain_grad(),
    "post-accumulate": lambda seen, head, x: head.weight.register_post_accumulate_grad_hook(
        lambda p: seen.append(p.grad.clone())
    ),
    "optimizer": lambda seen, head, x: head.weight.register_post_accumulate_grad_hook(
        descend(seen)
    ),
    "several tensors": lambda seen, head, x: torch.autograd.graph.register_multi_grad_hook(
        (head.weight, head.bias, x), seen.extend
    ),
    "accumulating node": lambda seen, head, x: of_node(seen, head),
    "forward": lambda seen, head, x: head.register_forward_hook(scale_by_position),
    "forward pre": lambda seen, head, x: head.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    ),
    "full backward": lambda seen, head, x: head.register_full_backward_hook(
        lambda module, before, after: seen.extend([*before, *after])
    ),
    "full backward pre": lambda seen, head, x: head.register_full_backward_pre_hook(
        lambda module, after: seen.extend(after)
    ),
    "parametrized": lambda seen, head, x: parametrized(seen, head),
    "spectral norm": lambda seen, head, x: spectral(seen, head),
    "weight norm": lambda seen, head, x: normed(seen, head),
    "frozen weight": lambda seen, head, x: (
        head.weight.requires_grad_(False),
        head.bias.register_hook(seen.append),
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("inner", [False, True], ids=["head", "part of head"])
@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())
def test_hooks_see_what_they_see_without_chunks(register, inner, short):
    """Hooks are called as often as without chunks, with the same gradients, and what they return
    has the same effect.
    """
    found = []
    for loss in (linear_cross_entropy, lambda *args: whole(*args[:3])):
        linear, seen = make_head("bias")[0], []
        head = nn.Sequential(nn.LayerNorm(D, dtype=torch.float64), linear) if inner else linear
        leaf, targets = make_inputs()
        hidden = leaf * 2
        register(seen, linear, hidden)
        value = loss(hidden, head, targets, V)
        (3 * value).backward()
        retained = hidden.grad if hidden.retains_grad else None
        tensors = [*head.parameters(), *head.buffers()]
        found.append([value, leaf.grad, retained, tensors, [x.grad for x in tensors], seen])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-11)


def test_retained_gradient_of_a_weight_that_is_computed(short):
    found = []
    for loss in (linear_cross_entropy, lambda *args: whole(*args[:3])):
        head, seen = make_head("linear")[0], []
        parametrize.register_parametrization(head, "weight", nn.Tanh())
        hidden, targets = make_inputs()
        with parametrize.cached():
            weight = head.weight
            weight.retain_grad()
            weight.register_hook(seen.append)
            loss(hidden, head, targets, V).backward()
        found.append([hidden.grad, weight.grad, head.parametrizations.weight.original.grad, seen])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-11)


@pytest.mark.parametrize("cls", ["Python", "C++"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_hook_on_the_weight_of_the_head(cls, tied):
    """The chunks have their real size, 1024 tokens for this many classes."""
    made = retnet.nn.RetNetForCausalLM if cls == "Python" else retnet.cpp.RetNetForCausalLM
    config = make_config(
        vocab_size=33_000, embed_dim=6, num_heads=1, num_layers=1, tie_embeddings=tied
    )
    ids = torch.randint(33_000, (1, 1030), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = made(config)
    logits = model(ids).logits[0, :-1]
    F.cross_entropy(logits, ids[0, 1:]).backward()
    weight = (model.embed_tokens if tied else model.lm_head).weight
    expected, seen = weight.grad, []
    model.zero_grad()
    weight.register_hook(lambda grad: seen.append(grad) or grad.clamp(-1e-4, 1e-4))
    weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    model(ids, labels=ids).loss.backward()
    clamped = expected.clamp(-1e-4, 1e-4)
    torch.testing.assert_close(seen, [expected, clamped], atol=1e-7, rtol=1e-4)
    assert torch.equal(weight.grad, seen[1])
