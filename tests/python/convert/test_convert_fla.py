# SPDX-License-Identifier: Apache-2.0
"""Converted models match flash-linear-attention 0.6.0, whose Triton kernels run interpreted."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.cases.convert import check, converted, run_reference

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = ("chunk", "fused_chunk", "fused_recurrent", "parallel")
CASES = {"fused": FORMS, "plain": ("chunk",), "trained": ("chunk",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fla")
    run_reference("fla", path)
    return path


def check_fla(model, folder, name, tmp_path):
    gradients = converted(folder / f"{name}, gradients", tmp_path / "gradients")
    tolerances = dict.fromkeys(CASES[name], 1e-5)
    check(model, gradients, folder / f"{name}.safetensors", tolerances, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_a_converted_model_computes_the_same(name, folder, tmp_path):
    model = converted(folder / name, tmp_path / "new")
    check_fla(model, folder, name, tmp_path)
    tied = name == "plain"  # this one is sharded and has no affine head norms
    assert model.config.tie_embeddings == tied and model.config.group_norm_affine != tied
    assert (folder / name / "model.safetensors.index.json").exists() == tied


def edit_config(folder, remove=(), **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in remove}))


def test_the_layout_before_2025_02_09(folder, tmp_path):
    """gate_proj holds the rows of gate and of up, and two settings have other names."""
    shutil.copytree(folder / "fused", tmp_path / "old")
    tensors = load_file(tmp_path / "old" / "model.safetensors")
    for n in range(2):
        gate, up = (f"model.layers.{n}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        tensors[gate] = torch.cat([tensors[gate], tensors.pop(up)])
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    edit_config(
        tmp_path / "old", ("num_heads", "norm_eps"), num_attention_heads=2, rms_norm_eps=1e-6
    )
    check_fla(converted(tmp_path / "old", tmp_path / "new"), folder, "fused", tmp_path)


@pytest.mark.parametrize("shards", [1, 3])
def test_pickled_weights(shards, folder, tmp_path):
    """The weights are in pytorch_model.bin, or in several files with an index, and include a tied
    head.
    """
    shutil.copytree(folder / "plain", tmp_path / "old")
    tensors = {}
    for path in (tmp_path / "old").glob("model*"):
        tensors |= load_file(path) if path.suffix == ".safetensors" else {}
        path.unlink()
    tensors["lm_head.weight"] = tensors["model.embeddings.weight"]
    if shards == 1:
        torch.save(tensors, tmp_path / "old" / "pytorch_model.bin")
    else:
        places = {name: f"pytorch_model-{n % shards}.bin" for n, name in enumerate(tensors)}
        for file in set(places.values()):
            part = {name: tensors[name] for name in tensors if places[name] == file}
            torch.save(part, tmp_path / "old" / file)
        (tmp_path / "old" / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": places})
        )
    check_fla(converted(tmp_path / "old", tmp_path / "new"), folder, "plain", tmp_path)
