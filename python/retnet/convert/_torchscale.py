# SPDX-License-Identifier: Apache-2.0
"""Translates RetNetDecoder of torchscale, of both eras."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from retnet.convert._source import Source, Translation

__all__ = ["translate"]

_TOP = {
    "embed_tokens": "embed_tokens",
    "layernorm_embedding": "embed_norm",
    "layer_norm": "norm",
    "output_projection": "lm_head",
}
_LAYER = {
    "retention_layer_norm": "retention_norm",
    "retention.q_proj": "retention.q_proj",
    "retention.k_proj": "retention.k_proj",
    "retention.v_proj": "retention.v_proj",
    "retention.g_proj": "retention.g_proj",
    "retention.out_proj": "retention.out_proj",
    "final_layer_norm": "ffn_norm",
    "ffn.fc2": "ffn.down_proj",
}
_GATED = {"ffn.fc1": "ffn.gate_proj", "ffn.gate": "ffn.up_proj"}  # fc1 is the activated branch
_PLAIN = {"ffn.fc1": "ffn.up_proj", "ffn.ffn_layernorm": "ffn.inner_norm"}


def translate(source: Source) -> Translation:
    """Returns the checkpoint in terms of this package. Raises ValueError like `convert`."""
    if all(name.startswith("decoder.") for name in source.tensors):  # fairseq
        source.tensors = {
            name.removeprefix("decoder."): tensor for name, tensor in source.tensors.items()
        }
    names, said = source.tensors, source.settings
    source.raise_unsupported(
        {
            "a mixture of experts (moe_layer)": bool(said.get("moe_freq"))
            or any(".moe_layer." in name for name in names),
            "multiway": bool(said.get("multiway"))
            or any(re.search(r"\.[AB]\.(weight|bias)$", name) for name in names),
            f"activation_fn = {said.get('activation_fn')!r}": said.get("activation_fn")
            not in (None, "gelu", "swish"),
        }
    )
    source.size("retnet_rel_pos.decay", 0)
    source.size("retnet_rel_pos.angle", 0)
    decay = names.pop("retnet_rel_pos.decay")
    angle = names.pop("retnet_rel_pos.angle")
    if decay.dim() != 1 or angle.dim() != 1 or not len(decay) or len(angle) % 2:
        raise source.error(
            "retnet_rel_pos.decay must have shape [H] and angle [K], K even, got "
            f"{list(decay.shape)} and {list(angle.shape)}"
        )

    layers = 1 + max(
        (int(place[1]) for name in names if (place := re.match(r"layers\.(\d+)\.", name))),
        default=-1,
    )
    old = "layers.0.retention_layer_norm.bias" in names
    gated = "layers.0.ffn.gate.weight" in names
    vocab, d = (source.size("embed_tokens.weight", axis) for axis in (0, 1))
    heads = len(decay)
    values = source.size("layers.0.retention.v_proj.weight", 0)
    facts = {
        "decoder_embed_dim": d,
        "decoder_layers": layers,
        "decoder_retention_heads": heads,
        "decoder_value_embed_dim": values,
        "decoder_ffn_embed_dim": source.size("layers.0.ffn.fc1.weight", 0),
        "decoder_normalize_before": "layer_norm.weight" in names,
        "layernorm_embedding": "layernorm_embedding.weight" in names,
    }
    if (said.get("vocab_size") or -1) >= 0:  # torchscale's default is -1
        facts["vocab_size"] = vocab
    source.agree(facts)
    tied = source.is_tied(
        "output_projection.weight", "embed_tokens.weight", "share_decoder_input_output_embed"
    )
    tensors = source.renamed(_TOP, {**_LAYER, **(_GATED if gated else _PLAIN)})
    if tied:
        tensors.pop("lm_head.weight", None)
    config = source.config(
        vocab_size=vocab,
        embed_dim=d,
        num_layers=layers,
        num_heads=source.settle("num_heads", heads),
        key_dim=len(angle),
        value_dim=values // heads,
        ffn_dim=facts["decoder_ffn_embed_dim"],
        group_norm="layer" if old else "rms",
        norm="layer" if old else "rms",
        pre_norm=facts["decoder_normalize_before"],
        ffn_gated=gated,
        tie_embeddings=tied,
        bias="layers.0.retention.q_proj.bias" in names,
        ffn_inner_norm="layers.0.ffn.ffn_layernorm.weight" in names,
        embed_norm=facts["layernorm_embedding"],
        **_numbers(source, d, layers, old),
        **_constants(source, decay, angle),
    )
    return Translation(config, tensors, f"torchscale {'before' if old else 'since'} 2023-09-28")


def _numbers(source: Source, d: int, layers: int, old: bool) -> dict[str, Any]:
    """Returns the fields that no tensor determines."""
    said = source.settings
    sqrt, alpha = d**0.5, (2.0 * layers) ** 0.25
    plain, deep = said.get("no_scale_embedding"), said.get("deepnorm")
    fields = {
        "activation": source.settle("activation", said.get("activation_fn"), "gelu or swish"),
        "norm_eps": source.settle(
            "norm_eps", said.get("layernorm_eps"), f"{'1e-5' if old else '1e-6'} by default there"
        ),
        "embed_scale": source.settle(
            "embed_scale",
            None if plain is None else 1.0 if plain else sqrt,
            f"1, or sqrt(embed_dim) = {sqrt!r}",
        ),
        "residual_scale": source.settle(
            "residual_scale",
            None if deep is None else alpha if deep else 1.0,
            f"1, or with deepnorm {alpha!r}",
        ),
    }
    # One eps serves all norms, except in the releases of two months. Their files look the same.
    known = None if old else fields["norm_eps"]
    if old or known is not None:
        values = "1e-6 in torchscale of 2023-08-02 to 2023-09-26, else norm_eps"
        fields["group_norm_eps"] = source.settle("group_norm_eps", known, values)
    return fields


def _constants(source: Source, decay: Tensor, angle: Tensor) -> dict[str, Any]:
    """Returns decay and frequencies: the name if they equal its values exactly, else the list."""
    decay, angle = decay.float(), angle.float()
    if not torch.equal(angle[::2], angle[1::2]):
        raise source.error("retnet_rel_pos.angle must hold each frequency twice")
    heads = torch.arange(len(decay), dtype=torch.float64)
    power2 = torch.log1p(-torch.exp2(-5 - heads)).float()
    exponents = torch.linspace(0, 1, len(angle) // 2, dtype=torch.float64)
    retnet = torch.pow(10000.0, -exponents).float()
    return {
        "decay": "power2" if torch.equal(decay, power2) else tuple(decay.tolist()),
        "frequencies": "retnet" if torch.equal(angle[::2], retnet) else tuple(angle[::2].tolist()),
    }
