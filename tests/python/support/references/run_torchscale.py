# SPDX-License-Identifier: Apache-2.0
"""Tiny RetNets of torchscale 0.3.0, the version with RMSNorm and GLU.

The script runs in a process of its own. `python run_torchscale.py FOLDER` writes FOLDER/<case>.pt,
a checkpoint, and FOLDER/<case>.safetensors with what the model computes. It imports nothing of
retnet.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

LENGTH, PROMPT, WRITTEN, VOCAB = 96, 12, 16, 29
SIZES = {"decoder_embed_dim": 32, "decoder_value_embed_dim": 54, "decoder_retention_heads": 2,
         "decoder_ffn_embed_dim": 40, "decoder_layers": 2, "vocab_size": VOCAB,
         "recurrent_chunk_size": 32}  # fmt: skip
# name: (configuration, attributes changed after it as fairseq's override does, steps, layout)
CASES = {
    "pre norm": ({"decoder_value_embed_dim": 64}, {}, 0, "args"),
    "post norm": ({"subln": False, "decoder_normalize_before": False}, {}, 0, "args"),
    "deepnorm": ({"deepnorm": True, "subln": False, "activation_fn": "swish"}, {}, 0, "fairseq"),
    "deepnorm, pre norm": ({}, {"deepnorm": True, "no_scale_embedding": False}, 0, "fairseq"),
    "tied": ({"share_decoder_input_output_embed": True}, {}, 0, "bare"),
    "embedding norm": ({"layernorm_embedding": True, "layernorm_eps": 1e-5}, {}, 0, "args"),
    "trained": ({"activation_fn": "swish"}, {"no_scale_embedding": False}, 200, "fairseq"),
    "trained, eps 1e-5": ({"layernorm_eps": 1e-5}, {}, 200, "bare"),
}  # fmt: skip
STUBS = {
    "fairscale.nn": ["checkpoint_wrapper", "wrap"],
    "timm.models.layers": ["drop_path"],
}


def load_classes():
    """Loads the classes with stubs for other packages that torchscale imports. Those serve options
    that are off.
    """
    for name, functions in STUBS.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            package = ".".join(parts[:end])
            sys.modules[package] = ModuleType(package)
        for function in functions:
            setattr(sys.modules[name], function, None)
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    return RetNetConfig, RetNetDecoder


def train(model, steps):
    """Trains the model to count in steps that the first two tokens give."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        start, step = torch.randint(VOCAB, (2, 8, 1), generator=generator)
        ids = (start + step * torch.arange(32)) % VOCAB
        loss = next_token_loss(model(ids)[0], ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def next_token_loss(logits, ids):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def step_logits(model, ids, written):
    """Runs the recurrent form token by token over ids [B, T] and then over `written` greedy
    tokens.

    Returns the logits of every token read and the tokens written.
    """
    state, logits, tokens = {}, [], []
    for t in range(ids.shape[1] + max(written - 1, 0)):
        prefix = ids[:, : t + 1] if not tokens else torch.cat([ids, *tokens], 1)
        logits.append(model(prefix, incremental_state=state)[0][:, -1])
        if written and t >= ids.shape[1] - 1:
            tokens.append(logits[-1].argmax(-1, keepdim=True))
    return torch.stack(logits, 1), tokens


def expected(model):
    ids = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    logits = model(ids)[0]
    loss = next_token_loss(logits, ids)
    model.zero_grad()
    loss.backward()
    result = {"ids": ids, "loss": loss, "logits parallel": logits}
    with torch.no_grad():
        model.chunkwise_recurrent = True
        result["logits chunkwise"] = model(ids)[0]
        model.chunkwise_recurrent = False
        result["logits recurrent"], _ = step_logits(model, ids, 0)
        steps, tokens = step_logits(model, ids[:, :PROMPT], WRITTEN)
    result["steps"], result["greedy"] = steps[:, PROMPT - 1 :], torch.cat(tokens, 1)
    return {name: tensor.detach().contiguous() for name, tensor in result.items()}


def checkpoint(model, args, layout):
    """Returns the object that torch.save writes."""
    if layout == "bare":
        return model.state_dict()
    if layout == "args":
        return {"model": model.state_dict(), "args": argparse.Namespace(**vars(args))}
    # The configuration of fairseq has neither of these two.
    unknown = ("layernorm_eps", "vocab_size")
    options = {k: v for k, v in vars(args).items() if k not in unknown}
    return {
        "args": None,
        "cfg": {"_name": None, "model": {"_name": "retnet", **options}, "task": {"data": "x"}},
        "model": {f"decoder.{k}": v for k, v in model.state_dict().items()},
        "criterion": None,
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 3}],
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "extra_state": {"metrics": [[0, "loss", "AverageMeter", {"val": torch.ones(())}]]},
    }


def main(folder):
    config_class, model_class = load_classes()
    torch.set_num_threads(1)
    for name, (settings, changes, steps, layout) in CASES.items():
        torch.manual_seed(0)
        args = config_class(**{**SIZES, **settings})
        vars(args).update(changes)
        embedding = torch.nn.Embedding(VOCAB, 32)
        torch.nn.init.normal_(embedding.weight, std=32**-0.5)
        model = model_class(args, embedding)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms that have an effect
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        train(model, steps)
        model.eval()
        torch.save(checkpoint(model, args, layout), folder / f"{name}.pt")
        save_file(expected(model), folder / f"{name}.safetensors")
        for parameter in model.parameters():
            parameter.data = parameter.grad
        torch.save(checkpoint(model, args, layout), folder / f"{name}, gradients.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
