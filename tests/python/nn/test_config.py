# SPDX-License-Identifier: Apache-2.0
"""RetNetConfig: values, errors, presets, JSON, and the state that it makes."""

import dataclasses
import json
import math

import pytest
import torch

from retnet.config import FORMAT_VERSION, RetNetConfig

SIZES = {
    "vocab_size": 11,
    "embed_dim": 12,
    "num_layers": 2,
    "num_heads": 3,
    "key_dim": 4,
    "value_dim": 6,
    "ffn_dim": 10,
}


def make(**changes):
    return RetNetConfig(**{**SIZES, **changes})


BAD = {
    "zero": ({"embed_dim": 0}, "embed_dim must be a positive integer, got 0"),
    "float": ({"num_layers": 2.0}, "num_layers must be a positive integer, got 2.0"),
    "bool": ({"num_heads": True}, "num_heads must be a positive integer, got True"),
    "text": ({"ffn_dim": "8"}, "ffn_dim must be a positive integer, got '8'"),
    "vocabulary": ({"vocab_size": 10**18}, "vocab_size must be <= 2147483647, got 10{18}$"),
    "wide": ({"embed_dim": 10**23}, "embed_dim must be <= 2147483647, got 10{23}$"),
    "wide ffn": ({"ffn_dim": 2**31}, "ffn_dim must be <= 2147483647, got 2147483648"),
    "deep": ({"num_layers": 10**21}, "num_layers must be <= 65536, got 10{21}$"),
    "odd": ({"key_dim": 5}, "key_dim must be even, got 5"),
    "eps": ({"norm_eps": 0.0}, "norm_eps must be a finite number > 0, got 0.0"),
    "nan": ({"embed_scale": math.nan}, "embed_scale must be a finite number > 0, got nan"),
    "long": ({"norm_eps": 10**400}, "norm_eps must be a finite number > 0, got 10{400}$"),
    "switch": ({"pre_norm": 1}, "pre_norm must be true or false, got 1"),
    "style": ({"rotary_style": "x"}, 'rotary_style must be one of "interleaved", "half", got'),
    "norm": ({"norm": "batch"}, 'norm must be one of "layer", "rms", got \'batch\''),
    "group": ({"group_norm": None}, 'group_norm must be one of "layer", "rms", got None'),
    "act": ({"activation": "relu"}, 'activation must be one of "gelu", "swish", got \'relu\''),
    "unhashable": ({"activation": ["gelu"]}, 'activation must be one of "gelu", "swish", got'),
    "decay": ({"decay": "x"}, 'decay must be one of "power2", "linspace" or num_heads finite'),
    "decay length": ({"decay": [-0.1]}, r"ln gamma <= 0 \(3\), got \[-0.1\]"),
    "decay inf": ({"decay": [-0.1, -math.inf, 0]}, r"finite .* got \[-0.1, -inf, 0\]"),
    "decay sign": ({"decay": [-0.1, 0.1, 0]}, r"decay must be <= 0 \(it is ln gamma\), got"),
    "decay type": ({"decay": 3}, "decay must be one of .* got 3"),
    "frequencies": ({"frequencies": [1.0]}, r"key_dim / 2 finite values \(2\), got \[1.0\]"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD.keys())
def test_bad_value_is_named(changes, message):
    with pytest.raises(ValueError, match=f"RetNetConfig: .*{message}"):
        make(**changes)


def test_every_field_is_checked():
    for field in dataclasses.fields(RetNetConfig):
        with pytest.raises(ValueError, match=f"RetNetConfig: {field.name} must be"):
            make(**{field.name: object()})


def test_power2_decay():
    expected = [math.log(31 / 32), math.log(63 / 64), math.log(127 / 128)]
    decay = make().log_decay()
    assert decay.dtype == torch.float32
    torch.testing.assert_close(decay.double(), torch.tensor(expected, dtype=torch.float64))


def test_power2_decay_never_rounds_to_one():
    assert (make(num_heads=40).log_decay() < 0).all()


def test_linspace_decay():
    decay = make(decay="linspace").log_decay().exp()
    torch.testing.assert_close(decay, torch.tensor([31 / 32, 1 - 1 / 128, 511 / 512]))


def test_listed_decay_and_frequencies():
    config = make(decay=[-1, -0.5, 0], frequencies=[0.5, 0.25])
    assert config.decay == (-1.0, -0.5, 0.0)
    assert config.log_decay().tolist() == [-1.0, -0.5, 0.0]
    assert config.rotary_frequencies().tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    "kind, expected",
    [("retnet", [1, 1e-2, 1e-4]), ("rope", [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])],
)
def test_named_frequencies(kind, expected):
    got = make(key_dim=6, frequencies=kind).rotary_frequencies()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


