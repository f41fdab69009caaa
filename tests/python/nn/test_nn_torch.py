# SPDX-License-Identifier: Apache-2.0
"""The modules work with torch: dtypes, copies, autocast, torch.compile, torch.export."""

import copy
import pickle

import pytest
import torch

import retnet.nn
from retnet.nn import RetNetForCausalLM
from support.cases.nn import close, make_config, make_model, random_ids

# Dtypes, devices, copies


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_leave_decay_and_frequencies_alone(learnable, dtype):
    config = make_config(learnable_decay=learnable)
    model = RetNetForCausalLM(config)
    if learnable:
        model(random_ids(1, 4), labels=random_ids(1, 4)).loss.backward()
    model = model.to(dtype)
    for layer in model.layers:
        retention = layer.retention
        assert retention.q_proj.weight.dtype == dtype
        assert retention.log_decay.dtype == retention.frequencies.dtype == torch.float32
        assert torch.equal(retention.log_decay, config.log_decay())
        assert torch.equal(retention.frequencies, config.rotary_frequencies())
        if learnable:
            raw = retention.log_decay_raw
            assert raw.dtype == raw.grad.dtype == torch.float32
    assert list(model.parameters())
    assert model(random_ids(1, 4)).logits.dtype == dtype


def test_cast_keeps_a_trained_decay():
    model = RetNetForCausalLM(make_config(learnable_decay=True))
    raw = model.layers[0].retention.log_decay_raw
    with torch.no_grad():
        raw.fill_(0.123456789)
    model.bfloat16()
    assert model.layers[0].retention.log_decay_raw is raw
    assert raw[0].item() == torch.tensor(0.123456789).item()


def test_decay_norm_stays_exact_late_in_bfloat16():
    """n_t and the angles come from integer positions, whatever the dtype of the model."""
    model = make_model(torch.float32, num_layers=1)
    ids, start = random_ids(1, 8), model.config.make_state(1)
    start.positions.fill_(100_000)
    expected = model(ids, state=start).logits
    low = copy.deepcopy(model).bfloat16()
    reference = copy.deepcopy(low).float()
    gap = (low(ids, state=start).logits.float() - reference(ids, state=start).logits).norm()
    assert gap < 3e-2 * expected.norm()


def test_copy_and_pickle():
    model = make_model(learnable_decay=True)
    ids = random_ids(1, 6)
    expected = model(ids).logits
    close(copy.deepcopy(model)(ids).logits, expected)
    close(pickle.loads(pickle.dumps(model))(ids).logits, expected)


def test_autocast_keeps_the_state_in_float32():
    model = make_model(torch.float32)
    ids = random_ids(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, labels=ids)
    assert output.state.retention.dtype == torch.float32
    output.loss.backward()
    assert model.embed_tokens.weight.grad.isfinite().all()


def test_repr_names_the_sizes():
    text = repr(make_model())
    for part in ("num_heads=3", "decay_norm=True", "gated=False", "layer, eps=1e-06"):
        assert part in text


# torch.compile


