# SPDX-License-Identifier: Apache-2.0
"""retnet.cpp: the C++ modules give the same numbers as their Python twins."""

import pytest
import torch
from torch import nn

import retnet.cpp as cpp
import retnet.nn as twins
from retnet.generation import generate
from retnet.state import RetNetState
from support.cases.cpp import gradients, same, twin_of
from support.cases.nn import VARIANTS, close, each_variant, make_config, make_model, random_ids


@each_variant
def test_same_keys_and_initial_weights(changes):
    """The twins have the same entries in the same order and, from one seed, the same weights."""
    config = make_config(**changes)
    for reset in (False, True):
        weights = []
        for kind in (twins.RetNetForCausalLM, cpp.RetNetForCausalLM):
            torch.manual_seed(3)
            model = kind(config)
            if reset:
                model.reset_parameters()
            weights.append(model.state_dict())
            assert list(dict(model.named_parameters())) == list(weights[-1])
        assert list(weights[0]) == list(weights[1])
        same(dict(weights[1]), dict(weights[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@each_variant
def test_same_numbers_and_gradients(changes, dtype):
    model = make_model(dtype, **changes)
    other = twin_of(model, dtype)
    ids = random_ids(2, 7)
    for form in ("chunkwise", "parallel", "recurrent"):
        for labels in (None, ids):
            a = model(ids, labels=labels, form=form)
            b = other(ids, labels=labels, form=form)
            same(tuple(b.state), tuple(a.state))
            if labels is None:
                same(b.logits, a.logits)
                assert a.loss is b.loss is None
            else:
                assert a.logits is b.logits is None
        same(b.loss, a.loss)
        (a.loss + a.state.retention.square().mean()).backward()
        (b.loss + b.state.retention.square().mean()).backward()
        same(gradients(other), gradients(model))
        model.zero_grad()
        other.zero_grad()


@pytest.mark.parametrize(
    "dtype, tied, reduction", [(torch.float32, True, "mean"), (torch.bfloat16, False, "sum")]
)
def test_same_loss_in_chunks(dtype, tied, reduction):
    """1026 tokens over 33,000 classes take two chunks."""
    model = make_model(dtype, vocab_size=33_000, tie_embeddings=tied, num_layers=1)
    other, ids = twin_of(model, dtype), random_ids(2, 513)
    a, b = (m(ids, targets=ids, reduction=reduction).loss for m in (model, other))
    same(b, a)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(b, list(other.parameters()), create_graph=True)
    a.backward()
    b.backward()
    same(gradients(other), gradients(model))


@each_variant
def test_same_decoding(changes):
    model = make_model(**changes)
    other = twin_of(model)
    prompt = random_ids(2, 5)
    with torch.no_grad():
        a, b = model(prompt), other(prompt)
        step = prompt[:, :1]
        same(other(step, state=b.state).logits, model(step, state=a.state).logits)
        before = b.state.fork()
        other(step, state=b.state)
        assert torch.equal(before.retention, b.state.retention)  # the step updated a copy
        other(step, state=b.state, inplace=True)
        assert not torch.equal(before.retention, b.state.retention)


GENERATE = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 2.0, "top_k": 9, "top_p": 0.8, "seed": 7},
    "stopped": {"seed": 1, "stop_tokens": [3, 5]},
}


@pytest.mark.parametrize("options", GENERATE.values(), ids=GENERATE.keys())
def test_same_text(options):
    model = make_model()
    other = twin_of(model)
    ids = random_ids(3, 6)
    for prompts in (ids, [ids[0, :4], ids[1, :1], ids[2]]):
        texts = generate(model, prompts, max_new_tokens=20, **options)
        same(other.generate(prompts, max_new_tokens=20, **options), texts)
    with pytest.raises(ValueError, match="generate: max_new_tokens must be >= 0, got -1"):
        other.generate(ids, max_new_tokens=-1)


@torch.no_grad()
def test_logits_of_the_last_token_only():
    model = make_model()
    ids, bounds = random_ids(2, 7), torch.tensor([0, 3, 7], dtype=torch.int32)
    for module in (model, twin_of(model)):
        whole = module(ids)
        last = module(ids, last_only=True)
        same(last.state, whole.state)
        close(last.logits, whole.logits[:, -1:])
        packed = module(ids[:1], cu_seqlens=bounds)
        close(
            module(ids[:1], cu_seqlens=bounds, last_only=True).logits,
            packed.logits[:, [2, 6]],
        )
        with pytest.raises(ValueError, match="only one of labels, targets and last_only"):
            module(ids, labels=ids, last_only=True)
        assert module(ids[:0], last_only=True).logits.shape == (0, 1, 13)
        with pytest.raises(ValueError, match=r"T >= 1 tokens with last_only, got \[2, 0\]"):
            module(ids[:, :0], last_only=True)
        for cuts, sequence in (
            ([0, 0, 4, 7], 0), ([0, 3, 3, 7], 1), ([0, 3, 7, 7], 2), ([0, 3, 3, 3, 7], 1)
        ):  # fmt: skip
            empty = torch.tensor(cuts, dtype=torch.int32)
            with pytest.raises(
                ValueError, match=f"no empty .* got sequence {sequence} of length 0"
            ):
                module(ids[:1], cu_seqlens=empty, last_only=True)


@pytest.mark.parametrize("kind", ["C++", "Python"])
def test_logits_of_an_empty_sequence_on_a_gpu(kind, gpu):
    """They are NaN, because reading the bounds would wait for the device."""
    model, ids = make_model(), random_ids(1, 7).to(gpu)
    model = (model if kind == "Python" else twin_of(model)).to(gpu)
    bounds = torch.tensor([0, 0, 3, 3, 7, 7], dtype=torch.int32, device=gpu)
    logits = model(ids, cu_seqlens=bounds, last_only=True).logits[0]
    assert logits[[0, 2, 4]].isnan().all()
    close(logits[[1, 3]], model(ids, cu_seqlens=bounds).logits[0, [2, 6]])
    logits[[1, 3]].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["C++", "Python"])
