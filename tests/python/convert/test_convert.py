# SPDX-License-Identifier: Apache-2.0
"""`retnet convert`: the old torchscale against a plain model, options, and what is overwritten."""

import re
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

import retnet
from retnet.cli import main
from retnet.convert import convert
from support.cases.convert import (
    OLD,
    OPTIONS,
    SCALE,
    converted,
    gradients_differ_by,
    greedy,
    make_fla,
)
from support.cases.nn import make_model
from support.cases.train import full_disk
from support.references import torchscale_v1 as v1

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {"decoder_embed_dim": 12, "decoder_layers": 2, "activation_fn": "gelu", "subln": True,
            "no_scale_embedding": True, "deepnorm": False, "layernorm_eps": 1e-5, "vocab_size": -1,
            "decoder_normalize_before": True, "multiway": False, "moe_freq": 0}  # fmt: skip


# The old torchscale


@pytest.mark.parametrize("kind, layout, options, numbers", OLD.values(), ids=OLD.keys())
def test_old_torchscale(kind, layout, options, numbers, tmp_path):
    state = v1.make_state(**kind)
    torch.save(layout(state), tmp_path / "old.pt")
    model = converted(tmp_path / "old.pt", tmp_path / "new", **options)
    assert model.norm is None or model.norm.weight.dtype == torch.float64
    assert model.config.bias and model.config.ffn_inner_norm == kind.get("subln", True)

    weights = {n: t.requires_grad_() for n, t in state.items() if "rel_pos" not in n}
    numbers = {"eps": 1e-5, "group_norm_eps": 1e-6, "embed_scale": 1.0,
               "alpha": 1.0, **numbers}  # fmt: skip
    ids = torch.randint(v1.VOCAB, (40,), generator=torch.Generator().manual_seed(2))
    want = v1.logits(state, ids, **numbers)
    loss = v1.next_token_loss(want, ids)
    loss.backward()
    output = model(ids[None], labels=ids[None])
    output.loss.backward()
    torch.testing.assert_close(model(ids[None]).logits[0], want, atol=1e-9, rtol=0)
    torch.testing.assert_close(output.loss, loss, atol=1e-9, rtol=0)
    torch.save(layout(state | {n: t.grad for n, t in weights.items()}), tmp_path / "gradients.pt")
    gradients = converted(tmp_path / "gradients.pt", tmp_path / "gradients", **options)
    assert gradients_differ_by(model, gradients) < 1e-9

    text = ids[:12]
    for _ in range(16):
        text = torch.cat([text, v1.logits(state, text, **numbers)[-1:].argmax(-1)])
    tokens, steps = greedy(model, ids[None, :12], 16)
    assert torch.equal(tokens[0], text[12:])
    want = v1.logits(state, text[:-1], **numbers)[11:]
    torch.testing.assert_close(steps[0], want, atol=1e-9, rtol=0)


def test_safetensors_and_half_precision(tmp_path):
    save_file({n: t.bfloat16() for n, t in v1.make_state().items()}, tmp_path / "x.safetensors")
    model = converted(tmp_path / "x.safetensors", tmp_path / "new", **OPTIONS)
    assert model.embed_tokens.weight.dtype == torch.bfloat16


# Options that are missing, and options that contradict the file


def test_missing_options_are_listed(tmp_path, capsys):
    torch.save(v1.make_state(), tmp_path / "x.pt")
    assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "new")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "pass them as options: activation (gelu or swish), " in printed
    named = re.findall(r"(\w+) \(", printed)
    assert set(OPTIONS) <= set(named) and f"sqrt(embed_dim) = {SCALE!r}" in printed
    assert not (tmp_path / "new").exists()
    options = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "new"), *options]) == 0
    assert "parameters, read as torchscale before 2023-09-28" in capsys.readouterr().out
    config = retnet.load(tmp_path / "new").config
    assert {name: getattr(config, name) for name in OPTIONS} == OPTIONS


CONTRADICTIONS = {
    "width": ({"decoder_embed_dim": 16}, {}, "has decoder_embed_dim = 16, but its tensors show 12"),
    "layers": ({"decoder_layers": 3}, {}, "has decoder_layers = 3, but its tensors show 2"),
    "norm": ({"decoder_normalize_before": False}, {}, "normalize_before = False, but .* True"),
    "vocabulary": ({"vocab_size": 14}, {}, "has vocab_size = 14, but its tensors show 13"),
    "tied": (
        {"share_decoder_input_output_embed": True},
        {},
        "output_projection.weight is not embed_tokens.weight",
    ),
    "option": (
        {},
        {"activation": "swish"},
        "activation must be 'gelu', as in the checkpoint, got 'swish'",
    ),
    "heads": ({}, {"num_heads": 4}, "num_heads must be 3, as in the checkpoint, got 4"),
    "value": ({"layernorm_eps": "x"}, {}, "norm_eps must be a finite number > 0, got 'x'"),
    "relu": ({"activation_fn": "relu"}, {}, "activation_fn = 'relu' is not supported"),
    "experts": ({"moe_freq": 2}, {}, r"mixture of experts \(moe_layer\) is not supported"),
    "multiway": ({"multiway": True}, {}, "multiway is not supported"),
}


@pytest.mark.parametrize("changes, options, message", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions(changes, options, message, tmp_path):
    torch.save(
        {"model": v1.make_state(), "args": Namespace(**{**SETTINGS, **changes})}, tmp_path / "x.pt"
    )
    with pytest.raises(ValueError, match=rf"x\.pt: .*{message}"):
        convert(tmp_path / "x.pt", tmp_path / "new", **{"group_norm_eps": 1e-6, **options})
    assert not (tmp_path / "new").exists()


# Targets


def test_nothing_is_lost_where_something_stands(tmp_path):
    folder = make_fla(tmp_path / "fla")
    make_model().save(tmp_path / "old")
    before = {p: p.read_bytes() for p in [*folder.iterdir(), *(tmp_path / "old").iterdir()]}
    for target in (tmp_path / "old", folder):
        with pytest.raises(FileExistsError, match="holds a model; choose another target"):
            convert(folder, target)
    assert before == {path: path.read_bytes() for path in before}


def test_full_disk(tmp_path, capsys):
    folder = make_fla(tmp_path / "fla")
    with full_disk(1000):
        assert main(["convert", str(folder), str(tmp_path / "new")]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "could not be written; any old file is unchanged" in printed
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 0
    retnet.load(tmp_path / "new")


def test_without_the_other_projects_packages(tmp_path):
    """The command runs in a process in which importing those packages fails."""
    torch.save(v1.make_state(), tmp_path / "x.pt")
    make_fla(tmp_path / "fla")
    code = f"""
import sys
for name in ("torchscale", "fla", "triton", "transformers", "fairseq", "omegaconf"):
    sys.modules[name] = None
from retnet.cli import main
from retnet.convert import convert
convert("x.pt", "a", **{OPTIONS!r})
sys.exit(main(["convert", "fla", "b"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "read as flash-linear-attention" in done.stdout
    assert retnet.load(tmp_path / "a").config.bias and not retnet.load(tmp_path / "b").config.bias
