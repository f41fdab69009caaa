# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy agrees with F.cross_entropy of all logits."""

import copy
import weakref

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import retnet.nn.loss as module
from retnet.nn import linear_cross_entropy
from support.cases.loss import PLAIN, D, V, close, kinds, make_head, make_inputs, whole
from support.cases.nn import make_model, random_ids
from support.tolerances import assert_as_good_as_composite, assert_close_to_reference

# Values and gradients


@kinds
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_cross_entropy(kind, reduction, short):
    head, learning, _ = make_head(kind)
    hidden, targets = make_inputs()
    loss = linear_cross_entropy(hidden, head, targets, V, reduction=reduction)
    expected = whole(hidden, head, targets, reduction)
    close(loss, expected)
    leaves = [hidden, *learning]
    actual = torch.autograd.grad(3 * loss, leaves, retain_graph=True)
    for a, b in zip(actual, torch.autograd.grad(3 * expected, leaves), strict=True):
        close(a, b)
    with torch.no_grad():
        close(linear_cross_entropy(hidden, head, targets, V, reduction=reduction), expected)
    if kind in PLAIN:  # the graph still has what it saved
        for a, b in zip(torch.autograd.grad(3 * loss, leaves), actual, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", PLAIN)
def test_one_chunk_is_cross_entropy_itself(kind):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        head, learning, _ = make_head(kind, dtype)
        hidden, targets = make_inputs(dtype=dtype)
        loss, expected = (
            linear_cross_entropy(hidden, head, targets, V),
            whole(hidden, head, targets),
        )
        assert torch.equal(loss, expected) and loss.dtype == expected.dtype
        leaves = [hidden, *learning]
        actual = torch.autograd.grad(loss, leaves)
        for a, b in zip(actual, torch.autograd.grad(expected, leaves), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["linear", "bias", "hooked"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, "autocast"], ids=str
)
def test_rounds_like_cross_entropy(kind, dtype, monkeypatch):
    """Loss and gradients are within the table. The gradients of a plain head have at most twice the
    error of those from all logits at once. (Autograd sums those of other heads in the dtype of the
    parameter.)
    """
    monkeypatch.setattr(module, "_LOGITS", 0)
    monkeypatch.setattr(module, "_TOKENS", 200)
    autocast = dtype == "autocast"
    dtype = torch.float32 if autocast else dtype
    head, learning, _ = make_head(kind, dtype)
    hidden, targets = make_inputs(2, 500, dtype)
    leaves = [hidden, *learning]
    results = []
    for loss in (linear_cross_entropy, lambda *args: whole(*args[:3])):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(hidden, head, targets, V)
        assert value.dtype == torch.float32
        results.append([value.detach(), *torch.autograd.grad(value, leaves)])
        assert [x.dtype for x in results[-1][1:]] == [dtype] * len(leaves)
    exact_leaves = [x.detach().double().requires_grad_() for x in leaves]
    logits = F.linear(*exact_leaves[:2], *exact_leaves[2:3])
    if kind == "hooked":
        logits = logits * exact_leaves[3]
    value = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    exact = [value.detach(), *torch.autograd.grad(value, exact_leaves)]
    low = torch.bfloat16 if autocast else dtype
    assert_close_to_reference(results[0][0][None], exact[0][None], low)
    for found in list(zip(*results, exact, strict=True))[1:]:
        chunked, at_once, reference = (x.reshape(-1, x.shape[-1]) for x in found)
        assert_close_to_reference(chunked, reference, low, grad=True)
        if kind in PLAIN:
            assert_as_good_as_composite(chunked, at_once, reference)


@pytest.mark.parametrize("kind", ["linear", "hooked"])
@pytest.mark.parametrize("shape", [(2, 19), (0, 3), (3, 0)], ids=str)
def test_without_a_target(kind, shape, short):
    """The mean is NaN with gradients of zero, and the sum is zero."""
    head, learning, _ = make_head(kind)
    hidden, targets = make_inputs(*shape)
    targets.fill_(-100)
    loss = linear_cross_entropy(hidden, head, targets, V)
    assert loss.isnan() and whole(hidden, head, targets).isnan()
    for grad in torch.autograd.grad(loss, [hidden, *learning]):
        assert not grad.any()
    assert linear_cross_entropy(hidden, head, targets, V, reduction="sum") == 0


@pytest.mark.parametrize("kind", ["linear", "bias", "hooked"])
def test_what_is_frozen_gets_no_gradient(kind, short):
    hidden, targets = make_inputs()
    for frozen in range(3):
        head, learning, _ = make_head(kind)
        leaves = [hidden.detach().requires_grad_(), *learning]
        for tensor in leaves[frozen : frozen + 1]:
            tensor.requires_grad_(False)
        linear_cross_entropy(leaves[0], head, targets, V).backward()
        expected = [x.grad for x in leaves]
        for x in leaves:
            x.grad = None
        whole(leaves[0], head, targets).backward()
        for x, grad in zip(leaves, expected, strict=True):
            assert (grad is None) == (not x.requires_grad)
            if grad is not None:
                close(grad, x.grad)
    for tensor in leaves:
        tensor.requires_grad_(False)
    assert not linear_cross_entropy(leaves[0], head, targets, V).requires_grad


def test_gradients_accumulate(short):
    head, _, _ = make_head("linear")
    parts = [make_inputs(1, 30), make_inputs(2, 19)]
    for hidden, targets in parts:
        linear_cross_entropy(hidden, head, targets, V, reduction="sum").backward()
    actual, head.weight.grad = head.weight.grad, None
    for hidden, targets in parts:
        whole(hidden, head, targets, "sum").backward()
    close(actual, head.weight.grad)


@pytest.mark.parametrize("reduction, size", [("sum", 1800.0), ("mean", 0.5)])
def test_gradients_of_16_bit_weights_are_summed_in_float32(reduction, size, short):
    """Each of 300 chunks adds -6 and 6. Above 1024, bfloat16 holds only multiples of 8."""
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.ones(1, 3600, 1, dtype=torch.bfloat16)
    targets = torch.zeros(1, 3600, dtype=torch.int64)
    linear_cross_entropy(hidden, weight, targets, 2, reduction=reduction).backward()
    assert weight.grad.tolist() == [[-size], [size]]


def test_autocast_leaves_float64_alone(short):
    """torch's linear and cross-entropy leave it alone too."""
    for kind in ("linear", "bias"):
        head, learning, _ = make_head(kind)
        hidden, targets = make_inputs()
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(hidden, head, targets, V)
        close(loss, whole(hidden, head, targets))
        actual = torch.autograd.grad(loss, [hidden, *learning])
        expected = torch.autograd.grad(whole(hidden, head, targets), [hidden, *learning])
        for a, b in zip(actual, expected, strict=True):
            close(a, b)


@pytest.mark.parametrize("kind", ["linear", "hooked"])
def test_a_target_that_is_no_class(kind, short):
    """It raises an IndexError, as in F.cross_entropy."""
    hidden, targets = make_inputs()
    targets[1, 3] = V
    for loss in (whole, lambda *args: linear_cross_entropy(*args, V)):
        with pytest.raises(IndexError, match=f"{V}"):
            loss(hidden, make_head(kind)[0], targets)


def test_a_gradient_scaler(short):
    """The loss and its gradients are scaled. An infinite gradient skips the step and is counted
    once.
    """
    head, hidden = make_head("bias", torch.float32)[0], make_inputs(dtype=torch.float32)[0].detach()
    targets, before = make_inputs()[1], copy.deepcopy(head.state_dict())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True):
        optimizer.zero_grad()
        if bad:
            hidden[1, 3, 2] = torch.inf
        scaler.scale(linear_cross_entropy(hidden, head, targets, V)).backward()
        if not bad:
            expected = torch.autograd.grad(whole(hidden, head, targets), list(head.parameters()))
            for p, grad in zip(head.parameters(), expected, strict=True):
                torch.testing.assert_close(p.grad, 1024 * grad)
        kept = copy.deepcopy(head.state_dict())
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(head.weight, kept["weight"]) == bad
        assert scaler.get_scale() == (512 if bad else 1024)
    assert not torch.equal(before["weight"], head.weight)


