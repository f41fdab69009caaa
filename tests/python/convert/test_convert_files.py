# SPDX-License-Identifier: Apache-2.0
"""`retnet convert` refuses files that are not checkpoints or that it does not support."""

import os
import pickle
import re

import pytest
import torch

from retnet.cli import main
from support.cases.convert import OPTIONS
from support.references import torchscale_v1 as v1

pytestmark = pytest.mark.usefixtures("one_thread")


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
