# SPDX-License-Identifier: Apache-2.0
"""`retnet convert`: the old torchscale beside a plain model, bad sources, options, a full disk."""

import json
import os
import pickle
import re
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

import reference_torchscale_v1 as v1
import retnet
from cases_convert import converted, gradients_differ_by, greedy
from cases_nn import make_model
from cases_train import full_disk
from retnet.cli import main
from retnet.convert import convert

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"activation": "gelu", "norm_eps": 1e-5, "group_norm_eps": 1e-6, "embed_scale": 1.0,
           "residual_scale": 1.0}  # fmt: skip
SETTINGS = {"decoder_embed_dim": 12, "decoder_layers": 2, "activation_fn": "gelu", "subln": True,
            "no_scale_embedding": True, "deepnorm": False, "layernorm_eps": 1e-5, "vocab_size": -1,
            "decoder_normalize_before": True, "multiway": False, "moe_freq": 0}  # fmt: skip


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


# What is open, and what contradicts


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


# Files that are no checkpoint, or not one that is read


def edited(edit):
    def write(path):
        state = v1.make_state()
        edit(state)
        torch.save(state, path)

    return write


def truncated(keep):
    def write(path):
        torch.save(v1.make_state(), path)
        path.write_bytes(path.read_bytes()[:keep])

    return write


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


BAD = {
    "missing file": (lambda p: None, "no such file or folder"),
    "empty": (lambda p: p.touch(), "must be a whole file of torch.save"),
    "truncated": (truncated(5000), "must be a whole file of torch.save"),
    "text": (lambda p: p.write_text("hello"), "must be a whole file of torch.save"),
    "pickle": (
        lambda p: p.write_bytes(pickle.dumps({"a": 1}, 2)),
        "must be a whole file|state dict",
    ),
    "code": (
        lambda p: torch.save({"a": Evil()}, p),
        r"plain values .* got \S*system, which is not",
    ),
    "list": (lambda p: torch.save([torch.ones(1)], p), "must hold a state dict"),
    "numbers": (lambda p: torch.save({"model": {"a": 1}}, p), "must hold a state dict"),
    "settings": (
        lambda p: torch.save({"model": v1.make_state(), "args": 7}, p),
        "must be a Namespace or a dict, got int",
    ),
    "foreign": (
        lambda p: torch.save({"wte.weight": torch.ones(2, 2)}, p),
        "must be a checkpoint of torchscale or flash-linear-attention, got tensors wte.weight",
    ),
    "nothing": (lambda p: torch.save({}, p), "got tensors none"),
    "missing": (
        edited(lambda s: s.pop("layers.1.ffn.fc2.weight")),
        "missing: layers.1.ffn.down_proj.weight$",
    ),
    "no decay": (
        edited(lambda s: s.pop("retnet_rel_pos.decay")),
        "must hold the tensor retnet_rel_pos.decay, which is missing",
    ),
    "no head": (
        edited(lambda s: s.pop("output_projection.weight")),
        "must hold the tensor output_projection.weight, which is missing",
    ),
    "unknown": (
        edited(lambda s: s.update({"layers.1.cross.weight": torch.ones(1)})),
        "must hold the tensors of a RetNet only, got layers.1.cross.weight",
    ),
    "shape": (
        edited(lambda s: s.update({"layers.1.ffn.fc1.bias": torch.ones(9)})),
        r"layers.1.ffn.up_proj.bias must have shape \[10\], got \[9\]",
    ),
    "integers": (
        edited(lambda s: s.update({"layers.1.ffn.fc1.bias": torch.ones(10).int()})),
        r"layers.1.ffn.fc1.bias must be floating point \(F64, F32, F16 or BF16\), got int32$",
    ),
    "quantised": (
        edited(lambda s: s.update({n: t.to(torch.int8) for n, t in s.items()})),
        r"embed_tokens.weight must be floating point \(F64, F32, F16 or BF16\), got int8$",
    ),
    "float8": (
        edited(lambda s: s.update({n: t.to(torch.float8_e4m3fn) for n, t in s.items()})),
        r"embed_tokens.weight must be floating point .* got float8_e4m3fn$",
    ),
    "complex decay": (
        edited(lambda s: s.update({"retnet_rel_pos.decay": torch.ones(3).cfloat()})),
        r"retnet_rel_pos.decay must be floating point .* got complex64$",
    ),
    "angle": (
        edited(lambda s: s["retnet_rel_pos.angle"].mul_(torch.arange(4))),
        "retnet_rel_pos.angle must hold each frequency twice",
    ),
    "decay": (
        edited(lambda s: s["retnet_rel_pos.decay"].neg_()),
        r"decay must be <= 0 \(it is ln gamma\)",
    ),
    "decay shape": (
        edited(lambda s: s.update({"retnet_rel_pos.decay": torch.ones(3, 2)})),
        r"must have shape \[H\] and angle \[K\], K even, got \[3, 2\] and \[4\]",
    ),
    "experts": (
        edited(lambda s: s.update({"layers.1.moe_layer.gate.wg.weight": torch.ones(1)})),
        r"mixture of experts \(moe_layer\) is not supported",
    ),
    "multiway": (
        edited(lambda s: s.update({"layers.1.retention.q_proj.A.weight": torch.ones(1)})),
        "multiway is not supported",
    ),
    "syncdoth": (
        lambda p: torch.save({f"model.{n}": t for n, t in v1.make_state().items()}, p),
        "checkpoints of syncdoth/RetNet are not supported",
    ),
    "Jamie-Stirling": (
        lambda p: torch.save({"retnet.retentions.0.retentions.1.W_Q": torch.ones(1)}, p),
        "checkpoints of Jamie-Stirling/RetNet are not supported",
    ),
    "yet-another-retnet": (
        lambda p: torch.save({"decoder.layers.0.linear1.weight": torch.ones(1)}, p),
        "checkpoints of yet-another-retnet are not supported",
    ),
    "a file of fla": (
        lambda p: torch.save({"model.embeddings.weight": torch.ones(1)}, p),
        "must be a folder whose config.json has model_type retnet",
    ),
}


@pytest.mark.parametrize("write, message", BAD.values(), ids=BAD.keys())
def test_bad_file(write, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.pt")
    options = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    assert main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "new"), *options]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"retnet convert: {tmp_path}/x.pt: ") and printed.count("\n") == 1
    assert re.search(message, printed.rstrip()), printed
    assert {path.name for path in tmp_path.iterdir()} <= {"x.pt"}


# Folders of flash-linear-attention


def make_fla(folder, remove=(), **changes):
    """A folder with random weights, 1 layer, d = 8, H = 2, K = 4, V = 6, F = 5."""
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
    "elsewhere": (index({"weight_map": {"a": "../fla/part"}}), "to files beside it"),
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
    assert printed.count("\n") == 1 and "could not be written, nothing was replaced" in printed
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 0
    retnet.load(tmp_path / "new")


def test_without_the_other_projects_packages(tmp_path):
    """The command in a process in which their import fails."""
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
