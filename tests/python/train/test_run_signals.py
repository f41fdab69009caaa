# SPDX-License-Identifier: Apache-2.0
"""A run reacts to signals."""

import os
import pty
import signal
import sys
import time

import pytest

import retnet
from retnet.training.trainer import Trainer, train
from support.cases.cli import run
from support.cases.train import make_trainer

pytestmark = pytest.mark.usefixtures("one_thread")

HUP, TERM, INT = signal.SIGHUP, signal.SIGTERM, signal.SIGINT
SAVED = {
    "twice": ([HUP, HUP], HUP),
    "then SIGTERM": ([HUP, TERM], HUP),
    "after SIGTERM": ([TERM, HUP], TERM),
}


def signalled(folder, numbers):
    """Returns a trainer that gets signals in the second of its five steps."""
    trainer = make_trainer(folder, steps=5)
    step = trainer.step

    def interrupted():
        step()
        for number in numbers if trainer.steps == 2 else ():
            os.kill(os.getpid(), number)

    trainer.step = interrupted
    return trainer


@pytest.mark.parametrize("numbers, result", SAVED.values(), ids=SAVED)
def test_a_closing_terminal_saves(numbers, result, tmp_path):
    assert train(signalled(tmp_path, numbers)) == result
    assert retnet.checkpoint.read_metadata(tmp_path)["step"] == "2"


@pytest.mark.parametrize("numbers", [[TERM, INT], [HUP, INT, TERM]])
def test_a_second_signal_still_raises(numbers, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(signalled(tmp_path, numbers))


def test_nohup_goes_on(tmp_path):
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        assert train(signalled(tmp_path, [HUP])) == 0
        assert signal.getsignal(HUP) == signal.SIG_IGN
    finally:
        signal.signal(HUP, before)
    assert retnet.checkpoint.read_metadata(tmp_path)["step"] == "5"


def test_a_terminal_that_closes_leaves_a_run_to_resume(command, tmp_path):
    """Output fails from then on. The run is saved and ends as after any other signal."""
    process, terminal = pty.fork()
    if process == 0:
        result = 99
        try:
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115

            def step(trainer):  # the threads of autograd do not survive a fork
                time.sleep(0.01)
                trainer.steps += 1

            Trainer.step = step
            code = run(*command, "--steps", 10_000)
            sys.stdout.flush()  # as Python does at exit
            sys.stderr.flush()
            result = code
        finally:
            os._exit(result)
    said = b""
    while b"held out" not in said:
        said += os.read(terminal, 100)
    time.sleep(0.2)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 128 + HUP
    assert 0 < int(retnet.checkpoint.read_metadata(tmp_path / "run")["step"]) < 10_000
