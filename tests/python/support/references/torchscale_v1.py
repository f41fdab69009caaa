# SPDX-License-Identifier: Apache-2.0
"""torchscale's RetNet before 2023-09-28 (LayerNorm, plain feed-forward, biases), in float64.

No release on PyPI has it. It is written from its definition, with its own names of tensors. The
parallel form does not clamp its scores, so it equals the recurrent form.
"""

import math

import torch
from torch.nn.functional import cross_entropy

VOCAB, D, HEADS, LAYERS, F = 13, 12, 3, 2, 10


def make_state(subln=True, pre_norm=True, embedding_norm=False, tied=False):
    """Returns a state dict with random weights, norms and biases included."""
    generator = torch.Generator().manual_seed(0)
    value = 2 * D
    shapes = {"embed_tokens": (VOCAB, D), "output_projection": (VOCAB, D)}
    vectors = ["layer_norm"] * pre_norm + ["layernorm_embedding"] * embedding_norm
    vectors = {name: D for name in vectors}
    for n in range(LAYERS):
        for name, shape in {
            "retention.q_proj": (D, D),
            "retention.k_proj": (D, D),
            "retention.v_proj": (value, D),
            "retention.g_proj": (value, D),
            "retention.out_proj": (D, value),
            "ffn.fc1": (F, D),
            "ffn.fc2": (D, F),
        }.items():
            shapes[f"layers.{n}.{name}"] = shape
        vectors |= {f"layers.{n}.retention_layer_norm": D, f"layers.{n}.final_layer_norm": D}
        vectors |= {f"layers.{n}.ffn.ffn_layernorm": F} if subln else {}

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = normal(*shape) * 0.4
        if name.startswith("layers"):
            state[f"{name}.bias"] = normal(shape[0]) * 0.3
    for name, size in vectors.items():
        state[f"{name}.weight"] = 1 + normal(size) * 0.3
        state[f"{name}.bias"] = normal(size) * 0.3
    if tied:
        state["output_projection.weight"] = state["embed_tokens.weight"]
    pairs = D // HEADS // 2
    angle = 1.0 / (10000 ** torch.linspace(0, 1, pairs))
    state["retnet_rel_pos.angle"] = angle.unsqueeze(-1).repeat(1, 2).flatten()
    heads = torch.arange(HEADS, dtype=torch.float)
    state["retnet_rel_pos.decay"] = torch.log(1 - 2 ** (-5 - heads))
    return state


def layer_norm(x, state, name, eps):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x if name is None else x * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def retention(x, state, name, eps):
    """Maps x [T, d] to [T, d], with D_nm = gamma^(n-m) / sqrt(sum_m gamma^(n-m))."""
    length, key = len(x), D // HEADS
    index = torch.arange(length, dtype=torch.float64)
    phase = index[:, None] * state["retnet_rel_pos.angle"].double()[::2]
    turn = torch.polar(torch.ones_like(phase), phase)
    projected = {p: linear(x, state, f"{name}.{p}_proj") for p in "qkvg"}
    out = []
    for h in range(HEADS):
        columns = slice(h * key, (h + 1) * key)
        q, k = (
            torch.view_as_complex(projected[p][:, columns].reshape(length, -1, 2)) * turn
            for p in "qk"
        )
        scores = (q @ k.conj().T).real / math.sqrt(key)
        distance = index[:, None] - index
        decay = torch.exp(state["retnet_rel_pos.decay"][h].double() * distance.clamp(min=0))
        decay = decay * (distance >= 0)
        decay = decay / decay.sum(1, keepdim=True).sqrt()
        values = slice(h * 2 * key, (h + 1) * 2 * key)
        row = layer_norm((scores * decay) @ projected["v"][:, values], state, None, eps)
        gate = projected["g"][:, values]
        out.append(row * gate * torch.sigmoid(gate))
    return linear(torch.cat(out, 1), state, f"{name}.out_proj")


def feed_forward(x, state, name, eps):
    x = linear(x, state, f"{name}.fc1")
    x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if f"{name}.ffn_layernorm.weight" in state:
        x = layer_norm(x, state, f"{name}.ffn_layernorm", eps)
    return linear(x, state, f"{name}.fc2")


def logits(state, ids, *, eps, group_norm_eps, embed_scale, alpha):
    """Returns the logits [T, vocab] of ids [T]."""
    x = state["embed_tokens.weight"][ids] * embed_scale
    if "layernorm_embedding.weight" in state:
        x = layer_norm(x, state, "layernorm_embedding", eps)
    pre_norm = "layer_norm.weight" in state
    for n in range(LAYERS):
        at = f"layers.{n}"
        for norm, block in (
            ("retention_layer_norm", lambda y, at=at: retention(
                y, state, f"{at}.retention", group_norm_eps)),
            ("final_layer_norm", lambda y, at=at: feed_forward(
                y, state, f"{at}.ffn", eps)),
        ):  # fmt: skip
            y = layer_norm(x, state, f"{at}.{norm}", eps) if pre_norm else x
            x = alpha * x + block(y)
            if not pre_norm:
                x = layer_norm(x, state, f"{at}.{norm}", eps)
    if pre_norm:
        x = layer_norm(x, state, "layer_norm", eps)
    return x @ state["output_projection.weight"].T


def next_token_loss(scores, ids):
    return cross_entropy(scores[:-1], ids[1:])
