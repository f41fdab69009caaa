# SPDX-License-Identifier: Apache-2.0
"""`python -m retnet.demo` trains, writes text, compares the three forms and draws plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from retnet._memory import keep_memory_mapped
from retnet.config import RetNetConfig
from retnet.demo.forms import compare_forms, measure_decoding
from retnet.demo.ngram import NGram
from retnet.demo.plots import plot_decay, plot_decoding, plot_loss
from retnet.demo.training import (
    Corpus,
    bits_per_byte,
    load_corpus,
    read_curve,
    settings_for,
)
from retnet.generation import generate
from retnet.nn import RetNetForCausalLM
from retnet.training import Trainer, train
from retnet.training.lock import locked
from retnet.training.log import LOG
from retnet.training.text import as_tokens
from retnet.weights import CONFIG, WEIGHTS

_PROMPT = 'def read_file(path):\n    """'
_FULL_MINUTES = 5.0
_BIGRAM_SHARE = 0.62
_FORM_TOLERANCE = 1e-4
_SHORT_SHARE = 8  # runs below _FULL_MINUTES are scored on every eighth held-out file
_DECODE_STEPS = 4096


def main(arguments: list[str] | None = None) -> int:
    """Runs the demonstration.

    Returns:
        130 after Ctrl-C, 1 if another run writes to the folder, otherwise 0.

    Raises:
        AssertionError: the forms disagree, or a run of 5 minutes or more gives a model that is
            worse than the target.
    """
    if arguments is None:  # the demo runs in its own process
        keep_memory_mapped()
    options = _parse(arguments)
    try:
        with locked(options.out):
            return _run(options)
    except BlockingIOError as error:
        print(f"retnet.demo: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    corpus = load_corpus()
    print(
        "Text: Python's standard library without its tests, "
        f"{_size(corpus.train)} to train on, {_size(corpus.held_out)} held out."
    )
    torch.manual_seed(0)
    model = RetNetForCausalLM(RetNetConfig.preset("tiny"))
    weights = sum(p.numel() for p in model.parameters())
    print(f"Model: {weights / 1e6:.2f} M parameters, {torch.get_num_threads()} threads.")
    print(model.config)
    if not options.resume:
        _remove_run(options.out)
    trainer = Trainer(
        model,
        settings_for(options.minutes, options.out),
        list(map(as_tokens, corpus.train)),
        list(map(as_tokens, corpus.held_out)),
    )
    if options.resume:
        trainer.load()
        print(f"Resumed {options.out} after {trainer.seconds:.0f} s.")
    else:
        print(_sample("Before training", model))
    if train(trainer):
        print(f"Interrupted; {options.out} holds a checkpoint. Continue with --resume.")
        return 130
    print(_sample("After training", model))
    _show_forms(model, corpus)
    share = 1 if options.minutes >= _FULL_MINUTES else _SHORT_SHARE
    final, yardsticks = _show_bits(model, corpus, corpus.held_out[::share])
    plot_loss(read_curve(options.out / LOG), yardsticks, final, options.out / "loss.png")
    plot_decay(model.config, options.out / "decay.png")
    decoding = measure_decoding(model, _DECODE_STEPS)
    plot_decoding(model.config, decoding, options.out / "decoding.png")
    print(f"Pictures: {', '.join(str(p) for p in sorted(options.out.glob('*.png')))}")
    if options.minutes >= _FULL_MINUTES:
        limit = _BIGRAM_SHARE * yardsticks["bigram"]
        assert final <= limit, f"bits per byte must be <= {limit:.3f}, got {final:.3f}"
        assert final < yardsticks["trigram"], "bits per byte must be below the trigram model's"
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("retnet.demo", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        metavar="FLOAT",
        help="minutes to train (default: 5)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo"),
        metavar="FOLDER",
        help="folder to write to (default: demo)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the checkpoint in FOLDER"
    )
    return parser.parse_args(arguments)


def _remove_run(folder: Path) -> None:
    """Removes the files of an earlier run.

    The model goes first, so that the remaining files never look like a checkpoint.
    """
    for path in (folder / WEIGHTS, folder / CONFIG, *folder.glob("training-*.pt")):
        path.unlink(missing_ok=True)


def _size(files: list[bytes]) -> str:
    return f"{len(files)} files ({sum(map(len, files)) / 1e6:.1f} MB)"


def _sample(title: str, model: RetNetForCausalLM) -> str:
    prompt = as_tokens(_PROMPT.encode()).long().unsqueeze(0)
    texts = generate(model, prompt, max_new_tokens=400, temperature=0.7, seed=0)
    text = bytes(texts[0].tolist()).decode("utf-8", errors="replace")
    rule = "-" * 72
    return f"\n{title}\n{rule}\n{text}\n{rule}\n"


def _show_forms(model: RetNetForCausalLM, corpus: Corpus) -> None:
    longest = max(corpus.held_out, key=len)
    ids = as_tokens(longest[:1024]).long().unsqueeze(0)
    rows = compare_forms(model, ids)
    print(f"Logits of the trained model on {ids.shape[1]} held-out bytes, form against form:")
    print(f"{'':28} {'max |a - b|':>12} {'|a - b| / |b|':>14}")
    for row in rows:
        print(f"{row.pair:28} {row.max_abs:12.1e} {row.relative:14.1e}")
    worst = max(row.relative for row in rows)
    assert worst <= _FORM_TOLERANCE, f"forms must agree to {_FORM_TOLERANCE}, got {worst:.1e}"
    print(f"All within the tolerance of {_FORM_TOLERANCE:g} (relative).\n")


def _show_bits(
    model: RetNetForCausalLM, corpus: Corpus, held_out: list[bytes]
) -> tuple[float, dict[str, float]]:
    final = bits_per_byte(model, held_out)
    names = {"bigram": 2, "trigram": 3}
    yardsticks = {
        name: NGram(corpus.train, order).bits_per_byte(held_out) for name, order in names.items()
    }
    print(
        f"Bits per byte on {len(held_out)} of the {len(corpus.held_out)} held-out files "
        "(n-gram models with Witten-Bell smoothing):"
    )
    for name, bits in yardsticks.items():
        print(f"  byte {name:8} {bits:.3f}")
    print(
        f"  RetNet        {final:.3f}  = {final / yardsticks['bigram']:.3f} x bigram, "
        f"{final / yardsticks['trigram']:.3f} x trigram"
    )
    print(f"Target: {_BIGRAM_SHARE} x bigram = {_BIGRAM_SHARE * yardsticks['bigram']:.3f}.\n")
    return final, yardsticks


if __name__ == "__main__":
    sys.exit(main())
