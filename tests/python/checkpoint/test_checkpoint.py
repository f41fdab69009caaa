# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what comes back and what is refused."""

import pickle

import pytest
import torch
from safetensors.torch import load_file

import retnet
from retnet import checkpoint
from support.cases.checkpoint import edit_config, edit_weights, names, save_tiny, truncate
from support.cases.nn import each_variant, make_model, random_ids


@each_variant
def test_what_is_saved_comes_back(changes, tmp_path):
    model = make_model(**changes)
    model.save(tmp_path / "new" / "folder")
    again = retnet.load(tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == ["config.json", "model.safetensors"]
    assert again.config == model.config
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype, name
    ids = random_ids(2, 9)
    assert torch.equal(model(ids).logits, again(ids).logits)


def test_the_keys_are_those_of_the_state_dict_and_tied_weights_stand_once(tmp_path):
    model = make_model(tie_embeddings=True)
    state = {**model.state_dict(), "lm_head.weight": model.embed_tokens.weight}
    checkpoint.write(tmp_path, model.config, state, {"step": "7"})
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    assert checkpoint.read_metadata(tmp_path) == {"format": "pt", "step": "7"}
    with pytest.raises(ValueError, match=r"lm_head.weight must equal embed_tokens.weight"):
        checkpoint.write(
            tmp_path, model.config, {**state, "lm_head.weight": state["lm_head.weight"] + 1}
        )


def test_views_are_stored_alone(tmp_path):
    model = make_model()
    packed = torch.cat([t.flatten() for t in model.state_dict().values()])
    parts = packed.split([t.numel() for t in model.state_dict().values()])
    shaped = zip(model.state_dict().items(), parts, strict=True)
    checkpoint.write(tmp_path, model.config, {n: p.view(t.shape) for (n, t), p in shaped})
    assert (tmp_path / "model.safetensors").stat().st_size < packed.nbytes + 8192
    again = retnet.load(tmp_path).state_dict()
    assert all(torch.equal(t, again[n]) for n, t in model.state_dict().items())


def test_device_and_dtype(tmp_path, device):
    model = make_model(torch.bfloat16, learnable_decay=True)
    model.save(tmp_path)
    kept, asked = retnet.load(tmp_path, device), retnet.load(tmp_path, dtype=torch.float64)
    assert kept.norm.weight.dtype == torch.bfloat16 and kept.norm.weight.device.type == device.type
    assert asked.norm.weight.dtype == torch.float64
    retention = asked.layers[0].retention
    assert retention.log_decay.dtype == retention.frequencies.dtype == torch.float32
    assert torch.equal(asked.norm.weight.float(), model.norm.weight.float())


BAD = {
    "newer": (lambda f: edit_config(f, format_version=2), "format_version must be .* got 2"),
    "unknown": (
        lambda f: edit_config(f, embed_dims=3),
        r"known fields only, got \['embed_dims'\] \(did you mean 'embed_dim'\?\)",
    ),
    "field": (lambda f: edit_config(f, key_dim=3), "config.json: .*key_dim must be even, got 3"),
    "not json": (lambda f: truncate(f / "config.json", 40), "config.json: .*must be JSON, got"),
    "not utf-8": (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json: .*utf-8"),
    "truncated": (lambda f: truncate(f / "model.safetensors", 3000), "must be a whole safetens"),
    "empty": (lambda f: truncate(f / "model.safetensors", 0), "must be a whole safetensors file"),
    "pickle": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps({"a": 1}) * 9),
        "must be a whole safetensors file",
    ),
    "missing": (
        lambda f: edit_weights(f, lambda t: t.pop("norm.weight")),
        "model.safetensors: must hold the weights .*missing: norm.weight$",
    ),
    "misspelt": (
        lambda f: edit_weights(f, lambda t: t.update({"norm.wieght": t.pop("norm.weight")})),
        r"unexpected: norm.wieght \(did you mean 'norm.weight'\?\)",
    ),
    "foreign": (
        lambda f: edit_weights(f, lambda t: [t.clear(), t.update(a=torch.ones(1))]),
        "missing: embed_tokens.weight, .* and [0-9]+ more; unexpected: a",
    ),
    "shape": (
        lambda f: edit_config(f, ffn_dim=11),
        r"layers.0.ffn.down_proj.weight must have shape \[12, 11\], got \[12, 10\]",
    ),
}


@pytest.mark.parametrize("damage, message", BAD.values(), ids=BAD.keys())
def test_bad_checkpoint(damage, message, tmp_path):
    damage(save_tiny(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        retnet.load(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


QUANTISED = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
each_wrong_dtype = pytest.mark.parametrize("name, dtype", QUANTISED.items(), ids=QUANTISED)


@each_wrong_dtype
@pytest.mark.parametrize("key", ["embed_tokens.weight", "layers.1.ffn.up_proj.weight"])
def test_other_dtypes_are_refused(name, dtype, key, tmp_path):
    edit_weights(save_tiny(tmp_path), lambda t: t.update({key: t[key].to(dtype)}))
    message = rf"{key} must be floating point \(F64, F32, F16 or BF16\), got {name}$"
    with pytest.raises(ValueError, match=message):
        retnet.load(tmp_path, dtype=torch.float32)


@each_wrong_dtype
def test_other_dtypes_are_not_written_and_not_made(name, dtype, tmp_path):
    model = make_model()
    state = {**model.state_dict(), "norm.weight": torch.ones(12).to(dtype)}
    short = str(dtype).removeprefix("torch.")
    message = rf"norm.weight must be floating point \(F64, F32, F16 or BF16\), got {short}$"
    with pytest.raises(ValueError, match=message):
        checkpoint.write(tmp_path, model.config, state)
    assert names(tmp_path) == []
    model.save(tmp_path)
    message = f"dtype must be float64, float32, float16 or bfloat16, got {dtype}$"
    with pytest.raises(ValueError, match=message):
        retnet.load(tmp_path, dtype=dtype)


def test_every_dtype_of_weights_is_read(tmp_path):
    model = make_model(torch.float32)
    mixed = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    state = {n: t.to(mixed[i % 4]) for i, (n, t) in enumerate(model.state_dict().items())}
    checkpoint.write(tmp_path, model.config, state)
    for name, tensor in retnet.load(tmp_path, dtype=torch.float64).state_dict().items():
        assert torch.equal(tensor, state[name].double()), name


def test_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold config.json and model.safetensors"):
        retnet.load(tmp_path / "nowhere")
    (save_tiny(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: no such file"):
        retnet.load(tmp_path)


def test_wrong_weights_are_not_written(tmp_path):
    model = make_model()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing: .*unexpected: module.embed_tokens.weight"):
        checkpoint.write(tmp_path, model.config, state)
    assert names(tmp_path) == []
