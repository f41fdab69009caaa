# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run, which are the keys of one TOML file."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from retnet._files import hint, replace_file
from retnet.config import RetNetConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RENAMED", "TrainingSettings", "device_named", "is_settings", "parse_value"]

RENAMED = {"batch": "batch_size", "length": "seq_len", "accumulate": "grad_accum_steps"}
"""Old names of keys, which are refused, and the new name of each."""
_LARGEST_FILE = 1 << 16
_PRECISIONS = ("float32", "bfloat16")
# The least and the greatest value of each key. Lists are checked element by element.
_RANGES: dict[str, tuple[float, float]] = {
    "validation_share": (0, 0.5),
    "steps": (0, math.inf),
    "minutes": (0, math.inf),
    "batch_size": (1, math.inf),
    "seq_len": (2, math.inf),
    "grad_accum_steps": (1, math.inf),
    "lr": (0, math.inf),
    "warmup": (0, 1),
    "weight_decay": (0, math.inf),
    "betas": (0, 1),
    "clip": (0, math.inf),
    "seed": (0, 2**63 - 1),
    "save_every": (0, math.inf),
    "check_every": (0, math.inf),
}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of a training run: the keys of its TOML file with their defaults.

    `retnet train --help` and docs/python/command_line.md show the texts below.

    Raises:
        ValueError: a value is outside its range. The message names key, requirement and value.

    Attributes:
        data: files and folders to train on.
        out: folder of the run.
        model: `preset`, which defaults to "tiny", and fields of RetNetConfig that override it;
            vocab_size defaults to that of the tokenizer.
        init: folder of a checkpoint to start from; no key of `model` may then be set.
        tokenizer: a `tokenizer.json`; if empty, the one in the folder of `init`, or else bytes.
        validation: files and folders to validate on; if empty, a share of `data` is held out.
        validation_share: share of the text that is held out; 0 turns validation off.
        steps: number of updates; set either this or `minutes`.
        minutes: minutes to train, added up over all parts of a resumed run.
        batch_size: number of sequences in a forward pass.
        seq_len: number of tokens in a sequence.
        grad_accum_steps: number of forward and backward passes for one update.
        stream: read each document in order and carry the state from segment to segment, instead of
            windows at random places; gradients stop between segments.
        lr: highest learning rate of AdamW.
        warmup: share of the run in which the learning rate rises; a cosine over the whole run
            lowers it to 0.
        weight_decay: weight decay of matrices; vectors have none.
        betas: the two betas of AdamW.
        clip: highest norm of the gradient; 0 turns clipping off.
        precision: "float32", or "bfloat16" for autocast.
        checkpoint_layers: save memory; the backward pass runs each layer again.
        device: such as "cpu" or "cuda:1"; if empty, a GPU if there is one.
        seed: seed of the weights and of the order of the data.
        save_every: seconds between checkpoints; 0 saves after each step. The run writes another one
            at its end.
        check_every: seconds between validations. The run validates once more at its end.
    """

    data: tuple[str, ...] = ()
    out: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    init: str = ""
    tokenizer: str = ""
    validation: tuple[str, ...] = ()
    validation_share: float = 0.1
    steps: int = 0
    minutes: float = 0.0
    batch_size: int = 8
    seq_len: int = 256
    grad_accum_steps: int = 1
    stream: bool = False
    lr: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.95)
    clip: float = 1.0
    precision: str = "float32"
    checkpoint_layers: bool = False
    device: str = ""
    seed: int = 0
    save_every: float = 600.0
    check_every: float = 60.0

    def __post_init__(self) -> None:
        for key in fields(self):
            value = _convert(key.name, str(key.type), getattr(self, key.name))
            object.__setattr__(self, key.name, value)
            low, high = _RANGES.get(key.name, (0, math.inf))
            for number in value if isinstance(value, tuple) else [value]:
                if isinstance(number, (int, float)) and not low <= number <= high:
                    raise ValueError(f"settings: {key.name} must be in {low}..{high}, got {number}")
        for name in ("data", "validation"):
            if "" in getattr(self, name):
                raise ValueError(f"settings: {name} must name files or folders, got an empty path")
        if not self.out:
            raise ValueError("settings: out must name the folder of the run, got nothing")
        if (self.steps > 0) == (self.minutes > 0):
            raise ValueError(
                "settings: either steps or minutes must be > 0, "
                f"got steps = {self.steps}, minutes = {self.minutes}"
            )
        if len(self.betas) != 2 or max(self.betas) >= 1:
            raise ValueError(f"settings: betas must be two numbers < 1, got {list(self.betas)}")
        if self.precision not in _PRECISIONS:
            raise ValueError(
                f"settings: precision must be one of {', '.join(_PRECISIONS)}, "
                f"got {self.precision!r}"
            )
        if self.init and self.model:
            raise ValueError(
                "settings: model must be empty with init, because the checkpoint has its own"
            )

    @classmethod
    def read(cls, path: Path | None, changes: dict[str, Any] | None = None) -> TrainingSettings:
        """Reads a TOML file. `changes` overrides its keys.

        The key "model.x" overrides x in the table `model`.

        Raises:
            OSError: there is no such file.
            ValueError: the file is not TOML, a key is unknown (the nearest is suggested), a key has
                its old name (`RENAMED`), or a value is bad.
        """
        values: dict[str, Any] = {}
        if path is not None:
            values = _read_toml(path)
        table = _convert("model", "dict", values.get("model", {}))
        for name, value in (changes or {}).items():
            if name.startswith("model."):
                table = {**table, name.removeprefix("model."): value}
            else:
                values[name] = value
        if table:
            values["model"] = table
        if old := values.keys() & RENAMED.keys():
            told = ", ".join(f"{name} is now {new}" for name, new in RENAMED.items() if name in old)
            raise ValueError(f"{path}: keys were renamed: {told}")
        known = [key.name for key in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{path}: unknown key {name}{hint(name, known)}")
        return cls(**values)

    def resolved(self) -> TrainingSettings:
        """Returns the same settings with absolute paths, so that any folder can be current."""

        def full(paths: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(str(Path(path).resolve()) for path in paths)

        return replace(
            self,
            data=full(self.data),
            validation=full(self.validation),
            out=full((self.out,))[0],
            init=full((self.init,))[0] if self.init else "",
            tokenizer=full((self.tokenizer,))[0] if self.tokenizer else "",
        )

    def write(self, path: Path) -> None:
        """Writes every key as TOML. The file is never left half written."""
        values = {name: value for name, value in asdict(self).items() if value or name != "model"}
        text = tomli_w.dumps(values)
        replace_file(path, lambda part: part.write_text(text, "utf-8"))

    def model_config(self, vocab_size: int) -> RetNetConfig:
        """Returns the configuration that `model` describes.

        Raises:
            ValueError: a field is unknown (the nearest is suggested), or a value is bad.
        """
        values = dict(self.model)
        preset = values.pop("preset", "tiny")
        known = [key.name for key in fields(RetNetConfig)]
        for name in values:
            if name not in known:
                raise ValueError(
                    f"settings: unknown key model.{name}{hint(name, [*known, 'preset'])}"
                )
        return RetNetConfig.preset(preset, **{"vocab_size": vocab_size, **values})

    def rate(self, progress: float) -> float:
        """Returns the learning rate at `progress` of the run, which is in 0..1.

        It is a linear rise times half a cosine.
        """
        fall = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        rise = min(progress / self.warmup, 1.0) if self.warmup else 1.0
        return self.lr * rise * fall


def is_settings(path: Path) -> bool:
    """Returns whether a file is TOML of at most 64 KiB and most of its keys are settings.

    Raises:
        OSError: there is no such file.
    """
    if path.stat().st_size > _LARGEST_FILE:
        return False
    try:
        keys = _read_toml(path).keys()
    except (OSError, ValueError):
        return False
    known = {key.name for key in fields(TrainingSettings)} | RENAMED.keys()
    return 2 * len(keys & known) > len(keys)


def parse_value(text: str) -> Any:
    """Returns the value that `text` has in TOML, or `text` itself if it is not TOML."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def device_named(name: str) -> torch.device:
    """Returns the device that the key `device` names. "" means a GPU if there is one, else the CPU.

    Raises:
        ValueError: the device is not available.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: must be available, got {name!r}: {reason}") from error
    return device


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))  # editors may write a byte-order mark
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: must be TOML: {error}") from error


def _convert(name: str, kind: str, value: Any) -> Any:
    """Checks the type of a value that TOML gave. Lists become tuples."""
    many = isinstance(value, (list, tuple))
    if kind == "int":
        ok, what = isinstance(value, int) and not isinstance(value, bool), "an integer"
    elif kind == "float":
        ok, what = _is_number(value), "a finite number"
        value = float(value) if ok else value
    elif kind == "bool":
        ok, what = isinstance(value, bool), "true or false"
    elif kind == "str":
        ok, what = isinstance(value, str), "a string"
    elif kind.startswith("dict"):
        ok, what = isinstance(value, dict), "a table"
    elif kind == "tuple[float, ...]":
        ok, what = many and all(map(_is_number, value)), "a list of finite numbers"
        value = [float(x) for x in value] if ok else value
    else:
        ok, what = many and all(isinstance(x, str) for x in value), "a list of strings"
    if not ok:
        raise ValueError(f"settings: {name} must be {what}, got {value!r}")
    return tuple(value) if many else value


def _is_number(value: object) -> bool:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    # math.isfinite is not used, because it raises for an integer beyond float64.
    return ok and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
