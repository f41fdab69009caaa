# SPDX-License-Identifier: Apache-2.0
"""retnet.nn against a model written out token by token."""

import math

import pytest
import torch
from torch.nn import functional as F

from retnet import ops
from retnet.config import RetNetConfig
from retnet.nn import DecoderLayer, MultiScaleRetention, RetNet, RetNetForCausalLM, RetNetState
from support.cases.nn import close, each_variant, make_config, make_model, random_ids
from support.references import model as reference_model

# The model itself


@each_variant
def test_logits_match_the_reference(changes):
    model = make_model(**changes)
    ids = random_ids(2, 9)
    output = model(ids)
    for row, logits in zip(ids, output.logits, strict=True):
        expected = reference_model.logits(row, model.state_dict(), model.config)
        # The model rounds ln gamma and the frequencies to float32; the reference does not.
        close(logits, expected, 2e-6)
    assert output.loss is None
    assert output.state.positions.tolist() == [9, 9]


@each_variant
def test_float32_matches_float64(changes):
    model = make_model(**changes)
    ids = random_ids(2, 9)
    expected = model(ids).logits
    close(model.float()(ids).logits.double(), expected, 1e-4)


KEYS = """embed_tokens.weight layers.0.retention_norm.weight layers.0.retention_norm.bias
layers.0.retention.q_proj.weight layers.0.retention.k_proj.weight layers.0.retention.v_proj.weight
layers.0.retention.g_proj.weight layers.0.retention.out_proj.weight layers.0.ffn_norm.weight
layers.0.ffn_norm.bias layers.0.ffn.up_proj.weight layers.0.ffn.down_proj.weight norm.weight
norm.bias lm_head.weight"""


@pytest.mark.parametrize(
    "changes, more, fewer",
    [
        ({}, "", ""),
        ({"learnable_decay": True}, "layers.0.retention.log_decay_raw", ""),
        ({"ffn_gated": True}, "layers.0.ffn.gate_proj.weight", ""),
        ({"tie_embeddings": True}, "", "lm_head.weight"),
        ({"embed_norm": True}, "embed_norm.weight embed_norm.bias", ""),
        (
            {"ffn_inner_norm": True},
            "layers.0.ffn.inner_norm.weight layers.0.ffn.inner_norm.bias",
            "",
        ),
        (
            {"bias": True},
            "layers.0.retention.q_proj.bias layers.0.retention.k_proj.bias "
            "layers.0.retention.v_proj.bias layers.0.retention.g_proj.bias "
            "layers.0.retention.out_proj.bias layers.0.ffn.up_proj.bias "
            "layers.0.ffn.down_proj.bias",
            "",
        ),
        ({"pre_norm": False}, "", "norm.weight norm.bias"),
        ({"norm": "rms"}, "", "layers.0.retention_norm.bias layers.0.ffn_norm.bias norm.bias"),
        (
            {"group_norm_affine": True},
            "layers.0.retention.group_norm.weight layers.0.retention.group_norm.bias",
            "",
        ),
        (
            {"group_norm_affine": True, "group_norm": "rms"},
            "layers.0.retention.group_norm.weight",
            "",
        ),
    ],
    ids=lambda value: str(value)[:30],
)
def test_state_dict_keys(changes, more, fewer):
    model = make_model(num_layers=1, **changes)
    expected = (set(KEYS.split()) | set(more.split())) - set(fewer.split())
    assert set(model.state_dict()) == expected


@pytest.mark.parametrize("name", ["small", "1.3b", "2.7b", "6.7b", "13b"])
def test_preset_parameters_on_meta(name):
    config = RetNetConfig.preset(name)
    model = RetNetForCausalLM(config, device="meta")
    assert all(tensor.is_meta for tensor in model.parameters()) and not list(model.buffers())
    d, layers = config.embed_dim, config.num_layers
    matrices = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.dim() > 1)
    assert matrices == 12 * d * d * layers
    norms = 2 * d * (2 * layers + 1)
    total = sum(p.numel() for p in model.parameters())
    assert total == matrices + norms + 2 * config.vocab_size * d


