# SPDX-License-Identifier: Apache-2.0
"""What a training saves in order to continue, what is refused, and what a failure leaves."""

import functools
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.cases import train as cases_train
from support.cases.train import DOCUMENTS, full_disk, make_byte_model, make_trainer, run

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = {"windows": {}, "stream": {"stream": True}, "accumulated": {"grad_accum_steps": 2}}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())
def test_checkpoint_resumes_exactly(settings, tmp_path):
    losses = run(make_trainer(**settings), 8)
    first = make_trainer(tmp_path, **settings)
    assert run(first, 3) == losses[:3]
    first.seconds = 12.5
    first.save()
    second = make_trainer(tmp_path, **settings)
    torch.manual_seed(9)
    with torch.no_grad():
        second.model.norm.weight.fill_(5)
    second.load()
    assert second.seconds == 12.5 and second.steps == 3
    assert torch.equal(torch.get_rng_state(), torch.load(
        tmp_path / "training-3.pt", weights_only=True)["random"])  # fmt: skip
    assert run(second, 5) == losses[3:]
    assert second.tokens == 8 * 2 * 32 * settings.get("grad_accum_steps", 1)
    second.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "training-8.pt",
    ]  # fmt: skip


def die_before_call(n, *names):
    """Ends the process before the n-th call of these functions of os."""
    count = iter(range(1000))
    for name in names:

        def call(*args, real=None, **options):
            return os._exit(1) if next(count) == n else real(*args, **options)

        setattr(os, name, functools.partial(call, real=getattr(os, name)))


def test_a_kill_at_any_moment_of_a_save_leaves_a_run_to_resume(tmp_path):
    """A child process is stopped (os._exit) before its n-th fsync or rename, or finishes its
    save.
    """
    losses = run(make_trainer(), 6)
    found = []
    for n in range(20):
        first = make_trainer(tmp_path)
        run(first, 2)
        first.save()
        # The parent runs these steps. autograd's threads, which other tests may have started, do
        # not survive the fork.
        run(first, 2)
        child = os.fork()
        if child == 0:
            die_before_call(n, "fsync", "replace", "unlink")
            first.save()
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        second = make_trainer(tmp_path)
        second.load()
        found.append(second.steps)
        assert run(second, 2) == losses[found[-1] : found[-1] + 2]
        if ended == 0:
            break
    assert found == sorted(found) and set(found) == {2, 4} and len(found) > 5
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("limit", [300, 20_000, 45_000])
def test_a_full_disk_leaves_a_run_to_resume(limit, tmp_path):
    """The disk fills up in model.safetensors (29 kB) or in training-4.pt (60 kB)."""
    losses = run(make_trainer(), 6)
    first = make_trainer(tmp_path)
    run(first, 2)
    first.save()
    run(first, 2)
    with full_disk(limit), pytest.raises(OSError, match="could not be written; any old file is u"):
        first.save()
    assert not list(tmp_path.glob("*.part"))
    second = make_trainer(tmp_path)
    second.load()
    assert second.steps == 2 and run(second, 4) == losses[2:]


def test_a_run_of_an_older_version_goes_on(tmp_path, monkeypatch):
    """Its learnable decay was ln gamma, and the moments of Adam were those of its gradient."""
    monkeypatch.setitem(cases_train.MODEL, "learnable_decay", True)
    key, parameter = "layers.0.retention.log_decay", "layers.0.retention.log_decay_raw"
    first = make_trainer(tmp_path)
    run(first, 3)
    first.save()
    for version, kept in ((2, True), (1, False)):
        if version == 1:
            weights = load_file(tmp_path / "model.safetensors")
            weights[key] = first.model.layers[0].retention.log_decay.detach()
            del weights[parameter]
            save_file(weights, tmp_path / "model.safetensors", {"step": "3"})
            damage(tmp_path / "training-3.pt", lambda data: data.update(format_version=1))
        second = make_trainer(tmp_path)
        second.load()
        raw = second.model.get_parameter(parameter)
        torch.testing.assert_close(raw, first.model.get_parameter(parameter), rtol=0, atol=1e-6)
        assert (raw in second.optimizer.state) == kept
        others = [p for p in second.model.parameters() if p is not raw]
        assert all(len(second.optimizer.state[p]) == 3 for p in others)
        before = raw.detach().clone()
        run(second, 2)
        assert 0 < (raw - before).abs().max() < 0.1
    second.save()
    assert parameter in load_file(tmp_path / "model.safetensors")


