# SPDX-License-Identifier: Apache-2.0
"""Converted models match torchscale 0.3.0, which builds, trains and runs them."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from support.cases.convert import check, converted, run_reference
from support.references.run_torchscale import CASES

pytestmark = pytest.mark.usefixtures("one_thread")

BARE = {"activation": "gelu", "embed_scale": 1.0, "residual_scale": 1.0}
# What the files do not contain.
OPTIONS = {
    "deepnorm": {"norm_eps": 1e-6},
    "deepnorm, pre norm": {"norm_eps": 1e-6},
    "tied": {**BARE, "norm_eps": 1e-6},
    "trained": {"norm_eps": 1e-6},
    "trained, eps 1e-5": {**BARE, "norm_eps": 1e-5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("torchscale")
    run_reference("torchscale", path)
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_converted_model_computes_the_same(name, folder, tmp_path):
    options = OPTIONS.get(name, {})
    model = converted(folder / f"{name}.pt", tmp_path / "new", **options)
    gradients = converted(folder / f"{name}, gradients.pt", tmp_path / "gradients", **options)
    want = load_file(folder / f"{name}.safetensors")
    own = (want["logits parallel"] - want["logits recurrent"]).abs().max().item()
    trained = "trained" in name
    tolerances = {"recurrent": 5e-5, "parallel": max(5e-5, 1.5 * own)}
    limit = 1e-3 if trained else 5e-6
    check(model, gradients, folder / f"{name}.safetensors", tolerances, limit)
    assert model.config.decay_norm and model.config.rotary_style == "interleaved"
    if trained:  # the loss was 1e-2 or more before
        chunkwise = (want["logits parallel"] - want["logits chunkwise"]).abs().max().item()
        assert 0 < own < 2e-2 and chunkwise < 2e-2


@pytest.mark.parametrize("low", ["autocast", "bfloat16"])
@torch.no_grad()
def test_bfloat16_does_not_depend_on_the_length(low, folder, tmp_path):
    """torchscale rounds its angles too: its error is 2e-1 at 512 tokens and 5e-1 at 1,500."""
    model = converted(folder / "trained.pt", tmp_path / "new", **OPTIONS["trained"])
    rounded = copy.deepcopy(model)
    if low == "bfloat16":
        rounded.bfloat16()
    for length in (128, 512, 1500):
        ids = torch.randint(model.config.vocab_size, (2, length))
        with torch.autocast("cpu", torch.bfloat16, enabled=low == "autocast"):
            logits = rounded(ids).logits
        want = model(ids).logits
        error = (logits.float() - want).square().mean().sqrt() / want.std()
        print(low, length, f"rms {error:.1e}")  # pytest -rP shows it
        assert 1e-3 < error < 2e-2


def test_a_half_precision_file_keeps_the_rounded_decay(folder, tmp_path):
    """fp16 files hold the decay and the angles with which the model was trained."""
    state = torch.load(folder / "tied.pt", weights_only=True)
    half = {name: tensor.half() for name, tensor in state.items()}
    torch.save(half, tmp_path / "half.pt")
    config = converted(tmp_path / "half.pt", tmp_path / "new", **OPTIONS["tied"]).config
    assert config.decay == tuple(half["retnet_rel_pos.decay"].tolist())
    assert config.frequencies == tuple(half["retnet_rel_pos.angle"][::2].tolist())
    whole = converted(folder / "tied.pt", tmp_path / "whole", **OPTIONS["tied"]).config
    assert whole.log_decay().tolist() == state["retnet_rel_pos.decay"].tolist()
    assert whole.rotary_frequencies().tolist() == state["retnet_rel_pos.angle"][::2].tolist()
