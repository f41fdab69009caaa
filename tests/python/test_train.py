# SPDX-License-Identifier: Apache-2.0
"""The trainer: the schedule, a step, the carried state, checkpoints, what a failure leaves."""

import functools
import json
import math
import os
import pickle
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import cases_train
import retnet
from cases_train import DOCUMENTS, TEXT, full_disk, make_byte_model, make_trainer
from retnet.training.settings import TrainingSettings
from retnet.training.text import as_tokens
from retnet.training.trainer import train


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine two threads wait for each other longer than these models compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(trainer, steps):
    """The losses of some steps."""
    losses = []
    trainer.log = type("Log", (), {"write": lambda _, step, **values: losses.append(values)})()
    for _ in range(steps):
        trainer.step()
    trainer.log = None
    return [values["loss"] for values in losses]


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# A step


def test_learning_rate():
    settings = TrainingSettings(out="x", steps=1, lr=2.0, warmup=0.1)
    assert [settings.rate(x) for x in (0.0, 1.0, 1.5)] == [0, 0, 0]
    assert settings.rate(0.05) == pytest.approx(1.0, abs=0.02)
    assert settings.rate(0.5) == pytest.approx(1.0)
    assert max(settings.rate(i / 1000) for i in range(1000)) <= 2.0
    assert TrainingSettings(out="x", steps=1, lr=2.0, warmup=0).rate(0.0) == 2.0


def test_training_learns():
    trainer = make_trainer(batch_size=4, lr=2e-2, steps=80, validation=[as_tokens(TEXT[:200])])
    before = trainer.check()
    losses = run(trainer, 80)
    assert before > 5 and trainer.check() < 2 and losses[-1] < 2
    assert trainer.tokens == 80 * 4 * 32 and trainer.progress == 1
    assert trainer.loss == pytest.approx(losses[-1], abs=0.5)


def test_checkpointed_layers_change_nothing():
    losses = []
    for on in (False, True):
        trainer = make_trainer(checkpoint_layers=on)
        assert trainer.model.checkpoint_layers == on
        losses.append(run(trainer, 4))
    assert losses[0] == losses[1]


def test_step_is_adamw_on_the_clipped_mean_gradient():
    trainer = make_trainer(grad_accum_steps=2, clip=0.1, steps=4, warmup=0)
    model = make_byte_model()
    source = make_trainer()  # the same draw
    batches = [source.batches.next() for _ in range(2)]
    ids = torch.cat([batch.inputs for batch in batches])
    loss = model(ids, labels=ids).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert norm > 0.1
    rate = 1e-2 * 0.5 * (1 + math.cos(math.pi / 8))  # amid the first of four steps
    for p in model.parameters():
        # The first step of Adam: g / (|g| + eps). Decay on matrices only.
        p.data -= rate * (p.grad / (p.grad.abs() + 1e-8) + (0.1 * p if p.dim() > 1 else 0))
    assert run(trainer, 1) == pytest.approx([loss.item()])
    for a, b in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_bfloat16_is_autocast_and_weights_stay_float32(monkeypatch):
    trainer = make_trainer(precision="bfloat16", stream=True, validation=DOCUMENTS[:2])
    dtypes = []
    trainer.model.lm_head.register_forward_hook(lambda *call: dtypes.append(call[-1].dtype))
    losses = [*run(trainer, 3), trainer.check()]
    assert all(map(math.isfinite, losses)) and set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.state.retention.dtype == torch.float32