def test_meta_forward_gives_shapes():
    model = RetNetForCausalLM(make_config(), device="meta")
    ids = torch.zeros(2, 7, dtype=torch.int64, device="meta")
    output = model(ids)
    assert output.logits.shape == (2, 7, 13) and output.logits.is_meta
    assert model(ids, labels=ids).loss.is_meta
    assert output.state.retention.shape == (2, 2, 3, 4, 6)


def test_materialised_from_meta():
    model = RetNetForCausalLM(make_config(learnable_decay=True), device="meta")
    torch.manual_seed(3)
    model = model.to_empty(device="cpu")
    model.reset_parameters()
    ids = random_ids(1, 8)
    assert model(ids).logits.isfinite().all()
    fresh = RetNetForCausalLM(model.config)
    fresh.load_state_dict(model.state_dict())
    close(model(ids).logits, fresh(ids).logits)


def test_initial_weights():
    torch.manual_seed(0)
    config = RetNetConfig.preset("tiny", embed_dim=256, num_layers=1)
    layer = DecoderLayer(config)
    for name, gain in {"q": 2**-2.5, "k": 2**-2.5, "v": 2**-2.5, "g": 2**-2.5, "out": 0.5}.items():
        weight = getattr(layer.retention, f"{name}_proj").weight
        bound = gain * math.sqrt(6 / sum(weight.shape))
        assert 0.99 * bound < weight.abs().max() <= bound, name
    for weight in layer.ffn.parameters():
        bound = weight.shape[1] ** -0.5
        assert 0.99 * bound < weight.abs().max() <= bound
    model = RetNetForCausalLM(config)
    for weight in (model.embed_tokens.weight, model.lm_head.weight):
        assert abs(weight.std() / 256**-0.5 - 1) < 0.02


@pytest.mark.parametrize("gated", [False, True])
def test_initial_weights_by_depth(gated):
    """DeepNet's beta = (8L)^(-1/4) and Magneto's sqrt(ln 2L), biases as torchscale's."""
    layers = 4
    first = "ffn.gate_proj" if gated else "ffn.up_proj"
    scaled = ("retention.v_proj", "retention.out_proj", first, "ffn.down_proj")
    for changes, factor in (
        ({"residual_scale": (2 * layers) ** 0.25}, (8 * layers) ** -0.25),
        ({"ffn_inner_norm": True}, math.log(2 * layers) ** 0.5),
    ):
        weights = []
        for more in ({}, changes):
            torch.manual_seed(0)
            model = RetNetForCausalLM(make_config(num_layers=layers, ffn_gated=gated, **more))
            model.reset_parameters()
            weights.append(model.state_dict())
        for name, weight in weights[0].items():
            own = (
                factor if name.endswith(".weight") and name.split(".", 2)[-1][:-7] in scaled else 1
            )
            close(weights[1][name], weight * own, 1e-6)
    layer = DecoderLayer(RetNetConfig.preset("tiny", bias=True))
    assert not layer.retention.out_proj.bias.any()
    for bias in (layer.retention.q_proj.bias, layer.ffn.up_proj.bias):
        assert 0.8 * 128**-0.5 < bias.abs().max() <= 128**-0.5


