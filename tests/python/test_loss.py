# SPDX-License-Identifier: Apache-2.0
"""linear_cross_entropy against F.cross_entropy of all logits."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import retnet.nn.loss as module
from cases_nn import make_model, random_ids
from retnet.nn import linear_cross_entropy
from tolerances import assert_as_good_as_composite, assert_close_to_reference

V, D = 17, 8


@pytest.fixture
def short(monkeypatch):
    """Chunks of 12 tokens at most."""
    monkeypatch.setattr(module, "_LOGITS", 0)
    monkeypatch.setattr(module, "_TOKENS", 12)


class Adapted(nn.Linear):
    """A linear layer with an adapter of low rank behind a dropout, as LoRA has it."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.down, self.up = nn.Linear(D, 3).double(), nn.Linear(3, V).double()

    def forward(self, x):
        return super().forward(x) + self.up(F.dropout(self.down(x), 0.5, self.training))


def heads(dtype=torch.float64):
    """Everything that may make logits, the tensors it learns, and whether it is plain."""
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
    if kind in PLAIN:  # what the graph keeps is not used up
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
    """Loss and gradients are within the table; those of a plain head have at most twice the error
    of all logits at once. (Those of others are summed by autograd, in the parameter's dtype.)"""
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
    """NaN, and gradients of zero; a sum is zero."""
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


def test_autocast_leaves_float64_alone(short):
    """Here as in torch's linear and cross-entropy."""
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
    """IndexError, as of F.cross_entropy."""
    hidden, targets = make_inputs()
    targets[1, 3] = V
    for loss in (whole, lambda *args: linear_cross_entropy(*args, V)):
        with pytest.raises(IndexError, match=f"{V}"):
            loss(hidden, make_head(kind)[0], targets)


class Logits(TorchDispatchMode):
    """Keeps what has as many elements as the logits of 2 x 5 tokens."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == 2 * 5 * V:
            self.found.append(out)
        return out


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_chunk_has_one_memory(dtype, kind, short):
    """Of logits there are no copies, nor a gradient beside them."""
    hidden, targets = make_inputs(2, 20, dtype)
    with Logits() as mode:
        linear_cross_entropy(hidden, make_head(kind, dtype)[0], targets, V)
    found = {x.untyped_storage().data_ptr(): x.dtype for x in mode.found}
    of_a_chunk = 2 if kind == "bias" else 1  # torch's product, and its sum with the bias
    assert list(found.values()) == [dtype] * 4 * of_a_chunk


# The call of the head


@kinds
def test_every_logit_comes_from_a_call(kind, short, monkeypatch):
    head, _, plain = make_head(kind)
    hidden, targets = make_inputs()
    seen = []
    if kind == "weight":
        linear = F.linear
        monkeypatch.setattr(F, "linear", lambda x, *rest: seen.append(x) or linear(x, *rest))
    elif plain:
        monkeypatch.setattr(
            nn.Linear, "forward", lambda m, x: seen.append(x) or F.linear(x, m.weight, m.bias)
        )
    else:
        head.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    loss = linear_cross_entropy(hidden, head, targets, V)
    assert [x.shape for x in seen] == [(2, 5, D)] * 3 + [(2, 4, D)]
    assert torch.equal(torch.cat(seen, 1), hidden)
    loss.backward()
    assert len(seen) == (4 if plain else 8)  # in a plain head no logit is computed twice


def test_dropout_of_an_adapter_is_drawn_once(short):
    """The second call of a chunk sees what the first one dropped."""
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
    assert seen == [head] * 8


def test_the_model_calls_its_head(short):
    model, seen = make_model(), []
    model.lm_head.register_forward_hook(lambda m, args, out: seen.append(args[0].shape[1]))
    ids = random_ids(2, 13)
    model(ids, labels=ids)
    assert seen == [5, 5, 3]


def test_double_backward_raises(short):
    hidden, targets = make_inputs()
    loss = linear_cross_entropy(hidden, make_head("linear")[0], targets, V)
    with pytest.raises(
        RuntimeError, match="linear_cross_entropy: double backward is not supported"
    ):
        torch.autograd.grad(loss, hidden, create_graph=True)


# Chunks


@pytest.mark.parametrize(
    "B, T, vocab, lengths",
    [
        (1, 2048, 32768, [1024] * 2),
        (4, 2048, 32000, [256] * 8),  # 2^25 / 32000 = 1048 tokens, 262 of each row
        (1, 1025, 200_000, [513, 512]),
        (2000, 3, 50_000, [1, 1, 1]),
        (16, 512, 256, [512]),
    ],
)
def test_chunks(B, T, vocab, lengths):
    hidden, targets = torch.empty(B, T, 1, device="meta"), torch.empty(B, T, device="meta")
    assert [x.shape[1] for x, _ in module._chunks(hidden, targets, vocab)] == lengths


PEAK = """
import pathlib, re, sys, torch, retnet, retnet.cpp
from retnet import RetNetConfig
def peak():  # getrusage would begin with that of the process this one comes from
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", status)[1])
config = RetNetConfig(vocab_size=50_000, embed_dim=16, num_layers=1, num_heads=1, key_dim=8,
                      value_dim=16, ffn_dim=16)
