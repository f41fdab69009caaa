# SPDX-License-Identifier: Apache-2.0
"""The command `retnet train`: its options, and the run that they describe."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch

from retnet import checkpoint
from retnet._files import hint, replace_file
from retnet.config import RetNetConfig
from retnet.nn import RetNetForCausalLM
from retnet.training.data import split
from retnet.training.lock import locked
from retnet.training.settings import (
    RENAMED,
    TrainingSettings,
    device_named,
    is_settings,
    parse_value,
)
from retnet.training.sources import Sources
from retnet.training.text import TOKENIZER, ByteTokenizer, FileTokenizer, tokenizer_for
from retnet.training.trainer import Trainer, has_checkpoint, train

__all__ = ["add_options", "discard_output", "run"]


# The placeholder of a value in the help, by the name of a key or else by its type.
_METAVARS = {
    "data": "PATH",
    "validation": "PATH",
    "out": "FOLDER",
    "init": "FOLDER",
    "tokenizer": "FILE",
    "device": "DEVICE",
    "int": "INT",
    "float": "FLOAT",
    "tuple[float, ...]": "FLOAT",
    "bool": "true|false",
    "str | tuple[float, ...]": "NAME|LIST",
}


class _Renamed(argparse.Action):
    """An option that was renamed. Using its old name is an error."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(f"{self.option_strings[0]} was renamed to {self.const}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `run.toml`, --resume, and an option for every key of the file."""
    parser.usage = "%(prog)s [SETTINGS] [--resume] [--KEY VALUE ...]"
    parser.add_argument(
        "settings", metavar="SETTINGS", nargs="?", type=Path, help="TOML file of the run"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in the folder OUT, which must exist",
    )
    keys = parser.add_argument_group("keys of the file", "An option overrides the file.")
    for key in fields(TrainingSettings):
        if key.name != "model":
            nargs = (
                "?" if key.type == "bool" else "+" if str(key.type).startswith("tuple") else None
            )
            const = "true" if key.type == "bool" else None
            _add_key(keys, key, "", nargs=nargs, const=const)
    model = parser.add_argument_group(
        "keys of the table [model]",
        "They override the preset. vocab_size is by default that of the tokenizer.",
    )
    model.add_argument(
        "--model.preset",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="sizes to start from: tiny, small, 1.3b, 2.7b, 6.7b or 13b (default: tiny)",
    )
    for key in fields(RetNetConfig):
        _add_key(model, key, "model.")
    for old, new in RENAMED.items():
        parser.add_argument(
            f"--{old}",
            action=_Renamed,
            const=f"--{new}",
            nargs="*",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def _add_key(group: argparse._ArgumentGroup, key: Field[Any], prefix: str, **how: Any) -> None:
    """Adds the option of a key. Its text is that of the key in the docstring of the class."""
    settings = RetNetConfig if prefix else TrainingSettings
    text = _texts(settings).get(key.name, "")
    if key.default not in (MISSING, (), ""):
        values = key.default if isinstance(key.default, tuple) else (key.default,)
        words = (f"{x:g}" if isinstance(x, float) else str(x) for x in values)
        text += f" (default: {' '.join(words).replace('True', 'true').replace('False', 'false')})"
    group.add_argument(
        f"--{prefix}{key.name}",
        default=argparse.SUPPRESS,
        metavar=_METAVARS.get(key.name) or _METAVARS.get(str(key.type), "NAME"),
        help=text.replace("%", "%%"),
        **how,
    )


@cache
def _texts(settings: type) -> dict[str, str]:
    """Returns the text of each field, which the docstring of a dataclass holds in "Attributes"."""
    section = (inspect.getdoc(settings) or "").partition("Attributes:\n")[2].split("\n\n")[0]
    texts = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "").removesuffix(".") for name, text in texts}


def run(options: argparse.Namespace) -> int:
    """Trains as the options say.

    Returns:
        0, or 128 plus the number of the signal that ended the run.
    """
    _check_one_process()
    changes = _changes(options)
    for name in ("data", "validation") if options.settings is None else ():
        for path in map(Path, changes.get(name, ())):
            if path.is_file() and is_settings(path):
                raise ValueError(
                    f"{name}: {path} holds the settings of a run and would be read as text; name "
                    f"it first: retnet train {path} --{name} ..."
                )
    settings = TrainingSettings.read(options.settings, changes).resolved()
    out = Path(settings.out)
    if options.resume and not out.exists():
        missing = out
        while not missing.parent.exists():
            missing = missing.parent
        near = hint(missing.name, (path.name for path in missing.parent.iterdir()))
        raise FileNotFoundError(
            f"{out}: there is no run to resume, {missing.name} does not exist{near}"
        )
    with locked(out):  # before any text is read, because that may take long
        return _train_alone(options, settings, out)


def _check_one_process() -> None:
    """Raises ValueError in each process of torchrun.

    All processes would train on the same text.
    """
    size = os.environ.get("WORLD_SIZE") or "1"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = str(torch.distributed.get_world_size())
    if size.strip() != "1":
        raise ValueError(
            f"WORLD_SIZE must be 1, got {size}: training by several processes is not supported; "
            "start the command once, without torchrun"
        )


def _train_alone(options: argparse.Namespace, settings: TrainingSettings, out: Path) -> int:
    resume = options.resume and has_checkpoint(out)
    if has_checkpoint(out) and not resume:
        raise FileExistsError(
            f"{out}: holds a model; continue with --resume, or choose another out"
        )
    if not settings.data:
        raise ValueError("settings: data must name files or folders, got none")
    if options.resume and not resume:
        print(
            f"{out}: holds no checkpoint to resume; the run starts from the beginning", flush=True
        )
    device = device_named(settings.device)
    begun = out if resume else Path(settings.init) if settings.init else None
    tokenizer = tokenizer_for(settings.tokenizer, begun, "train")
    sources = Sources(
        {
            out: "belongs to this run",
            options.settings: "the settings",
            settings.tokenizer: "the tokenizer",
        }
    )
    validation_files = sources.files(settings.validation, "validation text")
    files = sources.files(settings.data, "training text")
    sources.tell_left_out("train")
    documents = [tokenizer.read(path).ids for path in files]
    if settings.validation:
        validation = [tokenizer.read(path).ids for path in validation_files]
    else:
        documents, validation = split(documents, settings.validation_share)

    torch.manual_seed(settings.seed)
    if settings.init:
        model = checkpoint.load(settings.init, device, torch.float32)
    else:
        model = RetNetForCausalLM(settings.model_config(tokenizer.vocab_size)).to(device)
    trainer = Trainer(model, settings, documents, validation)
    if resume:
        trainer.load()
        if trainer.progress >= 1:
            end = f"steps = {settings.steps}" if settings.steps else f"minutes = {settings.minutes}"
            print(
                f"{out}: nothing to do, the run has reached its end ({end}): it holds "
                f"{trainer.steps} steps, {trainer.seconds / 60:.1f} minutes"
            )
            return 0
    else:
        checkpoint.check_folder(out, model.config)
        if isinstance(tokenizer, ByteTokenizer) and (out / TOKENIZER).exists():
            raise FileExistsError(
                f"{out}: holds a {TOKENIZER}, but the run reads bytes; name it with --tokenizer, "
                "or remove it"
            )
    out.mkdir(parents=True, exist_ok=True)
    settings.write(out / "run.toml")
    if isinstance(tokenizer, FileTokenizer):
        data = tokenizer.data
        replace_file(out / TOKENIZER, lambda part: part.write_bytes(data))

    weights = sum(p.numel() for p in model.parameters())
    sizes = [sum(map(len, texts)) for texts in (documents, validation)]
    print(
        f"{weights:,} parameters on {device}; {sizes[0]:,} {tokenizer.unit}s to train on, "
        f"{sizes[1]:,} held out" + (f"; resumed after step {trainer.steps}" if resume else ""),
        flush=True,
    )
    number = train(trainer)
    if number:
        try:
            print(f"Interrupted; {out} holds a checkpoint. Continue with --resume.", flush=True)
        except OSError:  # SIGHUP: the terminal is gone
            discard_output(sys.stdout)
            discard_output(sys.stderr)
        return 128 + number
    print(f"{out}: {trainer.steps} steps, smoothed loss {trainer.loss:.4f} nats/{tokenizer.unit}")
    return 0


def discard_output(stream: TextIO) -> None:
    """Discards what is left in the buffer of a stream.

    Otherwise Python would fail when it writes the buffer at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that the command line gives, with values of the types in TOML."""
    kinds = {key.name: str(key.type) for key in fields(TrainingSettings)}
    changes: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name.startswith("model."):
            changes[name] = parse_value(value)
        elif name in kinds:
            plain = "str" in kinds[name]
            many = isinstance(value, list)
            values = [x if plain else parse_value(x) for x in (value if many else [value])]
            changes[name] = values if many else values[0]
    return changes
