# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint does to a folder that is not empty, and what a failed write leaves."""

import os

import pytest
import torch

import retnet
from retnet import RetNetState
from support.cases.checkpoint import names, save_tiny
from support.cases.nn import make_config, make_model
from support.cases.train import full_disk


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
        expected = torch.full_like(moved, float(n >= 2))  # it has passed fsync and rename
        torch.testing.assert_close(moved, expected)
        if ended == 0:
            break
    assert n == 3  # fsync, replace, fsync of the folder