made = {"Python": retnet.nn.RetNetForCausalLM, "C++": retnet.cpp.RetNetForCausalLM}
model = made[sys.argv[1]](config)
if sys.argv[2] == "hooked":
    model.lm_head.register_forward_hook(lambda *call: None)
ids = torch.randint(50_000, (1, int(sys.argv[3])))
model(ids[:, :64], labels=ids[:, :64]).loss.backward()
before = peak()
model(ids, labels=ids).loss.backward()
print(peak() - before)
"""


@pytest.mark.parametrize(
    "kind", [("Python", "plain", "8192"), ("Python", "hooked", "4096"), ("C++", "plain", "4096")]
)
def test_peak_memory(kind):
    """A step on 8192 tokens over 50,000 classes takes less than a fifth of what their logits alone
    would, 1.6 GB in float32, and with a hook half; other ways are tried on 4096."""
    ran = subprocess.run([sys.executable, "-c", PEAK, *kind], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    share = 0.5 if kind[1] == "hooked" else 0.2
    assert 0 < int(ran.stdout) < share * 8192 * 50_000 * 4


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


# Errors


ERRORS = {
    "hidden": (
        lambda: linear_cross_entropy(torch.zeros(3, D), torch.zeros(V, D), torch.zeros(3), V),
        r"hidden must have shape \[B, T, d\], got \[3, 8\]",
    ),
    "targets": (
        lambda: linear_cross_entropy(torch.zeros(1, 3, D), torch.zeros(V, D), torch.zeros(3), V),
        r"targets must have the shape of hidden's tokens, \[1, 3\], got \[3\]",
    ),
    "dtype": (
        lambda: linear_cross_entropy(torch.zeros(1, 3, D), torch.zeros(V, D), torch.zeros(1, 3), V),
        "targets must be torch.int64, got torch.float32",
    ),
    "reduction": (
        lambda: linear_cross_entropy(
            torch.zeros(1, 3, D), torch.zeros(V, D), random_ids(1, 3), V, reduction="none"
        ),
        'reduction must be "mean" or "sum", got .none',
    ),
    "labels": (
        lambda: make_model()(random_ids(1, 3), labels=random_ids(1, 3).int()),
        "RetNetForCausalLM: labels must be torch.int64, got torch.int32",
    ),
    "targets of the model": (
        lambda: make_model()(random_ids(1, 3), targets=random_ids(1, 2)),
        r"RetNetForCausalLM: targets must have the shape of input_ids, \[1, 3\], got \[1, 2\]",
    ),
    "two": (
        lambda: make_model()(random_ids(1, 3), labels=random_ids(1, 3), targets=random_ids(1, 3)),
        "only one of labels, targets and last_only may be given",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS.keys())
def test_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
