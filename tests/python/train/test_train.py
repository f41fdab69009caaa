# SPDX-License-Identifier: Apache-2.0
"""retnet.training.trainer: the schedule, a step, the carried state, and the loop."""

import json
import math
import os
import signal
import time

import pytest
import torch
from torch.nn import functional as F

import retnet
from retnet.training.settings import TrainingSettings
from retnet.training.text import as_tokens
from retnet.training.trainer import train
from support.cases.train import DOCUMENTS, TEXT, make_byte_model, make_trainer, read_log, run

pytestmark = pytest.mark.usefixtures("one_thread")


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
    source = make_trainer()  # the same random numbers
    batches = [source.batches.next() for _ in range(2)]
    ids = torch.cat([batch.inputs for batch in batches])
    loss = model(ids, labels=ids).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    assert norm > 0.1
    rate = 1e-2 * 0.5 * (1 + math.cos(math.pi / 8))  # within the first of four steps
    for p in model.parameters():
        # The first step of Adam is g / (|g| + eps). Only matrices have weight decay.
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
    with pytest.raises(ValueError, match="must hold at least two tokens, got none"):
        make_trainer(documents=[as_tokens(b"a"), as_tokens(b"")])
    with pytest.raises(ValueError, match="must hold at least seq_len = 32 tokens, got 2"):
        make_trainer(documents=[as_tokens(b"ab")])


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
    log._file.write(b'{"step": 4, "lo')  # the log of a killed run ends so
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
