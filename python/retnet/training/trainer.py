# SPDX-License-Identifier: Apache-2.0
"""Trains a model: a step, a loop with a progress bar and a log, and checkpoints to resume from.

The folder of a run holds

- config.json and model.safetensors, which `retnet.load` reads;
- training-STEP.pt, which has everything else that a resumed run needs;
- log.jsonl;
- tensorboard/, if TensorBoard is installed.

model.safetensors names its step and the unit of text that the model reads ("byte" or "token"). A
checkpoint becomes valid when model.safetensors is renamed to its final name. However the program
ends, the last valid checkpoint can be resumed. On a CPU with the same number of threads, the losses
are then bit for bit those of a run that was never stopped.

Only one run at a time writes to a folder. `train` locks the folder (`retnet.training.lock`), and a
second run is refused. `Trainer.save` and `Trainer.open_log` lock it while they write. A training
loop of your own can lock it for the whole run with
`with retnet.training.lock.locked(settings.out):`.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from retnet import checkpoint
from retnet._files import replace_file
from retnet.nn import RetNetForCausalLM
from retnet.nn.loss import IGNORE_INDEX
from retnet.state import RetNetState
from retnet.training.data import Batch, Batches, Documents, Windows, fingerprint, middles
from retnet.training.evaluation import evaluate
from retnet.training.lock import locked
from retnet.training.log import Log, quiet_board
from retnet.training.settings import TrainingSettings

__all__ = ["Trainer", "has_checkpoint", "train"]

_FORMAT_VERSION = 2  # in version 1, a learnable decay was ln gamma itself
_KINDS: dict[str, Any] = {
    "fingerprint": str,
    "steps": int,
    "tokens": int,
    "seconds": (int, float),
    "loss": float,
    "log_bytes": int,
    "optimizer": dict,
    "batches": dict,
    "state": (tuple, type(None)),
    "random": torch.ByteTensor,
}
_CHECKED_TOKENS = 1 << 17


class Trainer:
    """Holds a model, its optimizer and everything else that a checkpoint needs.

    Args:
        model: model to train. Training runs on its device.
        settings: settings of the run.
        documents: [N_i] uint8 or int32, the text to train on.
        validation: [N_i] uint8 or int32, the text to validate on. If it is empty, there is no
            validation. A validation takes the middle 2 * seq_len tokens of documents, or whole
            documents with `stream`.

    Raises:
        ValueError: there is too little text, or the model does not have a token.
    """

    def __init__(
        self,
        model: RetNetForCausalLM,
        settings: TrainingSettings,
        documents: Sequence[Tensor],
        validation: Sequence[Tensor] = (),
    ) -> None:
        documents = [ids for ids in documents if len(ids) > 1]
        if not documents:
            raise ValueError("data: text to train on must hold at least two tokens, got none")
        for ids in (*documents, *validation):
            _check_ids(ids, model.config.vocab_size)
        self.model = model
        model.checkpoint_layers = settings.checkpoint_layers
        self.settings = settings
        self.device = model.embed_tokens.weight.device
        kind = Documents if settings.stream else Windows
        self.batches: Batches = kind(
            documents, settings.batch_size, settings.seq_len, settings.seed
        )
        self.reads_bytes = documents[0].dtype == torch.uint8
        self.fingerprint = fingerprint(documents)
        span = max(map(len, validation), default=0) if settings.stream else 2 * settings.seq_len
        self.validation = middles(validation, span, _CHECKED_TOKENS)
        self.optimizer = _optimizer(model, settings)
        self.state: RetNetState | None = None
        if settings.stream:
            self.state = model.config.make_state(settings.batch_size, device=self.device)
        self.steps = 0
        self.tokens = 0
        self.seconds = 0.0
        self.loss = math.nan  # smoothed
        self.log: Log | None = None
        self._log_bytes = 0

    @property
    def progress(self) -> float:
        """The part of the run that is done. It is 1 at the end and may exceed 1."""
        settings = self.settings
        if settings.minutes:
            return self.seconds / (60 * settings.minutes)
        return self.steps / settings.steps

    def step(self) -> None:
        """Makes one update.

        Raises:
            ValueError: the gradient is not finite. The weights are unchanged.
        """
        settings = self.settings
        half = (
            0.5 / settings.steps if settings.steps else 0.0
        )  # takes the rate in the middle of the step
        rate = settings.rate(self.progress + half)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = [self.batches.next() for _ in range(settings.grad_accum_steps)]
        count = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            loss = self._forward(batch) / count
            loss.backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), settings.clip if settings.clip else math.inf
        )
        value, size = total.item(), norm.item()
        if not math.isfinite(size):
            raise ValueError(
                f"train: loss and gradient must be finite, got {value:g} and a norm of {size:g} in "
                f"step {self.steps + 1}; try a smaller lr"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        self.tokens += sum(batch.inputs.numel() for batch in batches)
        self.loss = value if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * value
        if self.log:
            self.log.write(
                self.steps,
                loss=value,
                lr=rate,
                grad_norm=size,
                tokens=self.tokens,
                seconds=round(self.seconds, 3),
            )

    def _forward(self, batch: Batch) -> Tensor:
        """Returns the summed loss of a batch. A stream carries the state without gradient."""
        inputs, targets = batch.inputs.to(self.device), batch.targets.to(self.device)
        state = self.state
        if state is not None and batch.fresh is not None:
            fresh = batch.fresh.to(self.device)
            state = RetNetState(
                state.retention.masked_fill(fresh.view(1, -1, 1, 1, 1), 0.0),
                state.positions.masked_fill(fresh, 0),
            )
        with self._autocast():
            output = self.model(inputs, state=state, targets=targets, reduction="sum")
        if state is not None:
            self.state = output.state.detach()
        return output.loss

    def _autocast(self) -> torch.autocast:
        enabled = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def check(self) -> float:
        """Returns the loss on the validation text, in nats per token, and logs it.

        Returns NaN if there is no validation text.
        """
        if not self.validation:
            return math.nan
        self.model.eval()
        with self._autocast():
            loss = evaluate(self.model, self.validation).loss
        self.model.train()
        if self.log:
            self.log.write(
                self.steps,
                smoothed_loss=self.loss,
                validation_loss=loss,
                tokens=self.tokens,
                seconds=round(self.seconds, 3),
            )
        return loss

    def save(self) -> None:
        """Writes a checkpoint to `settings.out`. If that fails, the old checkpoint is intact.

        Raises:
            BlockingIOError: another run holds the folder.
            OSError: the checkpoint could not be written.
        """
        with locked(self.settings.out):
            self._save(Path(self.settings.out))

    def _save(self, folder: Path) -> None:
        if self.log:
            self._log_bytes = self.log.sync()
        data = {
            "format_version": _FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.settings.seed,
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "loss": self.loss,
            "log_bytes": self._log_bytes,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
            "state": None if self.state is None else tuple(self.state),
            "random": torch.get_rng_state(),
        }
        path = _state_path(folder, str(self.steps))

        def write(part: Path) -> None:
            with part.open("wb") as file:
                torch.save(data, file)

        replace_file(path, write)
        # From here on the new checkpoint is the valid one.
        metadata = {"step": str(self.steps), "unit": "byte" if self.reads_bytes else "token"}
        checkpoint.write(folder, self.model.config, self.model.state_dict(), metadata)
        for old in folder.glob("training-*.pt*"):
            if old != path:
                old.unlink()

    def load(self) -> None:
        """Loads the checkpoint in `settings.out`. All other settings stay as they are.

        In older versions, a learnable decay was another parameter. Its moments start again if the
        run comes from such a version.

        Raises:
            FileNotFoundError: there is no checkpoint to resume from.
            ValueError: the file is corrupt or of another kind, or data, seed, model or kind of
                batches are not those of the run.
        """
        folder = Path(self.settings.out)
        step = checkpoint.read_metadata(folder).get("step", "")
        if not step.isdecimal():
            raise FileNotFoundError(f"{folder}: holds a model but no training state to resume from")
        model = checkpoint.load(folder, dtype=torch.float32)
        if model.config != self.model.config:
            raise ValueError(f"{folder}: must hold the model of the settings, got {model.config}")
        self.model.load_state_dict(model.state_dict())
        path = _state_path(folder, step)
        data = _read_state(path)
        if data["fingerprint"] != self.fingerprint:
            raise ValueError(f"{path}: the text in data has changed since the run began")
        seed = data.get("seed", self.settings.seed)
        if seed != self.settings.seed:
            raise ValueError(
                f"{path}: seed must be that of the run ({seed}), got {self.settings.seed}"
            )
        if (data["state"] is None) != (self.state is None):
            raise ValueError(
                f"{path}: stream must be that of the run ({data['state'] is not None}), "
                f"got {self.state is not None}"
            )
        set_now = [(group["betas"], group["weight_decay"]) for group in self.optimizer.param_groups]
        try:
            self.batches.load_state_dict(data["batches"])
            self.optimizer.load_state_dict(data["optimizer"])
            for group, (betas, decay) in zip(self.optimizer.param_groups, set_now, strict=True):
                group["betas"], group["weight_decay"] = betas, decay
            if data["format_version"] < 2:  # the moments are those of gradients in ln gamma
                for name, parameter in self.model.named_parameters():
                    if name.endswith("log_decay_raw"):
                        self.optimizer.state.pop(parameter, None)
            if self.state is not None:
                retention, positions = data["state"]
                if retention.shape != self.state.retention.shape:
                    raise ValueError(
                        f"its state holds {retention.shape[1]} sequences, "
                        f"got {self.state.retention.shape[1]}"
                    )
                self.state = RetNetState(retention.to(self.device), positions.to(self.device))
            torch.set_rng_state(data["random"])
        except (LookupError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}: batch_size or model differs from the run that is resumed ({error})"
            ) from error
        self.steps, self.tokens = data["steps"], data["tokens"]
        self.seconds, self.loss = data["seconds"], data["loss"]
        self._log_bytes = data["log_bytes"]

    def open_log(self) -> Log:
        """Opens the log and cuts it where it ended at the checkpoint.

        Raises:
            BlockingIOError: another run holds the folder.
        """
        with locked(self.settings.out):
            self.log = Log(Path(self.settings.out), self._log_bytes, self.steps)
        return self.log


def train(trainer: Trainer) -> int:
    """Trains to the end of the run, with a progress bar, checks and checkpoints.

    Ctrl-C, SIGTERM or SIGHUP (the terminal closed) ends the run after the current step, with a
    validation and a checkpoint. A second Ctrl-C or SIGTERM raises KeyboardInterrupt at once. If
    SIGHUP was ignored before, as under nohup, it stays ignored.

    Returns:
        0, or the number of the signal that ended it.

    Raises:
        BlockingIOError: another run holds the folder.
        ValueError: the loss became NaN or infinite. The last checkpoint is intact.
        OSError: the disk is full. The last checkpoint is intact.
    """
    with locked(trainer.settings.out):
        return _train(trainer)


def _train(trainer: Trainer) -> int:
    settings = trainer.settings
    log = trainer.open_log()
    begin, tokens, before = time.monotonic(), trainer.tokens, trainer.seconds
    done = trainer.progress
    checked = saved = trainer.seconds
    step_checked = step_saved = -1
    scale, unit = (1 / math.log(2), "bits/byte") if trainer.reads_bytes else (1.0, "nats/token")
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=100,
        initial=100 * min(done, 1),
        bar_format="{percentage:3.0f}% |{bar:24}| {desc}",
        mininterval=0.1 if terminal else 10,
    )
    try:
        with bar, quiet_board(), _signals() as caught:
            while trainer.progress < 1 and not caught:
                trainer.step()
                spent = time.monotonic() - begin
                trainer.seconds = before + spent
                progress = min(trainer.progress, 1)
                left = round(spent * (1 - progress) / max(progress - done, 1e-9))
                speed = (trainer.tokens - tokens) / spent
                bar.set_description_str(
                    f"loss {scale * trainer.loss:.3f} {unit}, {speed:,.0f} tokens/s, "
                    f"{left // 60}:{left % 60:02} left",
                    refresh=False,
                )
                bar.update(100 * progress - bar.n)
                if trainer.seconds - checked >= settings.check_every:
                    trainer.check()
                    checked, step_checked = trainer.seconds, trainer.steps
                if trainer.seconds - saved >= settings.save_every:
                    trainer.save()
                    saved, step_saved = trainer.seconds, trainer.steps
            if step_checked != trainer.steps:
                trainer.check()
                step_saved = -1
            if step_saved != trainer.steps:
                trainer.save()
    finally:
        trainer.log = None
        trainer._log_bytes = log.close()
    return caught[0] if caught else 0


def has_checkpoint(folder: str | Path) -> bool:
    """Returns whether the folder holds a model."""
    return (Path(folder) / checkpoint.WEIGHTS).exists()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects Ctrl-C, SIGTERM and SIGHUP in a list, so that the process does not end.

    See `train`.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # A terminal that closes may send SIGHUP twice, and SIGTERM as well.
        if number != signal.SIGHUP and any(earlier != signal.SIGHUP for earlier in caught):
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _optimizer(model: RetNetForCausalLM, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Returns AdamW without weight decay on vectors."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    if len(ids) and (int(ids.max()) >= vocab_size or int(ids.min()) < 0):
        bad = ids[(ids.int() >= vocab_size) | (ids.int() < 0)][0]
        raise ValueError(
            f"data: token ids must be in 0..{vocab_size - 1} (vocab_size), got {int(bad)}"
        )


def _state_path(folder: Path, step: str) -> Path:
    return folder / f"training-{step}.pt"


def _read_state(path: Path) -> dict[str, Any]:
    """Reads tensors and numbers that `Trainer.save` wrote. It never runs code."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, so the run cannot be resumed")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise many kinds of errors
        raise ValueError(
            f"{path}: must be a whole training state, tensors and numbers only, got "
            f"{type(error).__name__}"
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("format_version"), int):
        raise ValueError(f"{path}: must be a training state of retnet, got something else")
    if data["format_version"] > _FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be <= {_FORMAT_VERSION}, got {data['format_version']}"
        )
    for name, kind in _KINDS.items():
        if name not in data or not isinstance(data[name], kind):
            got = f"of another kind ({type(data[name]).__name__})" if name in data else "missing"
            raise ValueError(f"{path}: must be a training state of retnet, its {name} is {got}")
    return data
