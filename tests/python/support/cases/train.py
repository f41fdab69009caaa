# SPDX-License-Identifier: Apache-2.0
"""A tiny byte model, its text, and a disk that is full, for the tests of training and commands."""

import json
import resource
from contextlib import contextmanager

import torch

from retnet.config import RetNetConfig
from retnet.nn import RetNetForCausalLM
from retnet.training.settings import TrainingSettings
from retnet.training.text import as_tokens
from retnet.training.trainer import Trainer

TEXT = b"the cat sat on the mat, the dog sat on the log. " * 20
MODEL = {
    "embed_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "key_dim": 8,
    "value_dim": 16,
    "ffn_dim": 32,
    "decay": "power2",
}
DOCUMENTS = [as_tokens(TEXT[start : start + 100 + 7 * start]) for start in range(9)]


def make_byte_model(**changes):
    torch.manual_seed(0)
    return RetNetForCausalLM(RetNetConfig.preset("tiny", **{**MODEL, **changes}))


def make_trainer(out="unused", documents=DOCUMENTS, validation=(), **settings):
    defaults = {"batch_size": 2, "seq_len": 32, "lr": 1e-2, "steps": 10, "warmup": 0.1}
    settings = TrainingSettings(out=str(out), **{**defaults, **settings})
    return Trainer(make_byte_model(), settings, documents, validation)


@contextmanager
def full_disk(limit):
    """Limits files to `limit` bytes, so that write(2) fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def run(trainer, steps):
    """Returns the losses of some steps."""
    losses = []
    trainer.log = type("Log", (), {"write": lambda _, step, **values: losses.append(values)})()
    for _ in range(steps):
        trainer.step()
    trainer.log = None
    return [values["loss"] for values in losses]


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def steps(folder):
    """Returns the steps of the log and checks that each line is complete."""
    lines = (folder / "log.jsonl").read_bytes().decode().split("\n")
    assert lines.pop() == ""
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]