def test_autocast_keeps_no_cast_of_the_head(short):
    """One autocast region may hold many micro-batches."""
    head = make_head("linear", torch.float32)[0]
    hidden, targets = make_inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Casts() as mode:
        linear_cross_entropy(hidden, head, targets, V)
        casts = [refers for dtype, refers in mode.found if dtype == torch.bfloat16]
        assert len(casts) == 1 and casts[0]() is None


class Casts(TorchDispatchMode):
    """Keeps references to the casts of tensors that have the shape of the weight."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.shape == (V, D):
            self.found.append((out.dtype, weakref.ref(out)))
        return out


# Changes in place before the backward pass


@pytest.mark.parametrize("changed", ["hidden", "targets", "weight", "nothing"])
@pytest.mark.parametrize("kind", ["one chunk", "plain", "called twice"])
def test_a_change_in_place_raises_or_does_no_harm(kind, changed, monkeypatch):
    """The gradients of a plain head are computed in the forward pass, before the change."""
    if kind != "one chunk":
        monkeypatch.setattr(module, "_LOGITS", 0)
        monkeypatch.setattr(module, "_TOKENS", 12)
    head, learning, _ = make_head("adapted" if kind == "called twice" else "linear")
    leaf, targets = make_inputs()
    expected = torch.autograd.grad(whole(leaf, head, targets), [leaf, *learning])
    hidden = leaf * 1
    loss = linear_cross_entropy(hidden, head, targets, V)
    with torch.no_grad():
        if changed == "hidden":
            hidden[1, 3] += 1
        elif changed == "targets":
            targets[1, 3] = (targets[1, 3] + 1) % V
        elif changed == "weight":
            head.weight[1] += 1
    if kind == "plain" or changed == "nothing":
        for a, b in zip(torch.autograd.grad(loss, [leaf, *learning]), expected, strict=True):
            close(a, b)
    else:
        with pytest.raises(
            RuntimeError, match=r"modified by an inplace operation|been modified inplace"
        ):
            loss.backward()


# torch.compile, torch.export


@pytest.mark.not_poisoned
def test_compiled(short):
    model, ids = make_model(torch.float32), random_ids(2, 19)
    torch._dynamo.reset()
    step = torch.compile(
        lambda ids: model(ids, labels=ids).loss, fullgraph=True, backend="aot_eager"
    )
    step(ids).backward()
    actual = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    expected = model(ids, labels=ids).loss
    expected.backward()
    torch.testing.assert_close(step(ids), expected)
    for name, p in model.named_parameters():
        torch.testing.assert_close(actual[name], p.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.not_poisoned
def test_exported(short):
    model, ids = make_model(torch.float32).eval(), random_ids(2, 19)
    with torch.no_grad():
        program = torch.export.export(model, (ids,), {"labels": ids}, strict=False)
        torch.testing.assert_close(
            program.module()(ids, labels=ids).loss, model(ids, labels=ids).loss
        )


# The model


def test_targets_are_labels_before_the_shift():
    model, ids = make_model(), random_ids(2, 7)
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    by_labels, by_targets = model(ids, labels=ids), model(ids, targets=targets)
    assert torch.equal(by_labels.loss, by_targets.loss)
    close(model(ids, targets=targets, reduction="sum").loss, 12 * by_targets.loss)


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_trains_in_chunks(tied, short):
    model, ids = make_model(tie_embeddings=tied), random_ids(2, 19)
    model(ids, labels=ids).loss.backward()
    actual = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    logits = model(ids).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(actual[name], p.grad, atol=1e-11, rtol=1e-10)
