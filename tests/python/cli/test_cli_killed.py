# SPDX-License-Identifier: Apache-2.0
"""The command `retnet`: a run that was killed continues."""

import signal
import subprocess
import time

import pytest
import torch

import retnet
from support.cases.cli import losses, run, start

pytestmark = pytest.mark.usefixtures("one_thread")


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


KINDS = {
    "windows": (),
    "stream": ("--stream", "--grad_accum_steps", "2"),
    "bfloat16": ("--precision", "bfloat16"),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kill_9_and_resume_gives_the_losses_of_a_straight_run(kind, folder):
    steps = ("--steps", 60)
    assert run("train", folder / "run.toml", "--out", folder / "straight", *steps, *kind) == 0
    straight, cut = losses(folder / "straight"), []
    (folder / "run").mkdir()  # --resume starts a run in a folder without a checkpoint
    command = ("train", folder / "run.toml", "--save_every", 0, "--resume", *steps, *kind)
    weights, log = folder / "run" / "model.safetensors", folder / "run" / "log.jsonl"
    for least in (5, 20):
        process = start(*command)
        wait_for(lambda least=least: weights.exists() and len(losses(folder / "run")) > least)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        retnet.load(folder / "run")
        cut.append(int(retnet.checkpoint.read_metadata(folder / "run")["step"]))
    assert 5 <= cut[0] < cut[1] < 60 and log.exists()
    assert run(*command) == 0
    assert losses(folder / "run") == straight and len(straight) == 60
    a, b = retnet.load(folder / "straight"), retnet.load(folder / "run")
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_says_so(number, folder):
    options = ("--steps", 9999, "--save_every", 0)
    process = start("train", "run.toml", *options, cwd=folder, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (folder / "run" / "model.safetensors").exists())
    process.send_signal(number)
    printed = process.communicate()[0]
    assert process.returncode == 128 + number and "Continue with --resume" in printed
    step = int(retnet.checkpoint.read_metadata(folder / "run")["step"])
    assert len(losses(folder / "run")) == step
    assert run("train", folder / "run.toml", "--resume", "--steps", step + 2) == 0
    assert len(losses(folder / "run")) == step + 2
