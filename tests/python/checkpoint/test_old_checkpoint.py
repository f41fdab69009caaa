# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of older versions are read. Their learnable decay was ln gamma itself."""

import math

import pytest
import torch
from safetensors.torch import load_file

import retnet
from retnet import checkpoint
from support.cases.checkpoint import edit_weights, save_tiny
from support.cases.nn import make_model


def save_old(folder, values=(-0.031, -1.5, -0.0002), **changes):
    model = make_model(torch.float32, learnable_decay=True, decay=(-0.5, -0.1, 0.0), **changes)
    model.save(folder)

    def rename(tensors):
        for name in [n for n in tensors if n.endswith("log_decay_raw")]:
            del tensors[name]
            tensors[name.removesuffix("_raw")] = torch.tensor(values)

    edit_weights(folder, rename)
    return model


@pytest.mark.parametrize("values", [(-0.031, -1.5, -0.0002), (-torch.inf, 0.0, -3e38)], ids=str)
def test_an_old_decay_is_read(values, tmp_path):
    save_old(tmp_path / "old", values)
    model = retnet.load(tmp_path / "old")
    for layer in model.layers:
        expected = torch.tensor(values)
        if values[2] < -1e38:
            expected[2] = -(2.0**-10) * math.exp(79.5)  # not an end of the range
        torch.testing.assert_close(layer.retention.log_decay, expected, rtol=1e-6, atol=0)
    model.save(tmp_path / "new")
    assert "layers.0.retention.log_decay_raw" in load_file(tmp_path / "new/model.safetensors")
    assert "layers.0.retention.log_decay" not in load_file(tmp_path / "new/model.safetensors")
    again = retnet.load(tmp_path / "new").state_dict()
    assert all(torch.equal(tensor, again[n]) for n, tensor in model.state_dict().items())
    checkpoint.write(tmp_path / "x", model.config, load_file(tmp_path / "old/model.safetensors"))
    again = retnet.load(tmp_path / "x").state_dict()
    assert all(torch.equal(tensor, again[n]) for n, tensor in model.state_dict().items())


KEY = "layers.1.retention.log_decay"
BAD_OLD = {
    "above 0": (lambda t: t[KEY].fill_(1e-6), r"must lie in \[-inf, 0\], got 1e-06 in head 0$"),
    "NaN": (lambda t: t[KEY].fill_(torch.nan), r"must lie in \[-inf, 0\], got nan in head 0$"),
    "shape": (lambda t: t.update({KEY: torch.ones(4)}), r"must have shape \[3\], got \[4\]$"),
    "dtype": (lambda t: t.update({KEY: -torch.ones(3).int()}), r"must be floating .* got I32$"),
}


@pytest.mark.parametrize("edit, message", BAD_OLD.values(), ids=BAD_OLD)
def test_a_bad_old_decay_is_refused(edit, message, tmp_path):
    save_old(tmp_path)
    edit_weights(tmp_path, edit)
    with pytest.raises(ValueError, match=f"model.safetensors: .*{KEY} {message}") as error:
        retnet.load(tmp_path)
    assert "\n" not in str(error.value)


def test_both_decays_or_none_are_refused(tmp_path):
    save_old(tmp_path)
    edit_weights(tmp_path, lambda t: t.update({f"{KEY}_raw": torch.zeros(3)}))
    with pytest.raises(ValueError, match=f"unexpected: {KEY} "):
        retnet.load(tmp_path)
    edit_weights(tmp_path, lambda t: (t.pop(KEY), t.pop(f"{KEY}_raw")))
    with pytest.raises(ValueError, match=f"missing: {KEY}_raw$"):
        retnet.load(tmp_path)
    save_tiny(tmp_path / "fixed")
    edit_weights(tmp_path / "fixed", lambda t: t.update({KEY: -torch.ones(3)}))
    with pytest.raises(ValueError, match=f"unexpected: {KEY} "):
        retnet.load(tmp_path / "fixed")
