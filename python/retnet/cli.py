# SPDX-License-Identifier: Apache-2.0
"""The command `retnet`: train, generate, eval, convert."""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from inspect import signature
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch

from retnet import checkpoint
from retnet._files import hint, replace_file
from retnet._memory import keep_memory_mapped
from retnet.config import RetNetConfig
from retnet.convert import convert
from retnet.data import split
from retnet.evaluation import describe_context, evaluate
from retnet.generation import stream
from retnet.lock import locked
from retnet.nn import RetNetForCausalLM
from retnet.settings import Settings, is_settings, tomllib
from retnet.sources import Sources
from retnet.text import ByteTokenizer, FileTokenizer, Tokenizer
from retnet.train import Trainer, has_checkpoint, train

__all__ = ["main"]

_TOKENIZER = "tokenizer.json"
# What torch says of the CPU, and of tensors beyond 2^63 bytes.
_NO_MEMORY = re.compile("can't allocate memory|Storage size calculation overflowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0; 1 after an error, told in one line on stderr; 2 for a call it does not understand; 128 +
        the number of the signal that ended it.
    """
    if arguments is None:  # a process of its own
        keep_memory_mapped()
        if isinstance(sys.stdout, io.TextIOWrapper):  # any text can be printed, as on stderr
            sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [o for action in options.parser._actions for o in action.option_strings]
        options.parser.error(f"unknown argument {unknown[0]}{hint(unknown[0], known)}")
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `retnet generate | head`
        _discard_output(sys.stdout)
        return 141
    except (OSError, ValueError, ImportError, MemoryError, RuntimeError) as error:
        if not isinstance(error, RuntimeError):
            reason = _one_line(error).removeprefix(f"{options.command}: ")
        elif isinstance(error, torch.OutOfMemoryError) or _NO_MEMORY.search(str(error)):
            reason = f"not enough memory: {_one_line(error)}"
        else:
            raise
        print(f"retnet {options.command}: {reason}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


class _Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("retnet", description="Train and use Retentive Networks.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    parsers = {
        name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in (
            ("train", "Train a model on files."),
            ("generate", "Continue a text."),
            ("eval", "Measure how well a model predicts files."),
            ("convert", "Read a checkpoint of torchscale or flash-linear-attention."),
        )
    }
    _train_options(parsers["train"])
    for name in ("generate", "eval"):
        parsers[name].add_argument("folder", type=Path, help="checkpoint: what train writes")
        parsers[name].add_argument("--device", default="", help="such as cuda:1 (default: a GPU)")
        parsers[name].add_argument(
            "--tokenizer", default="", help=f"default: {_TOKENIZER} in FOLDER, else bytes"
        )
    add = parsers["generate"].add_argument
    add("--prompt", required=True, help="text to continue")
    add("--max_new_tokens", type=int, default=256, help="length of what is written (default 256)")
    add("--temperature", type=float, default=1.0, help="0 takes the most likely (default 1)")
    add("--top_k", type=int, help="draw among the k most likely tokens only")
    add("--top_p", type=float, help="draw among the most likely tokens of that probability in sum")
    add("--seed", type=int, help="for repeatable text")
    add = parsers["eval"].add_argument
    add("files", nargs="+", help="files and folders")
    add("--window", type=int, help="read windows of that many tokens instead of carrying the state")
    _convert_options(parsers["convert"])
    runs = {"train": _train, "generate": _generate, "eval": _eval, "convert": _convert}
    for name, run in runs.items():
        parsers[name].set_defaults(run=run, parser=parsers[name])
    return parser


def _train_options(parser: argparse.ArgumentParser) -> None:
    """`run.toml`, --resume, and an option for every key of the file."""
    parser.add_argument("settings", nargs="?", type=Path, help="TOML file of the run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in the folder OUT, which must exist",
    )
    for key in fields(Settings):
        kind = str(key.type)
        if kind == "bool":
            how: dict[str, Any] = {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            how = {"nargs": "+" if kind.startswith("tuple") else None, "metavar": "VALUE"}
        if key.name != "model":
            parser.add_argument(f"--{key.name}", default=argparse.SUPPRESS, **how)
    for name in ("preset", *(key.name for key in fields(RetNetConfig))):
        parser.add_argument(f"--model.{name}", default=argparse.SUPPRESS, metavar="VALUE")


def _convert_options(parser: argparse.ArgumentParser) -> None:
    """SOURCE, TARGET, and what files may leave open; an error lists what is needed."""
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="torchscale's file, or fla's folder")
    add("target", metavar="TARGET", type=Path, help="folder to write")
    add("--activation", help="of the feed-forward network: gelu or swish")
    add("--norm_eps", type=float, help="of the block norms")
    add("--group_norm_eps", type=float, help="of the heads' norm")
    add("--embed_scale", type=float, help="factor on the embeddings")
    add("--residual_scale", type=float, help="factor on the residual branch")
    add("--num_heads", type=int, help="number of heads")


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """The keys of the TOML file that the command line gives, with values as TOML has them."""
    kinds = {key.name: str(key.type) for key in fields(Settings)}
    changes: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name.startswith("model."):
            changes[name] = _toml_value(value)
        elif name in kinds:
            plain = "str" in kinds[name]
            many = isinstance(value, list)
            values = [x if plain else _toml_value(x) for x in (value if many else [value])]
            changes[name] = values if many else values[0]
    return changes


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _train(options: argparse.Namespace) -> int:
    _check_one_process()
    changes = _changes(options)
    for name in ("data", "validation") if options.settings is None else ():
        for path in map(Path, changes.get(name, ())):
            if path.is_file() and is_settings(path):
                raise ValueError(
                    f"{name}: {path} holds the settings of a run, and was read as text; name it "
                    f"first: retnet train {path} --{name} ..."
                )
    settings = Settings.read(options.settings, changes).resolved()
    out = Path(settings.out)
    if options.resume and not out.exists():
        missing = out
        while not missing.parent.exists():
            missing = missing.parent
        near = hint(missing.name, (path.name for path in missing.parent.iterdir()))
        raise FileNotFoundError(
            f"{out}: there is no run to resume, {missing.name} does not exist{near}"
        )
    with locked(out):  # before any text is read, which may take long
        return _train_alone(options, settings, out)


def _check_one_process() -> None:
    """Raises ValueError in each process of torchrun: all would train on the same text."""
    size = os.environ.get("WORLD_SIZE") or "1"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = str(torch.distributed.get_world_size())
    if size.strip() != "1":
        raise ValueError(
            f"WORLD_SIZE must be 1, got {size}: training by several processes is not supported; "
            "start the command once, without torchrun"
        )


def _train_alone(options: argparse.Namespace, settings: Settings, out: Path) -> int:
    resume = options.resume and has_checkpoint(out)
    if has_checkpoint(out) and not resume:
        raise FileExistsError(f"{out}: holds a model; go on with --resume, or choose another out")
    if not settings.data:
        raise ValueError("settings: data must name files or folders, got none")
    if options.resume and not resume:
        print(f"{out}: holds no checkpoint to resume; the run starts anew", flush=True)
    device = _device(settings.device)
    begun = out if resume else Path(settings.init) if settings.init else None
    tokenizer = _tokenizer(settings.tokenizer, begun, "train")
    sources = _sources(
        {
            out: "belongs to this run",
            options.settings: "the settings",
            settings.tokenizer: "the tokenizer",
        }
    )
    validation_files = sources.files(settings.validation, "validation text")
    files = sources.files(settings.data, "training text")
    _tell_left_out(options, sources)
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
        if isinstance(tokenizer, ByteTokenizer) and (out / _TOKENIZER).exists():
            raise FileExistsError(
                f"{out}: holds a {_TOKENIZER}, but the run reads bytes; name it by --tokenizer, or "
                "remove it"
            )
    out.mkdir(parents=True, exist_ok=True)
    settings.write(out / "run.toml")
    if isinstance(tokenizer, FileTokenizer):
        data = tokenizer.data
        replace_file(out / _TOKENIZER, lambda part: part.write_bytes(data))

    weights = sum(p.numel() for p in model.parameters())
    sizes = [sum(map(len, texts)) for texts in (documents, validation)]
    print(
        f"{weights:,} parameters on {device}; {sizes[0]:,} {tokenizer.unit}s to learn from, "
        f"{sizes[1]:,} held out" + (f"; resumed after step {trainer.steps}" if resume else ""),
        flush=True,
    )
    number = train(trainer)
    if number:
        try:
            print(f"Interrupted; {out} holds everything. Go on with --resume.", flush=True)
        except OSError:  # SIGHUP: the terminal is gone
            _discard_output(sys.stdout)
            _discard_output(sys.stderr)
        return 128 + number
    print(f"{out}: {trainer.steps} steps, smoothed loss {trainer.loss:.4f} nats/{tokenizer.unit}")
    return 0


def _generate(options: argparse.Namespace) -> int:
    model, tokenizer = _load(options)
    prompt = tokenizer.encode_prompt(options.prompt)
    if not prompt:
        raise ValueError("prompt must hold a token or more, got none")
    ids = torch.tensor([prompt], device=model.embed_tokens.weight.device)
    if max(prompt) >= model.config.vocab_size:
        raise ValueError(
            f"prompt: token ids must be < vocab_size = {model.config.vocab_size}, got {max(prompt)}"
        )
    tokens = stream(
        model,
        ids,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    first = list(islice(tokens, 1))  # before any output: it raises for bad arguments
    decode = tokenizer.decoder(prompt)
    print(options.prompt, end="")
    for token in chain(first, tokens):
        print(decode(int(token)), end="", flush=True)
    print(decode.finish())
    return 0


def _eval(options: argparse.Namespace) -> int:
    model, tokenizer = _load(options)
    sources = _sources(
        {options.folder / checkpoint.WEIGHTS: "the model", options.tokenizer: "the tokenizer"}
    )
    files = sources.files(options.files, "text")
    _tell_left_out(options, sources)
    documents = [tokenizer.read(path) for path in files]
    ids = [document.ids for document in documents]
    limit = model.config.vocab_size
    if (highest := max((int(x.max()) for x in ids if len(x)), default=0)) >= limit:
        raise ValueError(f"data: token ids must be < vocab_size = {limit}, got {highest}")
    score = evaluate(model, ids, options.window, progress="eval")
    if not math.isfinite(score.nats):
        raise ValueError(f"loss must be finite, got {score.nats}; the weights may hold NaN or inf")
    count = sum(document.predicted_bytes for document in documents)
    print(
        f"text        {len(documents)} files, {score.tokens:,} tokens and {count:,} bytes predicted"
    )
    print(f"context     {describe_context(options.window)}")
    print(f"loss        {score.loss:.4f} nats/token")
    print(f"perplexity  {math.exp(min(score.loss, 700)):.4f} per token")
    print(f"bits/byte   {score.nats / math.log(2) / max(count, 1):.4f}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    known = signature(convert).parameters
    convert(**{name: value for name, value in vars(options).items() if name in known})
    origin = checkpoint.read_metadata(options.target)["converted_from"]
    model = checkpoint.load(options.target)
    weights = sum(p.numel() for p in model.parameters())
    print(f"{options.target}: {weights:,} parameters, read as {origin}")
    return 0


def _load(options: argparse.Namespace) -> tuple[RetNetForCausalLM, Tokenizer]:
    """The model of a folder, and its tokenizer."""
    model = checkpoint.load(options.folder, _device(options.device))
    model.eval()
    return model, _tokenizer(options.tokenizer, options.folder, options.command)


def _tokenizer(named: str, folder: Path | None, command: str) -> Tokenizer:
    """What a command reads text with: the tokenizer named, or that of the model's folder, or bytes.

    Args:
        named: path of a tokenizer.json, or "".
        folder: checkpoint of the model that reads the tokens; None where it has learned nothing.
        command: for the warning where the model knows more or fewer tokens. It may: the vocabulary
            of a model is often filled up, and ids that it does not know are refused where one is.

    Raises:
        ValueError: the model has learned other tokens, or none is named where it needs one.
    """
    if folder is None:
        return FileTokenizer(Path(named)) if named else ByteTokenizer()
    size = checkpoint.read_config(folder).vocab_size
    unit = checkpoint.read_metadata(folder).get("unit")  # that it learned, where `train` wrote it
    path = folder / _TOKENIZER
    inside = FileTokenizer(path) if path.exists() else None
    tokenizer = FileTokenizer(Path(named)) if named else inside
    if tokenizer is None:
        if unit == ByteTokenizer.unit or (unit is None and size == ByteTokenizer.vocab_size):
            return ByteTokenizer()
        what = "its model learned tokens"
        if unit is None:
            what = f"vocab_size = {size} is not that of bytes"
        raise ValueError(f"{folder}: holds no {_TOKENIZER}, and {what}; name one by --tokenizer")
    if unit == ByteTokenizer.unit:
        raise ValueError(f"{tokenizer.path}: must not be used, the model of {folder} learned bytes")
    if inside is not None:
        tokenizer.check_same_tokens(inside)
    if size != tokenizer.vocab_size:
        print(
            f"retnet {command}: warning: vocab_size = {size} of the model is not that of the "
            f"tokenizer ({tokenizer.vocab_size})",
            file=sys.stderr,
        )
    return tokenizer


def _sources(own: Mapping[str | Path | None, str]) -> Sources:
    return Sources({Path(path): role for path, role in own.items() if path})


def _tell_left_out(options: argparse.Namespace, sources: Sources) -> None:
    if str(sources):
        print(f"retnet {options.command}: left out: {sources}", file=sys.stderr)


def _discard_output(stream: TextIO) -> None:
    """Sends what is left in a buffer nowhere: Python writes it at the end, and would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _device(name: str) -> torch.device:
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: must be one that is here, got {name!r}: {reason}") from error
    return device
