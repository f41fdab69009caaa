# SPDX-License-Identifier: Apache-2.0
"""`retnet convert` reads whole folders of flash-linear-attention and refuses broken ones."""

import json

import pytest

import retnet
from retnet.cli import main
from retnet.convert import convert
from support.cases.convert import make_fla

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_tokenizer_comes_along(tmp_path, capsys):
    folder = make_fla(tmp_path / "fla", ("num_heads", "norm_eps"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"as options: num_heads \(.*\), norm_eps \(1e-6 or 1e-5\)"
    ):
        convert(folder, tmp_path / "new")
    convert(folder, tmp_path / "new", num_heads=2, norm_eps=1e-5)
    config = retnet.load(tmp_path / "new").config
    assert (config.num_heads, config.group_norm_eps) == (2, 1e-5)
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "{}"


def test_a_byte_order_mark_is_read(tmp_path):
    path = make_fla(tmp_path / "fla") / "config.json"
    path.write_text(path.read_text(), "utf-8-sig")
    convert(tmp_path / "fla", tmp_path / "new")
    assert retnet.load(tmp_path / "new").config.embed_dim == 8


BAD_FOLDERS = {
    "experts": ({"attn": {"layers": [0]}}, (), r"hybrid attention \(attn\) is not supported"),
    "residuals": ({"attnres_block_size": 4}, (), "attnres_block_size is not supported"),
    "convolution": ({"use_short_conv": True}, (), "use_short_conv is not supported"),
    "feature map": ({"feature_map": "relu"}, (), "feature_map is not supported"),
    "shared heads": ({"num_kv_heads": 1}, (), "num_kv_heads < num_heads is not supported"),
    "no gate": ({"use_output_gate": False}, (), "use_output_gate = false is not supported"),
    "powlu": ({"hidden_act": "powlu"}, (), "hidden_act = 'powlu' is not supported"),
    "gla": ({"model_type": "gla"}, (), "must be a folder .* model_type retnet, got 'gla'"),
    "width": ({"hidden_size": 16}, (), "has hidden_size = 16, but its tensors show 8"),
    "values": ({"expand_v": 2}, (), "has expand_v = 2, but its tensors show 1.5"),
    "inner": ({"intermediate_size": 6}, (), "has intermediate_size = 6, but its tensors show 5"),
    "affine": ({"elementwise_affine": False}, (), "elementwise_affine = False, but .* True"),
    "heads": ({"num_heads": 5}, (), "must divide the rows of q_proj and v_proj, 8 and 12, got 5"),
    "zero heads": ({"num_heads": 0}, (), "must divide the rows .*, got 0"),
    "untied": ({}, ("lm_head",), "must hold the tensor lm_head.weight, which is missing"),
    "tied": ({"tie_word_embeddings": True}, (), "lm_head.weight is not embeddings.weight"),
    "packed": ({}, ("model.layers.0.mlp.up_proj",), "must hold gate and up rows, got 5"),
}


@pytest.mark.parametrize("changes, remove, message", BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_bad_folder(changes, remove, message, tmp_path):
    folder = make_fla(tmp_path / "fla", remove, **changes)
    with pytest.raises(ValueError, match=rf"fla: .*{message}"):
        convert(folder, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def index(places):
    def write(folder):
        (folder / "model.safetensors").rename(folder / "part")
        (folder / "model.safetensors.index.json").write_text(json.dumps(places))

    return write


BROKEN = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "config.json: must be JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "must be a JSON object, got list"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "fla: must hold model.safetensors",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes(b"\0" * 9),
        "model.safetensors: must be a whole safetensors file",
    ),
    "no map": (index({}), "index.json: must hold weight_map"),
    "elsewhere": (index({"weight_map": {"a": "../fla/part"}}), "to a file in the same folder"),
    "no shard": (
        index({"weight_map": {"a": "none.safetensors"}}),
        "none.safetensors: no such file",
    ),
    "no shard.bin": (index({"weight_map": {"a": "none.bin"}}), "none.bin: no such file"),
}


@pytest.mark.parametrize("damage, message", BROKEN.values(), ids=BROKEN)
def test_broken_folder(damage, message, tmp_path, capsys):
    damage(make_fla(tmp_path / "fla"))
    assert main(["convert", str(tmp_path / "fla"), str(tmp_path / "new")]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1, printed


def test_shards_that_lack_a_tensor(tmp_path):
    folder = make_fla(tmp_path / "fla")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    places = {"weight_map": {"a": "part.safetensors", "lm_head.weight": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))
    with pytest.raises(ValueError, match=r"index.json: its files lack a$"):
        convert(folder, tmp_path / "new")