def compile_and_count(function, dynamic):
    """Compiles the function as one graph. Returns it and the list of the graphs made so far."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=count), graphs


@pytest.mark.not_poisoned
@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_compiled_training_step_takes_any_length(checkpoint_layers):
    model = make_model(torch.float32)
    model.checkpoint_layers = checkpoint_layers
    compiled, graphs = compile_and_count(lambda ids: model(ids, labels=ids).loss, dynamic=True)
    counts = []
    for length in (9, 16, 33, 70, 128):
        ids = random_ids(2, length)
        model.zero_grad()
        loss = compiled(ids)
        loss.backward()
        got = model.embed_tokens.weight.grad.clone()
        model.zero_grad()
        expected = model(ids, labels=ids).loss
        expected.backward()
        close(loss, expected, 1e-5)
        close(got, model.embed_tokens.weight.grad, 1e-4)
        counts.append(len(graphs))
    assert counts == counts[:1] * 5


@pytest.mark.not_poisoned
def test_compiled_decode_step():
    model = make_model(torch.float32)
    compiled, graphs = compile_and_count(
        lambda ids, state: model(ids, state=state, inplace=True), dynamic=None
    )
    ids = random_ids(2, 5)
    with torch.no_grad():
        whole = model(ids)
        state = model.config.make_state(2)
        for t in range(5):
            output = compiled(ids[:, t : t + 1], state)
            close(output.logits[:, 0], whole.logits[:, t], 1e-4)
    assert state.positions.tolist() == [5, 5] and len(graphs) == 1


@pytest.mark.not_poisoned
def test_compiled_logits_of_an_empty_sequence_are_nan():
    """Traced code cannot read bounds and raise. The logits of the other sequences are right."""
    model, ids = make_model(torch.float32, num_layers=1), random_ids(1, 9)
    compiled, _ = compile_and_count(
        lambda ids, bounds: model(ids, cu_seqlens=bounds, last_only=True).logits, dynamic=None
    )
    for bounds in ([0, 0, 4, 9], [0, 4, 4, 9], [0, 4, 9, 9]):
        bounds = torch.tensor(bounds, dtype=torch.int32)
        logits, filled = compiled(ids, bounds)[0], bounds.diff() > 0
        expected = model(ids, cu_seqlens=bounds).logits[0, bounds[1:][filled].long() - 1]
        close(logits[filled], expected, 1e-5)
        assert logits[~filled].isnan().all()
        model.zero_grad()
        logits[filled].sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.not_poisoned
@pytest.mark.parametrize("hooked", ["weight", "head"])
def test_compiled_loss_in_chunks_with_hooks(hooked, monkeypatch):
    monkeypatch.setattr(retnet.nn.loss, "_LOGITS", 0)
    monkeypatch.setattr(retnet.nn.loss, "_TOKENS", 6)
    ids, found = random_ids(2, 9), []
    for compile in (False, True):
        model, seen = make_model(torch.float32, num_layers=1), []
        if hooked == "weight":
            model.lm_head.weight.register_hook(lambda g, seen=seen: seen.append(g) or g * 2)
        else:
            model.lm_head.register_forward_hook(lambda module, args, out: out / len(args[0][0]))
        step = lambda ids, model=model: model(ids, labels=ids).loss  # noqa: E731
        loss = (compile_and_count(step, dynamic=None)[0] if compile else step)(ids)
        loss.backward()
        found.append([loss, [p.grad for p in model.parameters()], seen])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


# torch.export


OTHERS = {
    "pre_norm": False,
    "ffn_gated": True,
    "bias": True,
    "group_norm_affine": True,
    "embed_norm": True,
    "learnable_decay": True,
    "rotary_style": "half",
    "decay_norm": False,
    "tie_embeddings": True,
}


@pytest.mark.not_poisoned
@pytest.mark.parametrize("changes", [{}, OTHERS], ids=["defaults", "others"])
def test_exported_model_takes_any_length(changes):
    model = make_model(torch.float32, **changes).eval()
    length = torch.export.Dim("T", min=2, max=4096)
    exported = torch.export.export(
        model, (random_ids(2, 9),), dynamic_shapes={"input_ids": {1: length}}, strict=False
    ).module()
    for T in (2, 9, 70):
        ids = random_ids(2, T)
        expected = model(ids)
        actual = exported(ids)
        close(actual.logits, expected.logits, 1e-5)
        close(actual.state.retention, expected.state.retention, 1e-5)
        assert torch.equal(actual.state.positions, expected.state.positions)


@pytest.mark.not_poisoned
@torch.no_grad()
def test_exported_decode_step(tmp_path):
    model = make_model(torch.float32).eval()
    ids = random_ids(2, 6)
    state = model(ids[:, :5]).state
    program = torch.export.export(model, (ids[:, 5:],), {"state": state}, strict=False)
    torch.export.save(program, tmp_path / "step.pt2")
    step = torch.export.load(tmp_path / "step.pt2").module()
    close(step(ids[:, 5:], state=state).logits[:, 0], model(ids).logits[:, 5], 1e-5)
