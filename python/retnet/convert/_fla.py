# SPDX-License-Identifier: Apache-2.0
"""Translates RetNetForCausalLM of flash-linear-attention."""

from __future__ import annotations

import math
import re

from retnet.convert._source import Source, Translation

__all__ = ["translate"]

_TOP = {"embeddings": "embed_tokens", "norm": "norm", "lm_head": "lm_head"}
_LAYER = {
    "attn_norm": "retention_norm",
    "attn.q_proj": "retention.q_proj",
    "attn.k_proj": "retention.k_proj",
    "attn.v_proj": "retention.v_proj",
    "attn.g_proj": "retention.g_proj",
    "attn.o_proj": "retention.out_proj",
    "attn.g_norm": "retention.group_norm",
    "attn.g_norm_swish_gate": "retention.group_norm",  # with fuse_norm
    "mlp_norm": "ffn_norm",
    "mlp.gate_proj": "ffn.gate_proj",
    "mlp.up_proj": "ffn.up_proj",
    "mlp.down_proj": "ffn.down_proj",
}


def translate(source: Source) -> Translation:
    """Returns the checkpoint in terms of this package. Raises ValueError like `convert`."""
    said = source.settings
    if said.get("model_type") != "retnet":  # other models have the same tensor names
        raise source.error(
            "must be a folder whose config.json has model_type retnet, "
            f"got {said.get('model_type')!r}"
        )
    heads = source.settle(
        "num_heads", said.get("num_heads", said.get("num_attention_heads")), "attention heads"
    )
    source.raise_unsupported(
        {
            "hybrid attention (attn)": said.get("attn") is not None,
            "attnres_block_size": said.get("attnres_block_size") is not None,
            "use_short_conv": bool(said.get("use_short_conv"))
            or any("_conv1d." in name for name in source.tensors),
            "feature_map": said.get("feature_map") is not None,
            "num_kv_heads < num_heads": said.get("num_kv_heads") not in (None, heads),
            "use_output_gate = false": said.get("use_output_gate") is False,
            f"hidden_act = {said.get('hidden_act')!r}": said.get("hidden_act")
            not in (None, "swish", "silu"),
        }
    )
    eps = source.settle("norm_eps", said.get("norm_eps", said.get("rms_norm_eps")), "1e-6 or 1e-5")
    act = source.settle("activation", said.get("hidden_act") and "swish", "swish")
    for name, known in (("group_norm_eps", eps), ("embed_scale", 1.0), ("residual_scale", 1.0)):
        if known is not None:
            source.settle(name, known)
    source.settled()
    source.tensors = {
        name.removeprefix("model."): tensor for name, tensor in source.tensors.items()
    }
    _split_gates(source)
    names = source.tensors
    layers = 1 + max(
        (int(place[1]) for name in names if (place := re.match(r"layers\.(\d+)\.", name))),
        default=-1,
    )
    vocab, d = (source.size("embeddings.weight", axis) for axis in (0, 1))
    keys, values, inner = (
        source.size(f"layers.0.{name}_proj.weight", 0) for name in ("attn.q", "attn.v", "mlp.up")
    )
    if not (isinstance(heads, int) and heads > 0 and keys % heads == values % heads == 0):
        raise source.error(
            f"num_heads must divide the rows of q_proj and v_proj, {keys} and {values}, "
            f"got {heads!r}"
        )
    affine = any(re.match(r"layers\.0\.attn\.g_norm(_swish_gate)?\.weight", name) for name in names)
    source.agree(
        {
            "hidden_size": d,
            "vocab_size": vocab,
            "num_hidden_layers": layers,
            "intermediate_size": inner,
            "expand_k": _expansion(said.get("expand_k"), keys, d),
            "expand_v": _expansion(said.get("expand_v"), values, d),
            "elementwise_affine": affine,
        }
    )
    tied = source.is_tied("lm_head.weight", "embeddings.weight", "tie_word_embeddings")
    tensors = source.renamed(_TOP, _LAYER)
    if tied:
        tensors.pop("lm_head.weight", None)
    config = source.config(
        vocab_size=vocab,
        embed_dim=d,
        num_layers=layers,
        num_heads=heads,
        key_dim=keys // heads,
        value_dim=values // heads,
        ffn_dim=inner,
        decay="power2",
        rotary_style="half",
        frequencies="rope",
        decay_norm=False,
        group_norm="rms",
        group_norm_eps=eps,
        group_norm_affine=affine,
        norm="rms",
        norm_eps=eps,
        ffn_gated=True,
        activation=act,
        tie_embeddings=tied,
    )
    return Translation(config, tensors, "flash-linear-attention")


def _expansion(said: object, rows: int, d: int) -> object:
    """Returns the value that the setting must have. fla rounds its product with d."""
    fits = isinstance(said, (int, float)) and math.isclose(said * d, rows)
    return said if fits else rows / d


def _split_gates(source: Source) -> None:
    """Splits gates of before 2025-02-09: mlp.gate_proj [2F, d] also held the rows of up_proj."""
    for name in list(source.tensors):
        up = name.replace("gate_proj", "up_proj")
        if not name.endswith("mlp.gate_proj.weight") or up in source.tensors:
            continue
        if source.size(name, 0) % 2:
            raise source.error(f"{name} must hold gate and up rows, got {source.size(name, 0)}")
        source.tensors[name], source.tensors[up] = source.tensors[name].chunk(2)