def test_one_pair_turns_once_a_token():
    assert make(key_dim=2).rotary_frequencies().tolist() == [1.0]


VARIANTS = {
    "defaults": {},
    "lists": {"decay": (-0.3, -0.2, 0.0), "frequencies": (1.0, 0.1)},
    "switches": {
        "decay": "linspace",
        "learnable_decay": True,
        "rotary_style": "half",
        "frequencies": "rope",
        "decay_norm": False,
        "group_norm": "rms",
        "group_norm_affine": True,
        "norm": "rms",
        "norm_eps": 1e-5,
        "pre_norm": False,
        "ffn_gated": True,
        "ffn_inner_norm": True,
        "activation": "swish",
        "bias": True,
        "residual_scale": 2.0,
        "embed_scale": 3.5,
        "embed_norm": True,
        "tie_embeddings": True,
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_json_round_trip(changes):
    config = make(**changes)
    text = config.to_json()
    assert json.loads(text)["format_version"] == FORMAT_VERSION
    again = RetNetConfig.from_json(text)
    assert again == config and hash(again) == hash(config)
    assert again.to_json() == text


def test_json_integers_count_as_numbers():
    text = make().to_json().replace('"embed_scale": 1.0', '"embed_scale": 1')
    assert RetNetConfig.from_json(text) == make()


def edited(**changes):
    data = {**json.loads(make().to_json()), **changes}
    return json.dumps({key: value for key, value in data.items() if value != "gone"})


@pytest.mark.parametrize(
    "text, message",
    [
        (edited(format_version=2), "format_version must be an integer in 1..1, got 2"),
        (edited(format_version="1"), "format_version must be an integer in 1..1, got '1'"),
        (edited(format_version="gone"), "format_version must be an integer in 1..1, got None"),
        (edited(moe=1), r"JSON must hold known fields only, got \['moe'\]"),
        (edited(key_dim="gone"), "JSON must hold every size, got .*key_dim"),
        (edited(key_dim=3), "key_dim must be even, got 3"),
        ("[]", "JSON must be an object, got list"),
        ("[" * 200_000, "text must be JSON, got maximum recursion depth exceeded"),
    ],
    ids=["newer", "text", "absent", "unknown", "missing", "value", "list", "nested"],
)
def test_json_error(text, message):
    with pytest.raises(ValueError, match=f"RetNetConfig: {message}"):
        RetNetConfig.from_json(text)


PAPER = {
    "small": (16, 1024, 4),
    "1.3b": (24, 2048, 8),
    "2.7b": (32, 2560, 10),
    "6.7b": (32, 4096, 16),
    "13b": (40, 5120, 20),
}


@pytest.mark.parametrize("name", PAPER)
def test_preset_sizes(name):
    config = RetNetConfig.preset(name, vocab_size=7)
    assert (config.num_layers, config.embed_dim, config.num_heads) == PAPER[name]
    assert (config.key_dim, config.value_dim) == (256, 512)
    assert config.ffn_dim == 2 * config.embed_dim
    assert config.decay == "linspace" and not config.ffn_gated and config.norm == "layer"
    assert config.vocab_size == 7


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset: name must be one of .*, got '3b'"):
        RetNetConfig.preset("3b")
    with pytest.raises(ValueError, match=r"preset: name must be one of .*, got \['tiny'\]"):
        RetNetConfig.preset(["tiny"])


def test_make_state():
    state = make().make_state(5)
    assert state.retention.shape == (2, 5, 3, 4, 6) and state.retention.dtype == torch.float32
    assert state.positions.tolist() == [0] * 5 and state.positions.dtype == torch.int64
    assert not state.retention.any()
    assert make().make_state(1, device="meta").retention.is_meta
    with pytest.raises(ValueError, match="make_state: batch must be an integer >= 0, got -1"):
        make().make_state(-1)
