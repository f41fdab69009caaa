# SPDX-License-Identifier: Apache-2.0
"""The command `retnet` with its subcommands train, generate, eval and convert."""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from collections.abc import Sequence
from inspect import signature
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

import torch

from retnet import checkpoint
from retnet._files import hint
from retnet._memory import keep_memory_mapped
from retnet.convert import convert
from retnet.generation import stream
from retnet.nn import RetNetForCausalLM
from retnet.training import command as train_command
from retnet.training.evaluation import describe_context, evaluate
from retnet.training.settings import device_named
from retnet.training.sources import Sources
from retnet.training.text import TOKENIZER, Tokenizer, tokenizer_for

__all__ = ["main"]

# Messages of torch if the CPU runs out of memory, and for tensors of more than 2^63 bytes.
_NO_MEMORY = re.compile("can't allocate memory|Storage size calculation overflowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit status, which is one of these.

        - 0 if the command succeeded;
        - 1 after an error, which one line on stderr explains;
        - 2 if the arguments are wrong;
        - 128 plus the number of the signal that ended it.
    """
    if arguments is None:  # the command runs in its own process
        keep_memory_mapped()
        if isinstance(sys.stdout, io.TextIOWrapper):  # it can then print any text, as stderr can
            sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        actions = [a for a in options.parser._actions if a.help != argparse.SUPPRESS]
        known = [option for action in actions for option in action.option_strings]
        options.parser.error(f"unknown argument {unknown[0]}{hint(unknown[0], known)}")
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `retnet generate | head`
        train_command.discard_output(sys.stdout)
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
    """A parser that reports an error in one line."""

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
    train_command.add_options(parsers["train"])
    for name in ("generate", "eval"):
        add = parsers[name].add_argument
        add("folder", metavar="FOLDER", type=Path, help="checkpoint that train wrote")
        add(
            "--device",
            default="",
            metavar="DEVICE",
            help="such as cuda:1 (default: a GPU if there is one)",
        )
        add(
            "--tokenizer",
            default="",
            metavar="FILE",
            help=f"tokenizer file (default: {TOKENIZER} in FOLDER, else bytes)",
        )
    add = parsers["generate"].add_argument
    add("--prompt", required=True, metavar="TEXT", help="text to continue")
    add(
        "--max_new_tokens",
        type=int,
        default=256,
        metavar="INT",
        help="number of tokens to generate (default: 256)",
    )
    add(
        "--temperature",
        type=float,
        default=1.0,
        metavar="FLOAT",
        help="divides the logits; 0 takes the most likely token (default: 1)",
    )
    add("--top_k", type=int, metavar="INT", help="sample only from the k most likely tokens")
    add(
        "--top_p",
        type=float,
        metavar="FLOAT",
        help="sample only from the most likely tokens whose probabilities add up to p",
    )
    add("--seed", type=int, metavar="INT", help="makes the text repeatable")
    add = parsers["eval"].add_argument
    add("files", metavar="PATH", nargs="+", help="files and folders to read")
    add(
        "--window",
        type=int,
        metavar="INT",
        help="read windows of this many tokens instead of carrying the state",
    )
    _convert_options(parsers["convert"])
    runs = {
        "train": train_command.run,
        "generate": _generate,
        "eval": _eval,
        "convert": _convert,
    }
    for name, run in runs.items():
        parsers[name].set_defaults(run=run, parser=parsers[name])
    return parser


def _convert_options(parser: argparse.ArgumentParser) -> None:
    """Adds SOURCE, TARGET and options for what a file does not say.

    If an option is needed, an error lists it.
    """
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        type=Path,
        help="file of torchscale, or folder of flash-linear-attention",
    )
    add("target", metavar="TARGET", type=Path, help="folder to write")
    add(
        "--activation",
        metavar="NAME",
        help="activation of the feed-forward network: gelu or swish",
    )
    add("--norm_eps", type=float, metavar="FLOAT", help="eps of the block norms")
    add("--group_norm_eps", type=float, metavar="FLOAT", help="eps of the head norm")
    add(
        "--embed_scale",
        type=float,
        metavar="FLOAT",
        help="factor that multiplies the embeddings",
    )
    add(
        "--residual_scale",
        type=float,
        metavar="FLOAT",
        help="factor that multiplies the residual branch",
    )
    add("--num_heads", type=int, metavar="INT", help="number of heads")


def _generate(options: argparse.Namespace) -> int:
    model, tokenizer = _load(options)
    prompt = tokenizer.encode_prompt(options.prompt)
    if not prompt:
        raise ValueError("prompt must hold at least one token, got none")
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
    first = list(islice(tokens, 1))  # raises for bad arguments before anything is printed
    decode = tokenizer.decoder(prompt)
    print(options.prompt, end="")
    for token in chain(first, tokens):
        print(decode(int(token)), end="", flush=True)
    print(decode.finish())
    return 0


def _eval(options: argparse.Namespace) -> int:
    model, tokenizer = _load(options)
    sources = Sources(
        {options.folder / checkpoint.WEIGHTS: "the model", options.tokenizer: "the tokenizer"}
    )
    files = sources.files(options.files, "text")
    sources.tell_left_out("eval")
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
    """Returns the model in a folder and its tokenizer."""
    model = checkpoint.load(options.folder, device_named(options.device))
    model.eval()
    return model, tokenizer_for(options.tokenizer, options.folder, options.command)
