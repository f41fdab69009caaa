# SPDX-License-Identifier: Apache-2.0
"""Small models for the tests of retnet.nn and retnet.generation."""

import pytest
import torch

from retnet.config import RetNetConfig
from retnet.nn import RetNetForCausalLM

SIZES = {
    "vocab_size": 13,
    "embed_dim": 12,
    "num_layers": 2,
    "num_heads": 3,
    "key_dim": 4,
    "value_dim": 6,
    "ffn_dim": 10,
}

VARIANTS = {
    "paper": {},
    "linspace": {"decay": "linspace", "decay_norm": False},
    "lists": {"decay": (-0.5, -0.1, 0.0), "frequencies": (0.75, 0.125)},
    "half": {"rotary_style": "half", "frequencies": "rope"},
    "rms": {"group_norm": "rms", "group_norm_eps": 1e-3, "norm": "rms", "norm_eps": 1e-3},
    "norms apart": {"norm": "rms", "norm_eps": 1e-2, "group_norm_eps": 1e-4},
    "affine": {"group_norm_affine": True},
    "affine rms": {"group_norm_affine": True, "group_norm": "rms"},
    "post norm": {"pre_norm": False, "residual_scale": 1.5},
    "gated": {"ffn_gated": True, "activation": "swish"},
    "biases": {"bias": True},
    "gated biases": {"bias": True, "ffn_gated": True},
    "more norms": {"embed_norm": True, "ffn_inner_norm": True, "embed_scale": 2.0},
    "more rms norms": {
        "embed_norm": True,
        "ffn_inner_norm": True,
        "ffn_gated": True,
        "norm": "rms",
    },
    "scales": {"residual_scale": 2.0, "embed_scale": 3.0, "tie_embeddings": True},
    "learnable": {"learnable_decay": True, "decay": (-0.5, -0.1, 0.0)},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def make_config(**changes):
    return RetNetConfig(**{**SIZES, **changes})


def make_model(dtype=torch.float64, **changes):
    """Makes a model with random weights, norms included, that are large enough to matter."""
    torch.manual_seed(0)
    model = RetNetForCausalLM(make_config(**changes), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.6)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def random_ids(*shape):
    return torch.randint(13, shape, generator=torch.Generator().manual_seed(1))


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
