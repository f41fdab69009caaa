# SPDX-License-Identifier: Apache-2.0
"""A RetNet written out token by token in float64, straight from the paper's definitions.

It shares no code with the package: it reads a state dict by key and a configuration by field.
Retention is the double loop of Eq. 5: out_n = sum_{m <= n} gamma^(n-m) (q_n . k_m) v_m.
"""

import math

import torch


def gammas(config, raw=None):
    """Returns gamma of each head. ln gamma of a trained head is reference * exp(raw)."""
    gammas = configured_gammas(config)
    if raw is None:
        return gammas
    return [trained_gamma(gamma, float(r)) for gamma, r in zip(gammas, raw, strict=True)]


def trained_gamma(gamma, raw):
    if abs(raw) >= 80:
        return 0.0 if raw > 0 else 1.0
    reference = -(2.0**-10) if gamma == 1 else math.log(gamma)
    return math.exp(reference * math.exp(raw))


def configured_gammas(config):
    if config.decay == "power2":
        return [1 - 2.0 ** (-5 - h) for h in range(config.num_heads)]
    if config.decay == "linspace":
        first, last = math.log(1 / 32), math.log(1 / 512)
        step = (last - first) / max(config.num_heads - 1, 1)
        return [1 - math.exp(first + h * step) for h in range(config.num_heads)]
    return [math.exp(value) for value in config.decay]


def frequencies(config):
    pairs = config.key_dim // 2
    if config.frequencies == "retnet":
        return [10000.0 ** -(i / max(pairs - 1, 1)) for i in range(pairs)]
    if config.frequencies == "rope":
        return [10000.0 ** -(2 * i / config.key_dim) for i in range(pairs)]
    return list(config.frequencies)


def rotated(row, position, config):
    """Returns row [K], turned by position * frequency in the plane of each pair of channels."""
    result = row.clone()
    pairs = config.key_dim // 2
    for i, frequency in enumerate(frequencies(config)):
        a, b = (2 * i, 2 * i + 1) if config.rotary_style == "interleaved" else (i, i + pairs)
        c, s = math.cos(position * frequency), math.sin(position * frequency)
        result[a] = c * row[a] - s * row[b]
        result[b] = s * row[a] + c * row[b]
    return result


def normalised(row, kind, eps, weight=None, bias=None):
    if kind == "layer":
        row = row - row.sum() / len(row)
    row = row / torch.sqrt((row * row).sum() / len(row) + eps)
    if weight is not None:
        row = row * weight
    return row if bias is None else row + bias


def swish(x):
    return x / (1 + torch.exp(-x))


def linear(x, weights, name):
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def retention_layer(x, weights, config):
    """Maps x [T, d] of one sequence to [T, d]."""
    length, heads = x.shape[0], config.num_heads
    key, value = config.key_dim, config.value_dim
    q = linear(x, weights, "q_proj").view(length, heads, key)
    k = linear(x, weights, "k_proj").view(length, heads, key)
    v = linear(x, weights, "v_proj").view(length, heads, value)
    g = linear(x, weights, "g_proj").view(length, heads, value)
    out = torch.zeros(length, heads, value, dtype=torch.float64)
    for h, gamma in enumerate(gammas(config, weights.get("log_decay_raw"))):
        for n in range(length):
            query = rotated(q[n, h], n, config) / math.sqrt(key)
            if config.decay_norm:
                query = query / math.sqrt(sum(gamma**i for i in range(n + 1)))
            total = torch.zeros(value, dtype=torch.float64)
            for m in range(n + 1):
                score = (query * rotated(k[m, h], m, config)).sum()
                total = total + gamma ** (n - m) * score * v[m, h]
            total = normalised(
                total,
                config.group_norm,
                config.group_norm_eps,
                weights.get("group_norm.weight"),
                weights.get("group_norm.bias"),
            )
            out[n, h] = total * swish(g[n, h])
    return linear(out.view(length, heads * value), weights, "out_proj")


def feed_forward(x, weights, config):
    def act(y):
        if config.activation == "swish":
            return swish(y)
        return y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))

    up = linear(x, weights, "up_proj")
    inner = act(linear(x, weights, "gate_proj")) * up if config.ffn_gated else act(up)
    if config.ffn_inner_norm:
        inner = norm(inner, below(weights, "inner_norm."), config)
    return linear(inner, weights, "down_proj")


def below(weights, prefix):
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def norm(x, weights, config):
    rows = [
        normalised(row, config.norm, config.norm_eps, weights["weight"], weights.get("bias"))
        for row in x
    ]
    return torch.stack(rows)


def logits(ids, state_dict, config):
    """Returns the logits of ids [T], [T, vocab] in float64."""
    weights = {key: value.double() for key, value in state_dict.items()}
    x = config.embed_scale * weights["embed_tokens.weight"][ids]
    if config.embed_norm:
        x = norm(x, below(weights, "embed_norm."), config)
    for n in range(config.num_layers):
        layer = below(weights, f"layers.{n}.")
        blocks = [
            (retention_layer, below(layer, "retention_norm."), below(layer, "retention.")),
            (feed_forward, below(layer, "ffn_norm."), below(layer, "ffn.")),
        ]
        for block, norm_weights, block_weights in blocks:
            if config.pre_norm:
                out = block(norm(x, norm_weights, config), block_weights, config)
                x = config.residual_scale * x + out
            else:
                out = block(x, block_weights, config)
                x = norm(config.residual_scale * x + out, norm_weights, config)
    if config.pre_norm:
        x = norm(x, below(weights, "norm."), config)
    head = "embed_tokens.weight" if config.tie_embeddings else "lm_head.weight"
    return x @ weights[head].T
