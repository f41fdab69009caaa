# SPDX-License-Identifier: Apache-2.0
"""How the demo trains, and what it reads from the log of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from retnet.evaluation import evaluate
from retnet.nn import RetNetForCausalLM
from retnet.settings import Settings
from retnet.text import as_tokens

__all__ = ["Point", "bits_per_byte", "read_curve", "settings_for"]


class Point(NamedTuple):
    """One point of the curve: seconds and tokens so far, bits per byte in training, held out."""

    seconds: float
    tokens: int
    train_bits: float
    held_out_bits: float


def settings_for(minutes: float, out: Path) -> Settings:
    """Returns the recipe of the demo."""
    return Settings(
        out=str(out),
        minutes=minutes,
        batch=4,
        length=256,
        lr=4e-3,
        warmup=0.03,
        weight_decay=0.1,
        betas=(0.9, 0.95),
        clip=1.0,
        save_every=30.0,
        check_every=15.0,
    )


def read_curve(log: Path) -> list[Point]:
    """Returns the checks of a run, from its log.jsonl."""
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
    """Mean -log2 p over every byte but the first of each file, all bytes before it as context."""
    score = evaluate(model, list(map(as_tokens, files)), progress="held-out files")
    return score.loss / math.log(2)