def test_reset_parameters_makes_everything_anew():
    model = make_model(group_norm_affine=True, learnable_decay=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.reset_parameters()
    for name, parameter in model.named_parameters():
        assert not (parameter == 7.0).any(), name


@each_variant
def test_gradients_reach_every_parameter(changes):
    model = make_model(**changes)
    ids = random_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("decay_norm", [True, False])
def test_learnable_decay_gradient(decay_norm):
    model = make_model(learnable_decay=True, decay_norm=decay_norm, num_layers=1)
    ids = random_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    decay = model.layers[0].retention.log_decay_raw
    at, step, numeric = decay.detach().clone(), 2**-9, []
    for head in range(3):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                decay.copy_(at)
                decay[head] += sign * step
                losses.append(model(ids, labels=ids).loss.item())
        numeric.append((losses[0] - losses[1]) / (2 * step))
    close(decay.grad, torch.tensor(numeric), 2e-4)


# Forms, states, packing


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
def test_forms_agree(form):
    model = make_model()
    ids = random_ids(2, 150)
    expected, output = model(ids, labels=ids), model(ids, labels=ids, form=form)
    close(model(ids, form=form).logits, model(ids).logits)
    close(output.state.retention, expected.state.retention)
    parameters = list(model.parameters())
    expected_grads = torch.autograd.grad(expected.loss, parameters)
    for a, b in zip(torch.autograd.grad(output.loss, parameters), expected_grads, strict=True):
        close(a, b, 1e-9)


def test_form_reaches_the_op():
    with pytest.raises(RuntimeError, match="form"):
        make_model()(random_ids(1, 3), form="sideways")


@each_variant
def test_segments_equal_the_whole(changes):
    model = make_model(**changes)
    ids = random_ids(2, 40)
    whole = model(ids)
    state, parts = None, []
    for segment in ids.split([11, 1, 0, 28], dim=1):
        output = model(segment, state=state)
        parts.append(output.logits)
        state = output.state
    close(torch.cat(parts, 1), whole.logits)
    close(state.retention, whole.state.retention)
    assert state.positions.tolist() == [40, 40]


def test_gradients_cross_segments():
    model = make_model()
    ids = random_ids(1, 20)
    parameters = list(model.parameters())
    whole = torch.autograd.grad(model(ids).logits[:, 12:].square().sum(), parameters)
    first = model(ids[:, :12])
    second = model(ids[:, 12:], state=first.state)
    parts = torch.autograd.grad(second.logits.square().sum(), parameters)
    for a, b in zip(parts, whole, strict=True):
        close(a, b, 1e-9)
    cut = model(ids[:, 12:], state=model(ids[:, :12]).state.detach())
    grads = torch.autograd.grad(cut.logits.square().sum(), parameters)
    assert not torch.allclose(grads[0], whole[0])


@each_variant
def test_decoding_steps_equal_chunkwise(changes, monkeypatch):
    model = make_model(**changes)
    ids = random_ids(2, 30)
    whole = model(ids)
    calls = []
    step = ops.multi_scale_retention_step
    monkeypatch.setattr(
        ops, "multi_scale_retention_step", lambda *a, **k: calls.append(1) or step(*a, **k)
    )
    state, parts = model.config.make_state(2, dtype=torch.float64), []
    with torch.no_grad():
        for token in ids.split(1, dim=1):
            output = model(token, state=state, inplace=len(parts) > 15)
            parts.append(output.logits)
            state = output.state
    close(torch.cat(parts, 1), whole.logits)
    close(state.retention, whole.state.retention)
    assert state.positions.tolist() == [30, 30]
    assert len(calls) == 30 * 2


def test_step_copies_unless_inplace():
    model = make_model()
    with torch.no_grad():
        state = model(random_ids(2, 5)).state
        before = state.fork()
        copied = model(random_ids(2, 1), state=state).state
        assert torch.equal(state.retention, before.retention)
        assert state.positions.tolist() == [5, 5]
        assert copied.positions.tolist() == [6, 6]
        same = model(random_ids(2, 1), state=state, inplace=True).state
    assert same.retention is state.retention and same.positions is state.positions
    assert torch.equal(state.retention, copied.retention)
    assert state.positions.tolist() == [6, 6]


def test_one_token_with_grad_is_no_step():
    model = make_model()
    state = model.config.make_state(2, dtype=torch.float64)
    ids = random_ids(2, 1)
    output = model(ids, state=state, inplace=True)
    assert output.logits.requires_grad and not state.retention.any()
    with torch.no_grad():
        close(model(ids, state=state).logits, output.logits)


@pytest.mark.parametrize("with_state", [False, True])
def test_packed_equals_separate(with_state):
    model = make_model()
    lengths = [7, 0, 1, 12]
    ids = random_ids(1, sum(lengths))
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    start = None
    if with_state:
        with torch.no_grad():
            start = model(random_ids(4, 6)).state
            start.positions.copy_(torch.tensor([6, 2, 0, 9]))
    packed = model(ids, state=start, cu_seqlens=bounds)
    packed_loss = model(ids, state=start, cu_seqlens=bounds, labels=ids).loss
    loss, targets = 0.0, 0
    for n, part in enumerate(ids.split(lengths, dim=1)):
        row = None if start is None else start.select(torch.tensor([n]))
        alone = model(part, state=row)
        close(packed.logits[:, bounds[n] : bounds[n + 1]], alone.logits)
        close(packed.state.retention[:, n], alone.state.retention[:, 0])
        assert packed.state.positions[n] == alone.state.positions[0]
        loss += F.cross_entropy(alone.logits[0, :-1], part[0, 1:], reduction="sum")
        targets += max(part.shape[1] - 1, 0)
    close(packed_loss, loss / targets)


def test_labels_are_shifted_and_masked():
    model = make_model()
    ids = random_ids(2, 5)
    labels = ids.clone()
    labels[0, 3] = labels[1, 0] = -100
    output = model(ids, labels=labels)
    log_p = model(ids).logits.log_softmax(-1)
    terms = [
        -log_p[b, t, ids[b, t + 1]] for b in range(2) for t in range(4) if labels[b, t + 1] != -100
    ]
    assert len(terms) == 7
    close(output.loss, sum(terms) / 7)


def test_loss_is_float32_in_bfloat16_models():
    model = make_model(torch.bfloat16)
    ids = random_ids(2, 5)
    output = model(ids, labels=ids)
    assert output.logits is None and output.loss.dtype == torch.float32
    assert model(ids).logits.dtype == torch.bfloat16
    assert output.state.retention.dtype == torch.float32


def test_state_fork_select_detach():
    model = make_model()
    state = model(random_ids(3, 4)).state
    fork = state.fork()
    fork.positions.zero_()
    assert state.positions.tolist() == [4, 4, 4]
    picked = state.select(torch.tensor([2, 2, 0, 1]))
    for row, origin in enumerate([2, 2, 0, 1]):
        assert torch.equal(picked.retention[:, row], state.retention[:, origin])
    assert picked.positions.tolist() == [4] * 4
    assert state.retention.requires_grad and not state.detach().retention.requires_grad


def test_layer_alone_defaults_to_a_start():
    torch.manual_seed(0)
    layer = MultiScaleRetention(make_config(), dtype=torch.float64)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    out, state = layer(x)
    expected, _ = layer(x, positions=torch.arange(5).expand(2, 5))
    close(out, expected)
    assert out.shape == (2, 5, 12) and state.shape == (2, 3, 4, 6)


def test_body_gives_hidden_and_state():
    hidden, state = RetNet(make_config())(random_ids(2, 5))
    assert hidden.shape == (2, 5, 12)
    assert isinstance(state, RetNetState)


ERRORS = {
    "ids": (
        lambda m: m(torch.zeros(3, dtype=torch.int64)),
        r"RetNet: input_ids must have shape \[B, T\], got \[3\]",
    ),
    "labels": (
        lambda m: m(random_ids(2, 3), labels=random_ids(2, 4)),
        r"labels must have the shape of input_ids, \[2, 3\], got \[2, 4\]",
    ),
    "state": (
        lambda m: m(random_ids(2, 3), state=m.config.make_state(1)),
        r"state.retention must have shape \[L, B, H, K, V\] = \[2, 2, 3, 4, 6\], got \[2, 1, ",
    ),
    "positions": (
        lambda m: m(
            random_ids(1, 3), state=m.config.make_state(1)._replace(positions=torch.zeros(2))
        ),
        r"state.positions must have shape \[B\] = \[1\], got \[2\]",
    ),
    "layer": (
        lambda m: m.layers[0].retention(
            torch.zeros(1, 3, 12), state=m.config.make_state(1).retention[0]
        ),
        "MultiScaleRetention: positions must be given with state or cu_seqlens",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS.keys())
def test_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_model(torch.float32))