def damage(path, edit):
    data = torch.load(path, weights_only=True)
    edit(data)
    torch.save(data, path)


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


BAD = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:5000]), {}, "must be a whole training"),
    "empty": (lambda p: p.write_bytes(b""), {}, "must be a whole train"),
    "code": (lambda p: p.write_bytes(pickle.dumps(Evil(), 2)), {}, "must be a whole train"),
    "foreign": (lambda p: torch.save({"a": 1}, p), {}, "must be a training state of retnet"),
    "newer": (
        lambda p: damage(p, lambda data: data.update(format_version=3)),
        {},
        "format_version must be <= 2, got 3",
    ),
    "no optimizer": (
        lambda p: damage(p, lambda data: data.pop("optimizer")),
        {},
        "training-0.pt: must be a training state of retnet, its optimizer is missing",
    ),
    "no steps": (lambda p: damage(p, lambda data: data.pop("steps")), {}, "its steps is missing"),
    "random": (
        lambda p: damage(p, lambda data: data.update(random=torch.ones(3))),
        {},
        r"its random is of another kind \(Tensor\)",
    ),
    "random size": (
        lambda p: damage(p, lambda data: data.update(random=torch.ones(3).byte())),
        {},
        r"training-0\.pt: .*RNG state size to be 3",
    ),
    "generator": (
        lambda p: damage(p, lambda data: data.update(batches={"generator": "x"})),
        {},
        "training-0.pt: batch_size or model differs from the run that is resumed",
    ),
    "seed": (None, {"seed": 5}, r"seed must be that of the run \(0\), got 5"),
    "data": (
        None,
        {"documents": DOCUMENTS[:3]},
        "the text in data has changed since the run began",
    ),
    "stream": (None, {"stream": True}, "stream must be that of the run"),
}


@pytest.mark.parametrize("edit, changes, message", BAD.values(), ids=BAD.keys())
def test_bad_training_state(edit, changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(tmp_path).save()
    if edit:
        edit(tmp_path / "training-0.pt")
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **changes).load()
    assert not (tmp_path / "evil").exists()


def test_a_state_without_a_seed_resumes(tmp_path):
    make_trainer(tmp_path).save()
    damage(tmp_path / "training-0.pt", lambda data: data.pop("seed"))
    make_trainer(tmp_path, seed=5).load()


def test_resumed_optimizer_takes_the_settings(tmp_path):
    first = make_trainer(tmp_path)
    first.step()
    first.save()
    second = make_trainer(tmp_path, betas=(0.5, 0.6), weight_decay=0.25)
    second.load()
    matrices, vectors = second.optimizer.param_groups
    assert matrices["betas"] == vectors["betas"] == (0.5, 0.6)
    assert matrices["weight_decay"] == 0.25 and vectors["weight_decay"] == 0
    assert second.optimizer.state[matrices["params"][0]]["step"] == 1


def test_a_stream_resumes_with_its_batch_only(tmp_path):
    make_trainer(tmp_path, stream=True).save()
    message = r"batch_size or model differs .* \(its state holds 2 sequences, got 3\)"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, stream=True, batch_size=3).load()
    with pytest.raises(ValueError, match="stream must be that of the run"):
        make_trainer(tmp_path).load()


def test_no_training_state(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        trainer.load()
    trainer.model.save(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds a model but no training state"):
        trainer.load()
    trainer.save()
    (tmp_path / "training-0.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"training-0\.pt: no such file"):
        trainer.load()


def test_checkpoint_of_another_model(tmp_path):
    trainer = make_trainer(tmp_path)
    make_byte_model(norm="rms").save(tmp_path)
    with pytest.raises(FileExistsError, match="another configuration"):
        trainer.save()
    other = make_trainer(tmp_path / "other")
    other.model = make_byte_model(norm="rms")
    other.save()
    with pytest.raises(ValueError, match="must hold the model of the settings"):
        make_trainer(tmp_path / "other").load()