@pytest.mark.parametrize("shape", [(2, 0), (0, 5), (0, 0), "packed"], ids=str)
def test_the_loss_without_a_token(kind, shape):
    """The mean is NaN and the sum is 0, with gradients of 0, as in F.cross_entropy. The labels are
    targets here.
    """
    model = make_model() if kind == "Python" else twin_of(make_model())
    packed = torch.zeros(3, dtype=torch.int32) if shape == "packed" else None
    ids = torch.zeros((1, 0) if shape == "packed" else shape, dtype=torch.int64)
    for scored in ("labels", "targets"):
        output = model(ids, cu_seqlens=packed, **{scored: ids})
        assert (
            output.loss.isnan() and output.state.positions.eq(0 if 0 in ids.shape[1:] else 5).all()
        )
        assert model(ids, cu_seqlens=packed, **{scored: ids}, reduction="sum").loss == 0
        output.loss.backward()
        assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_packed():
    model = make_model()
    ids, bounds = random_ids(1, 9), torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    other = twin_of(model)
    a = model(ids, cu_seqlens=bounds, labels=ids)
    b = other(ids, cu_seqlens=bounds, labels=ids)
    same(other(ids, cu_seqlens=bounds).logits, model(ids, cu_seqlens=bounds).logits)
    same(b.loss, a.loss)
    same(b.state.positions, a.state.positions)


@pytest.mark.parametrize("name", ["FeedForward", "MultiScaleRetention", "DecoderLayer", "RetNet"])
def test_the_other_modules(name):
    torch.manual_seed(0)
    config = make_config(group_norm_affine=True)
    twin = getattr(twins, name)(config, dtype=torch.float64)
    module = getattr(cpp, name)(config, dtype=torch.float64)
    module.load_state_dict(twin.state_dict())
    x = random_ids(2, 5) if name == "RetNet" else torch.randn(2, 5, 12, dtype=torch.float64)
    a, b = twin(x), module(x)
    if name == "FeedForward":
        return close(a, b)
    close(a[0], b[0])
    if name == "RetNet":
        return close(a[1].retention, b[1].retention)
    close(a[1], b[1])
    later = {"state": a[1], "positions": torch.arange(5, 10)}
    close(twin(x, **later)[0], module(x, **later)[0])


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_layer_norm(norm):
    module = cpp.LayerNorm(make_config(norm=norm, norm_eps=1e-3), dtype=torch.float64)
    with torch.no_grad():
        module.weight.normal_()
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    if norm == "layer":
        close(module(x), nn.functional.layer_norm(x, (12,), module.weight, module.bias, 1e-3))
    else:
        close(module(x), nn.functional.rms_norm(x, (12,), module.weight, 1e-3))


def test_training_with_adamw():
    model = make_model()
    other = twin_of(model)
    ids = random_ids(4, 6)
    losses = {}
    for module in (model, other):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        losses[module] = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = module(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            losses[module].append(loss.detach())
    close(torch.stack(losses[model]), torch.stack(losses[other]))
    assert losses[other][-1] < losses[other][0]


def test_bad_arguments():
    model = twin_of(make_model())
    with pytest.raises(ValueError, match="input_ids"):
        model(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="state"):
        model(random_ids(1, 2), state=RetNetState(torch.zeros(1), torch.zeros(1)))
    with pytest.raises(RuntimeError, match="form"):
        model(random_ids(1, 2), form="fast")
    ids = random_ids(1, 2)
    with pytest.raises(ValueError, match="labels must be int64, got Int"):
        model(ids, labels=ids.int())
    with pytest.raises(ValueError, match=r"targets must have the shape of input_ids, \[1, 2\]"):
        model(ids, targets=ids[0])
    with pytest.raises(ValueError, match='reduction must be "mean" or "sum", got "none"'):
        model(ids, targets=ids, reduction="none")


def test_every_variant_is_tested():
    fields = {name for changes in VARIANTS.values() for name in changes}
    sizes = {
        "vocab_size",
        "embed_dim",
        "num_layers",
        "num_heads",
        "key_dim",
        "value_dim",
        "ffn_dim",
    }
    assert fields | sizes == set(make_config().__dataclass_fields__)
