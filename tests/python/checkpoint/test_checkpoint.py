# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and saved states: what comes back, what is refused, what a failed write leaves."""

import json
import math
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import retnet
from retnet import RetNetState, checkpoint
from support.cases.nn import each_variant, make_config, make_model, random_ids
from support.cases.train import full_disk


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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


# What is refused


def save_tiny(folder, **changes):
    make_model(**changes).save(folder)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


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


# Checkpoints of older versions, whose learnable decay was ln gamma itself


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
            expected[2] = -(2.0**-10) * math.exp(79.5)  # not an end
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


# What stands in the folder


def test_another_configuration_is_not_overwritten(tmp_path):
    save_tiny(tmp_path)
    with pytest.raises(FileExistsError, match=r"another configuration \(norm = 'layer', not 'rms'"):
        make_model(norm="rms").save(tmp_path)
    assert retnet.load(tmp_path).config == make_config()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_foreign_files_are_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text('{"model_type": "other"}')
    with pytest.raises(FileExistsError, match="not replaced"):
        save_tiny(tmp_path)
    assert names(tmp_path) == [name]


def test_a_first_save_cut_short_is_replaced(tmp_path):
    (save_tiny(tmp_path, norm="rms") / "model.safetensors").unlink()
    save_tiny(tmp_path)
    assert retnet.load(tmp_path).config == make_config()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    old = make_model()
    old.save(tmp_path)
    new = make_model()
    with torch.no_grad():
        new.norm.weight.add_(1)
    size = (tmp_path / "model.safetensors").stat().st_size
    with full_disk(size // 2), pytest.raises(OSError, match=r"model.safetensors: could not be wri"):
        new.save(tmp_path)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    assert torch.equal(retnet.load(tmp_path).norm.weight, old.norm.weight)
    new.save(tmp_path)
    assert torch.equal(retnet.load(tmp_path).norm.weight, new.norm.weight)


def test_a_flush_that_fails_after_the_rename_says_so(tmp_path, monkeypatch):
    flush = os.fsync

    def fail_on_folders(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(5, "Input/output error")
        flush(handle)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    state = make_config().make_state(3)
    with pytest.raises(OSError, match=r"state: was replaced, but a power cut may undo it: .*Input"):
        state.save(tmp_path / "state")
    assert RetNetState.load(tmp_path / "state").positions.tolist() == [0, 0, 0]


def test_parts_of_killed_processes_go_and_those_of_others_stay(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    for number in (child, os.getppid(), 10**30):
        (tmp_path / f"state.{number}.part").touch()
    make_config().make_state(3).save(tmp_path / "state")
    assert names(tmp_path) == ["state", f"state.{os.getppid()}.part"]


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """A child process is stopped (os._exit) before its n-th fsync or rename."""
    model = make_model()
    steps = {"fsync": os.fsync, "replace": os.replace}
    for n in range(20):
        model.save(tmp_path)
        child = os.fork()
        if child == 0:
            count = iter(range(100))

            def dying(real, count=count, n=n):
                return lambda *args: os._exit(1) if next(count) == n else real(*args)

            for name, real in steps.items():
                setattr(os, name, dying(real))
            model.norm.weight.data.add_(1)
            model.save(tmp_path)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        moved = retnet.load(tmp_path).norm.weight.detach() - model.norm.weight.detach()
        expected = torch.full_like(moved, float(n >= 2))  # fsync and rename lie behind it
        torch.testing.assert_close(moved, expected)
        if ended == 0:
            break
    assert n == 3  # fsync, replace, fsync of the folder


# The decoding state


def test_state_round_trip(tmp_path, device):
    model = make_model(torch.float32).to(device)
    ids = random_ids(2, 12).to(device)
    whole = model(ids).logits[:, 8:]
    model(ids[:, :8]).state.detach().save(tmp_path / "state")
    state = RetNetState.load(tmp_path / "state", device)
    (tmp_path / "state").unlink()
    assert state.positions.tolist() == [8, 8] and state.retention.device.type == device.type
    torch.testing.assert_close(model(ids[:, 8:], state=state).logits, whole)


@pytest.mark.parametrize(
    "tensors, metadata, message",
    [
        ({"retention": torch.ones(1, 2, 3, 4, 6)}, {}, r"retention and positions, got \['ret"),
        ({"a": torch.ones(1)}, {}, r"must hold the tensors retention and positions, got \['a'\]"),
        (
            {"retention": torch.ones(1, 2, 3, 4, 6), "positions": torch.ones(3).long()},
            {},
            r"got \[1, 2, 3, 4, 6\] float32 and \[3\] int64",
        ),
        (
            {"retention": torch.ones(1, 2, 3, 4, 6).half(), "positions": torch.ones(2).long()},
            {},
            r"float16 and \[2\] int64",
        ),
        ({"a": torch.ones(1)}, {"format_version": "2"}, "format_version must be <= 1, got 2"),
        ({"a": torch.ones(1)}, {"format_version": "x"}, "format_version must be <= 1, got x"),
    ],
    ids=["missing", "foreign", "batch", "dtype", "newer", "version"],
)
def test_bad_state(tensors, metadata, message, tmp_path):
    save_file(tensors, tmp_path / "state", metadata)
    with pytest.raises(ValueError, match=message):
        RetNetState.load(tmp_path / "state")


@pytest.mark.parametrize(
    "state, message",
    [
        (RetNetState(torch.ones(1, 2, 3, 4, 6), torch.ones(3).long()), r"and \[3\] int64"),
        (RetNetState(torch.ones(1, 2, 3, 4, 6).half(), torch.ones(2).long()), "float16"),
    ],
    ids=["batch", "dtype"],
)
def test_a_state_that_cannot_be_read_is_not_written(state, message, tmp_path):
    with pytest.raises(ValueError, match=f"state: must hold retention .*{message}"):
        state.save(tmp_path / "state")
    assert names(tmp_path) == []


def test_truncated_state(tmp_path):
    make_config().make_state(3).save(tmp_path / "state")
    truncate(tmp_path / "state", 200)
    with pytest.raises(ValueError, match="state: must be a whole safetensors file"):
        RetNetState.load(tmp_path / "state")
    with pytest.raises(FileNotFoundError, match="none: no such file"):
        RetNetState.load(tmp_path / "none")
