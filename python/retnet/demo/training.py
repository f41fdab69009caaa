# SPDX-License-Identifier: Apache-2.0
"""The text and the settings of the demo, and the curve from the log of its run."""

from __future__ import annotations

import json
import math
import sysconfig
from pathlib import Path
from typing import NamedTuple

from retnet.nn import RetNetForCausalLM
from retnet.training import TrainingSettings
from retnet.training.evaluation import evaluate
from retnet.training.text import as_tokens

__all__ = ["Corpus", "Point", "bits_per_byte", "load_corpus", "read_curve", "settings_for"]

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Corpus(NamedTuple):
    """Files to train on and held-out files, each as its bytes."""

    train: list[bytes]
    held_out: list[bytes]


def load_corpus(root: Path | None = None) -> Corpus:
    """Reads every *.py under `root`, without installed packages and tests.

    Files of less than two bytes have nothing to predict and are dropped. The rest are sorted by
    path, and every tenth one is held out.

    Args:
        root: the folder. None means the standard library of the running Python.

    Raises:
        FileNotFoundError: there are fewer than ten files.
    """
    if root is None:
        root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts)
    )
    texts = [text for text in (path.read_bytes() for path in paths) if len(text) > 1]
    if len(texts) < 10:
        raise FileNotFoundError(f"corpus: {root} must hold 10 *.py files or more, got {len(texts)}")
    held_out = texts[9::10]
    del texts[9::10]
    return Corpus(texts, held_out)


class Point(NamedTuple):
    """A point of the curve: seconds and tokens so far, bits per byte in training and held out."""

    seconds: float
    tokens: int
    train_bits: float
    held_out_bits: float


def settings_for(minutes: float, out: Path) -> TrainingSettings:
    """Returns the settings of the demo."""
    return TrainingSettings(
        out=str(out),
        minutes=minutes,
        batch_size=4,
        seq_len=256,
        lr=4e-3,
        warmup=0.03,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        clip=1.0,
        save_every=30.0,
        check_every=15.0,
    )


def read_curve(log: Path) -> list[Point]:
    """Returns the validations of a run from its log.jsonl."""
    lines = map(json.loads, log.read_text().splitlines())
    bit = math.log(2)
    return [
        Point(
            line["seconds"],
            line["tokens"],
            line["smoothed_loss"] / bit,
            line["validation_loss"] / bit,
        )
        for line in lines
        if "validation_loss" in line
    ]


def bits_per_byte(model: RetNetForCausalLM, files: list[bytes]) -> float:
    """Returns the mean of -log2 p over every byte except the first of each file.

    The context of a byte is all bytes before it in the file.
    """
    score = evaluate(model, list(map(as_tokens, files)), progress="held-out files")
    return score.loss / math.log(2)
