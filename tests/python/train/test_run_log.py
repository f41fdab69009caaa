# SPDX-License-Identifier: Apache-2.0
"""The log of a run that is resumed."""

import pytest

import retnet
from retnet.training.trainer import train
from support.cases.train import make_trainer, steps

pytestmark = pytest.mark.usefixtures("one_thread")

DAMAGES = {
    "as it was": (lambda log: log, [1, 2, 3, 4, 5], False),
    "lines behind it": (lambda log: log + b'{"step": 4, "loss": 1}\n{"st', [1, 2, 3, 4, 5], False),
    "last newline": (lambda log: log[:-1], [1, 2, 4, 5], True),
    "amid a line": (lambda log: log[:-9], [1, 2, 4, 5], True),
    "a whole line": (lambda log: log[: log[:-1].rindex(b"\n") + 1], [1, 2, 4, 5], True),
    "zeros": (lambda log: log[:-20] + bytes(20), [1, 2, 4, 5], True),
    "first line": (lambda log: log[:5], [4, 5], True),
    "empty": (lambda log: b"", [4, 5], True),
    "one long line": (lambda log: b"x" * 200_000, [4, 5], True),
}


@pytest.mark.parametrize("damage, left, is_told", DAMAGES.values(), ids=DAMAGES)
def test_a_resumed_log_holds_whole_lines(damage, left, is_told, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(retnet.training.log, "_BLOCK", 16)  # later lines are longer
    assert train(make_trainer(tmp_path, steps=3)) == 0
    log = tmp_path / "log.jsonl"
    log.write_bytes(damage(log.read_bytes()))
    capsys.readouterr()
    again = make_trainer(tmp_path, steps=5)
    again.load()
    assert train(again) == 0
    assert steps(tmp_path) == left
    said = capsys.readouterr().err
    assert (f"retnet: warning: {log}: lines are missing at its end: " in said) == is_told
    last = make_trainer(tmp_path, steps=6)
    last.load()
    assert train(last) == 0 and steps(tmp_path) == [*left, 6]
    assert "missing" not in capsys.readouterr().err


def test_what_follows_a_training_keeps_its_log(tmp_path):
    """A manual save after the end, and more steps by the same trainer, keep the log."""
    trainer = make_trainer(tmp_path, steps=3)
    assert train(trainer) == train(trainer) == 0
    trainer.save()
    again = make_trainer(tmp_path, steps=5)
    again.load()
    assert train(again) == 0 and steps(tmp_path) == [1, 2, 3, 4, 5]


def test_more_steps_after_an_interruption_keep_the_lines_before_it(tmp_path):
    trainer = make_trainer(tmp_path, steps=5)
    step = trainer.step

    def interrupted():
        step()
        if trainer.steps == 2:
            raise KeyboardInterrupt

    trainer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    assert train(trainer) == 0 and steps(tmp_path) == [1, 2, 3, 4, 5]
