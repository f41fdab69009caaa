# SPDX-License-Identifier: Apache-2.0
"""What the tests of retnet.convert share: reference processes, and the comparison with them."""

import json
import os
import subprocess
import sys
from argparse import Namespace

import torch
from safetensors.torch import load_file, save_file

import retnet
from retnet.convert import convert
from support.paths import ROOT

REFERENCES = ROOT / "tests/python/support/references"

OPTIONS = {"activation": "gelu", "norm_eps": 1e-5, "group_norm_eps": 1e-6, "embed_scale": 1.0,
           "residual_scale": 1.0}  # fmt: skip


def fairseq(state, settings):
    return {"args": None, "cfg": {"model": settings, "task": {}}, "extra_state": {"epoch": 1},
            "model": {f"decoder.{name}": tensor for name, tensor in state.items()}}  # fmt: skip


# The old torchscale: what the state holds, what the file says, options, numbers of the reference
SCALE, ALPHA = 12**0.5, 4**0.25
OLD = {
    "bare": ({}, lambda s: s, OPTIONS, {}),
    "args": (
        {"subln": False, "pre_norm": False},
        lambda s: {"model": s, "args": Namespace(
            activation_fn="gelu", deepnorm=True, no_scale_embedding=True, layernorm_eps=1e-5,
            decoder_normalize_before=False)},
        {"group_norm_eps": 1e-5},
        {"alpha": ALPHA, "group_norm_eps": 1e-5},
    ),
    "fairseq": (
        {"embedding_norm": True, "tied": True},
        lambda s: fairseq(s, {
            "activation_fn": "gelu", "deepnorm": True, "layernorm_embedding": True,
            "no_scale_embedding": False, "share_decoder_input_output_embed": True}),
        {"norm_eps": 1e-5, "group_norm_eps": 1e-6},
        {"alpha": ALPHA, "embed_scale": SCALE},
    ),
}  # fmt: skip


def run_reference(name, folder):
    """Runs a reference in a process of its own, which can import its package but not retnet."""
    script = REFERENCES / f"run_{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def converted(source, target, **options):
    convert(source, target, **options)
    return retnet.load(target)


@torch.no_grad()
def gradients_differ_by(model, theirs):
    """Returns the largest norm of a parameter's difference, divided by the norm of the whole
    gradient.

    Args:
        model: with gradients.
        theirs: the same model with the reference's gradients for weights.
    """
    want = dict(theirs.named_parameters())
    whole = torch.stack([w.norm() for w in want.values()]).norm()
    return max(float((p.grad - want[name]).norm() / whole) for name, p in model.named_parameters())


@torch.no_grad()
def greedy(model, ids, count):
    """Returns tokens [B, count] after a prefill of ids, and the logits [B, count, vocab] behind
    them.
    """
    output = model(ids)
    logits = [output.logits[:, -1]]
    tokens = [logits[-1].argmax(-1, keepdim=True)]
    while len(tokens) < count:
        output = model(tokens[-1], state=output.state)
        logits.append(output.logits[:, -1])
        tokens.append(logits[-1].argmax(-1, keepdim=True))
    return torch.cat(tokens, 1), torch.stack(logits, 1)


def check(model, gradients, path, tolerances, gradient_tolerance):
    """Compares logits of every form, loss, gradients, greedy tokens and steps.

    Args:
        model: the converted model.
        gradients: likewise converted, the reference's gradients in the place of its weights.
        path: what the reference computed, a safetensors file.
        tolerances: largest difference of the logits, by form; the first serves loss and steps.
        gradient_tolerance: as `gradients_differ_by` measures it.
    """
    want = load_file(path)
    ids = want["ids"]
    loss = model(ids, labels=ids).loss
    loss.backward()
    found = {form: (model(ids).logits - want[f"logits {form}"]).abs().max().item()
             for form in tolerances}  # fmt: skip
    first = next(iter(tolerances.values()))
    tokens, steps = greedy(model, ids[:, :12], 16)
    found |= {
        "loss": abs(float(loss.detach() - want["loss"])),
        "gradients": gradients_differ_by(model, gradients),
        "steps": (steps - want["steps"]).abs().max().item(),
    }
    limits = {**tolerances, "loss": first, "steps": first, "gradients": gradient_tolerance}
    print({name: f"{value:.1e}" for name, value in found.items()})  # pytest -rP shows it
    assert all(found[name] <= limits[name] for name in found), found
    assert torch.equal(tokens, want["greedy"])


def make_fla(folder, remove=(), **changes):
    """Makes a folder with random weights, 1 layer, d = 8, H = 2, K = 4, V = 6, F = 5."""
    shapes = {"model.embeddings": (7, 8), "model.norm": (8,), "lm_head": (7, 8)}
    for name, shape in {
        "attn_norm": (8,), "mlp_norm": (8,), "attn.q_proj": (8, 8), "attn.k_proj": (8, 8),
        "attn.v_proj": (12, 8), "attn.g_proj": (12, 8), "attn.o_proj": (8, 12),
        "attn.g_norm": (6,), "mlp.gate_proj": (5, 8), "mlp.up_proj": (5, 8),
        "mlp.down_proj": (8, 5)}.items():  # fmt: skip
        shapes[f"model.layers.0.{name}"] = shape
    config = {"model_type": "retnet", "hidden_size": 8, "num_heads": 2, "num_hidden_layers": 1,
              "vocab_size": 7, "expand_k": 1, "expand_v": 1.5, "hidden_act": "swish",
              "norm_eps": 1e-6, "elementwise_affine": True, "attn": None, **changes}  # fmt: skip
    folder.mkdir()
    config = {name: value for name, value in config.items() if name not in remove}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{n}.weight": torch.randn(s) for n, s in shapes.items() if n not in remove}
    save_file(tensors, folder / "model.safetensors")
    return folder
