# SPDX-License-Identifier: Apache-2.0
"""retnet.nn agrees with a model that is written out token by token."""

import math

import pytest
import torch

from retnet.config import RetNetConfig
from retnet.nn import DecoderLayer, RetNetForCausalLM
from support.cases.nn import close, each_variant, make_config, make_model, random_ids
from support.references import model as reference_model


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
    """The gains are beta = (8L)^(-1/4) of DeepNet and sqrt(ln 2L) of Magneto. Biases start as in
    torchscale.
    """
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
