# SPDX-License-Identifier: Apache-2.0
"""Training against the clock: random windows, AdamW, checkpoints, a progress bar."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from retnet.config import RetNetConfig
from retnet.demo.corpus import as_tokens
from retnet.nn import RetNetForCausalLM

__all__ = ["Point", "Recipe", "Trainer", "bits_per_byte", "train_for"]

_CHECK_EVERY_S = 15.0
_SAVE_EVERY_S = 30.0
_WINDOW = 512
_SEGMENT = 8192


@dataclass(frozen=True)
class Recipe:
    """How the demo trains. `warmup` is a fraction of the time, `batch` counts windows."""

    batch: int = 4
    length: int = 256
    lr: float = 4e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.03
    clip: float = 1.0

    def rate(self, progress: float) -> float:
        """Learning rate at `progress` in 0..1 of the time: linear rise, then half a cosine."""
        fall = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.lr * min(progress / self.warmup, 1.0) * fall


class Point(NamedTuple):
    """One point of the curve: seconds and tokens so far, bits per byte in training, held out."""

    seconds: float
    tokens: int
    train_bits: float
    held_out_bits: float


class Trainer:
    """A model, its optimizer and all that a checkpoint must hold to go on.

    Args:
        model: what to train.
        text: [N] uint8, the training files in one string.
        windows: [W, 512] uint8, held-out text for the curve.
        recipe: how to train.
    """

    def __init__(
        self, model: RetNetForCausalLM, text: Tensor, windows: Tensor, recipe: Recipe
    ) -> None:
        self.model = model
        self.text = text
        self.windows = windows.long()
        self.recipe = recipe
        matrices = [p for p in model.parameters() if p.dim() > 1]
        vectors = [p for p in model.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.generator = torch.Generator().manual_seed(0)
        self.tokens = 0
        self.seconds = 0.0
        self.train_bits = math.nan
        self.curve: list[Point] = []

    def step(self, progress: float) -> None:
        """One update on `batch` random windows; `progress` in 0..1 sets the learning rate."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(progress)
        last = len(self.text) - recipe.length
        starts = torch.randint(last + 1, (recipe.batch, 1), generator=self.generator)
        ids = self.text[starts + torch.arange(recipe.length)].long()
        loss = self.model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        bits = loss.item() / math.log(2)
        smoothed = 0.95 * self.train_bits + 0.05 * bits
        self.train_bits = bits if math.isnan(self.train_bits) else smoothed
        self.tokens += ids.numel()

    @torch.no_grad()
    def check(self) -> None:
        """Adds a point to the curve."""
        loss = self.model(self.windows, labels=self.windows).loss
        held_out_bits = loss.item() / math.log(2)
        self.curve.append(Point(self.seconds, self.tokens, self.train_bits, held_out_bits))

    def save(self, path: Path) -> None:
        """Writes a checkpoint; a crash on the way leaves the old one whole."""
        data = {
            "config": self.model.config.to_json(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "train_bits": self.train_bits,
            "curve": [tuple(point) for point in self.curve],
        }
        part = path.with_name(path.name + ".part")
        torch.save(data, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            ValueError: the checkpoint is of another model.
        """
        data: dict[str, Any] = torch.load(path, weights_only=True)
        if RetNetConfig.from_json(data["config"]) != self.model.config:
            raise ValueError(f"{path}: must hold the demo's model, got {data['config']}")
        self.model.load_state_dict(data["model"])
        self.optimizer.load_state_dict(data["optimizer"])
        self.generator.set_state(data["generator"])
        self.tokens, self.seconds = data["tokens"], data["seconds"]
        self.train_bits = data["train_bits"]
        self.curve = [Point(*point) for point in data["curve"]]


def train_for(trainer: Trainer, seconds: float, path: Path) -> bool:
    """Trains until `seconds` are used up, those of earlier runs included.

    Ctrl-C ends it after the step under way. A checkpoint is written every 30 seconds and at the
    end in any case.

    Returns:
        False after Ctrl-C.
    """
    bar = tqdm(
        total=round(seconds),
        initial=round(trainer.seconds),
        bar_format="{percentage:3.0f}% |{bar:24}| {desc}",
    )
    checked = saved = trainer.seconds
    tokens, clock = trainer.tokens, time.monotonic()
    start = clock - trainer.seconds
    with bar, _interrupts() as interrupts:
        while trainer.seconds < seconds and not interrupts:
            trainer.step(trainer.seconds / seconds)
            trainer.seconds = time.monotonic() - start
            speed = (trainer.tokens - tokens) / (time.monotonic() - clock)
            left = max(round(seconds - trainer.seconds), 0)
            bar.set_description_str(
                f"{trainer.train_bits:.3f} bits/byte, {speed:,.0f} tokens/s, "
                f"{left // 60}:{left % 60:02} left",
                refresh=False,
            )
            bar.update(min(round(trainer.seconds), round(seconds)) - bar.n)
            if trainer.seconds - checked >= _CHECK_EVERY_S:
                trainer.check()
                checked = trainer.seconds
            if trainer.seconds - saved >= _SAVE_EVERY_S:
                trainer.save(path)
                saved = trainer.seconds
        trainer.check()
        trainer.save(path)
    return not interrupts


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C in a list instead of raising; a second one raises."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)


def middle_windows(files: list[bytes], length: int = _WINDOW) -> Tensor:
    """The middle `length` bytes of every file that is long enough, [W, length] uint8."""
    long = [text for text in files if len(text) >= length]
    starts = [(len(text) - length) // 2 for text in long]
    return torch.stack(
        [as_tokens(text[s : s + length]) for text, s in zip(long, starts, strict=True)]
    )


@torch.no_grad()
def bits_per_byte(model: RetNetForCausalLM, files: list[bytes]) -> float:
    """Mean -log2 p over every byte but the first of each file, all bytes before it as context.

    A file is read in segments, the state carried from one to the next.
    """
    nats, count = 0.0, 0
    for text in tqdm(files, "held-out files", leave=False):
        ids, state = as_tokens(text).long().unsqueeze(0), None
        for inputs, targets in zip(
            ids[:, :-1].split(_SEGMENT, 1), ids[:, 1:].split(_SEGMENT, 1), strict=True
        ):
            logits, _, state = model(inputs, state=state)
            nats += F.cross_entropy(logits[0], targets[0], reduction="sum").item()
        count += ids.shape[1] - 1
    return nats / count / math.log(2)