def test_a_stream_sees_the_whole_document_but_no_gradient_from_before():
    trainer = make_trainer(stream=True, batch_size=3, seq_len=16)
    model = trainer.model.double()
    trainer.state = model.config.make_state(3, dtype=torch.float64)
    documents = list(map(bytes, (ids.tolist() for ids in DOCUMENTS)))
    read = [b""] * 3
    for _ in range(12):
        batch = trainer.batches.next()
        loss = trainer._forward(batch)
        assert not trainer.state.retention.requires_grad
        want = 0.0
        for row in range(3):
            known = batch.targets[row] != -100
            new = bytes(batch.inputs[row][known].tolist())
            read[row] = new if batch.fresh[row] else read[row] + new
            assert any(text.startswith(read[row]) for text in documents)
            ids = torch.tensor([list(read[row])])
            logits = model(ids).logits[0, -len(new) :]
            want += F.cross_entropy(logits, batch.targets[row][known], reduction="sum").item()
        assert loss.item() == pytest.approx(want, rel=1e-9)
    assert max(map(len, read)) > 60


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.step()
    trainer.save()
    saved = retnet.load(tmp_path)
    trainer._forward = lambda batch: trainer.model(batch.inputs).logits.sum() * math.nan
    with pytest.raises(ValueError, match="must be finite, got nan and a norm of nan in step 2"):
        train(trainer)
    for a, b in zip(trainer.model.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_tokens_and_too_little_text():
    documents = [torch.tensor([3, 256, 5], dtype=torch.int32)]
    with pytest.raises(ValueError, match=r"ids must be in 0\.\.255 \(vocab_size\), got 256"):
        make_trainer(documents=documents)
    with pytest.raises(ValueError, match=r"ids must be in 0\.\.255 \(vocab_size\), got 256"):
        make_trainer(validation=documents)
    with pytest.raises(ValueError, match="must hold two tokens or more, got none"):
        make_trainer(documents=[as_tokens(b"a"), as_tokens(b"")])
    with pytest.raises(ValueError, match="must hold seq_len = 32 tokens or more, got 2"):
        make_trainer(documents=[as_tokens(b"ab")])


# Checkpoints

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
    """A child is stopped (os._exit) before its n-th fsync or rename, or ends its save."""
    losses = run(make_trainer(), 6)
    found = []
    for n in range(20):
        first = make_trainer(tmp_path)
        run(first, 2)
        first.save()
        run(first, 2)  # here: autograd's threads, which other tests may have started, do not fork
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
    with full_disk(limit), pytest.raises(OSError, match="could not be written, nothing was repl"):
        first.save()
    assert not list(tmp_path.glob("*.part"))
    second = make_trainer(tmp_path)
    second.load()
    assert second.steps == 2 and run(second, 4) == losses[2:]


def test_a_run_of_an_older_version_goes_on(tmp_path, monkeypatch):
    """There a learnable decay was ln gamma, and Adam's moments were those of its gradients."""
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
        "training-0.pt: stream, batch_size and model must be those of the run",
    ),
    "seed": (None, {"seed": 5}, r"seed must be that of the run \(0\), got 5"),
    "data": (None, {"documents": DOCUMENTS[:3]}, "data must be what the run began with"),
    "stream": (None, {"stream": True}, "stream, batch_size and model must be those of the run"),
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
    with pytest.raises(ValueError, match=r"must be those of the run \(another batch_size\)"):
        make_trainer(tmp_path, stream=True, batch_size=3).load()
    with pytest.raises(ValueError, match=r"must be those of the run"):
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


# The loop


def test_loop_logs_checks_and_saves(tmp_path):
    trainer = make_trainer(
        tmp_path, steps=5, save_every=0, check_every=0, validation=[as_tokens(TEXT)]
    )
    saved = []
    save = trainer.save
    trainer.save = lambda: [saved.append(trainer.steps), save()]
    assert train(trainer) == 0
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "validation_loss" in line] == [1, 2, 3, 4, 5]
    assert saved == [1, 2, 3, 4, 5]
    assert lines[-2]["lr"] == pytest.approx(trainer.settings.rate(0.9))
    assert retnet.load(tmp_path).config == trainer.model.config
    assert train(trainer) == 0  # nothing is left to do
    assert trainer.steps == 5


def test_resumed_log_continues_at_the_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, steps=6)
    log = trainer.open_log()
    for _ in range(2):
        trainer.step()
    trainer.save()
    trainer.step()
    log._file.write(b'{"step": 4, "lo')  # the end of a killed run
    log.close()
    assert [line["step"] for line in map(json.loads, (tmp_path / "log.jsonl")
            .read_text().splitlines()[:3])] == [1, 2, 3]  # fmt: skip
    again = make_trainer(tmp_path, steps=6)
    again.load()
    assert train(again) == 0
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_minutes_count_over_all_parts(tmp_path):
    first = make_trainer(tmp_path, steps=0, minutes=0.01)
    assert train(first) == 0
    assert first.progress >= 1 and first.seconds >= 0.6
    second = make_trainer(tmp_path, steps=0, minutes=10)
    second.load()
    second.seconds = 599.8
    start = time.monotonic()
    assert train(second) == 0
    assert time.monotonic() - start < 15 and second.seconds >= 600


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_saves(number, tmp_path):
    trainer = make_trainer(tmp_path, steps=100)
    step, before = trainer.step, signal.getsignal(number)

    def interrupted():
        step()
        if trainer.steps == 4:
            os.kill(os.getpid(), number)

    trainer.step = interrupted
    assert train(trainer) == number
    assert trainer.steps == 4 and signal.getsignal(number) is before
    again = make_trainer(tmp_path, steps=100)
    again.load()
    assert again.steps == 4


def test_second_signal_raises(tmp_path):
    trainer = make_trainer(tmp_path)

    def impatient():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    trainer.step = impatient
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
