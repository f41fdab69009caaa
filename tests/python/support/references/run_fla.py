# SPDX-License-Identifier: Apache-2.0
"""Tiny RetNets of flash-linear-attention. Triton's interpreter runs its own kernels.

The script runs in a process of its own. `python run_fla.py FOLDER` writes FOLDER/<case>/ by
save_pretrained, and FOLDER/<case>.safetensors with what the model computes. It imports nothing of
retnet.
"""

import os
import sys
from pathlib import Path

os.environ.update(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")

import builtins
import importlib
import pkgutil

import torch
from safetensors.torch import save_file
from triton.runtime import autotuner, interpreter

LENGTH, PROMPT, WRITTEN = 70, 12, 16
FORMS = ("chunk", "fused_chunk", "fused_recurrent", "parallel")
SIZES = {"hidden_size": 32, "num_heads": 2, "num_hidden_layers": 2, "vocab_size": 29,
         "intermediate_size": 48, "fuse_cross_entropy": False}  # fmt: skip
# name: (configuration, factor on the initial weights, training steps, forms, how to save)
CASES = {
    "fused": ({}, 8.0, 0, FORMS, {}),
    "plain": ({"fuse_norm": False, "elementwise_affine": False, "tie_word_embeddings": True,
               "norm_eps": 1e-5}, 4.0, 0, ("chunk",), {"max_shard_size": "20KB"}),
    "trained": ({"fuse_norm": False, "expand_v": 1.5}, 4.0, 4, ("chunk",), {}),
}  # fmt: skip


def scalars(*bounds):
    """Returns a `range` of the interpreter's integers, because the kernels call methods of their
    loop counters.
    """
    whole = [int(x.handle.data.item()) if hasattr(x, "handle") else int(x) for x in bounds]
    return map(interpreter._implicit_cvt, builtins.range(*whole))


def prepare():
    """Makes fla's kernels run without a device. Returns its classes."""
    autotuner.Autotuner._bench = lambda *args, **kwargs: [1.0, 1.0, 1.0]
    from fla.models.retnet import RetNetConfig, RetNetForCausalLM

    for name in ("fla.ops.common", "fla.ops.simple_gla"):
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.ispkg:
                importlib.import_module(f"{name}.{module.name}").range = scalars
    return RetNetConfig, RetNetForCausalLM


def train(model, steps):
    """Trains the model to count in steps that the first two tokens give."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        start, step = torch.randint(29, (2, 1, 1), generator=generator)
        ids = (start + step * torch.arange(32)) % 29
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def greedy(model, ids):
    """Returns 16 tokens [1, 16] after a prefill of ids, and the logits [1, 16, vocab] behind
    them.
    """
    output = model(ids, use_cache=True)
    logits = [output.logits[:, -1]]
    tokens = [logits[-1].argmax(-1, keepdim=True)]
    while len(tokens) < WRITTEN:
        output = model(tokens[-1], past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits[:, -1])
        tokens.append(logits[-1].argmax(-1, keepdim=True))
    return torch.cat(tokens, 1), torch.stack(logits, 1)


def expected(model, forms):
    ids = torch.randint(29, (1, LENGTH), generator=torch.Generator().manual_seed(5))
    output = model(ids, labels=ids)
    model.zero_grad()
    output.loss.backward()
    result = {"ids": ids, "loss": output.loss}
    with torch.no_grad():
        for form in forms:
            for layer in model.model.layers:
                layer.attn.mode = form
            result[f"logits {form}"] = model(ids).logits
    result["greedy"], result["steps"] = greedy(model, ids[:, :PROMPT])
    return {name: tensor.detach().contiguous() for name, tensor in result.items()}


def main(folder):
    config_class, model_class = prepare()
    torch.set_num_threads(1)
    for name, (changes, factor, steps, forms, options) in CASES.items():
        torch.manual_seed(0)
        model = model_class(config_class(**{**SIZES, **changes}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(factor)
                else:  # norms that have an effect
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        train(model, steps)
        model.eval()
        model.save_pretrained(folder / name, **options)
        save_file(expected(model, forms), folder / f"{name}.safetensors")
        for parameter in model.parameters():
            parameter.data = parameter.grad
        model.save_pretrained(folder / f"{name}, gradients", **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
