# SPDX-License-Identifier: Apache-2.0
"""The parts of the demo: corpus, n-gram models, forms, plots, command."""

import fcntl
import json
import math
import os
import re

import pytest
import torch

pytest.importorskip("matplotlib")

from torch.nn import functional as F

import retnet
from retnet.config import RetNetConfig
from retnet.demo import __main__ as command
from retnet.demo.forms import Decoding, compare_forms, measure_decoding
from retnet.demo.ngram import NGram
from retnet.demo.plots import plot_decay, plot_decoding, plot_loss
from retnet.demo.training import (
    Corpus,
    Point,
    bits_per_byte,
    load_corpus,
    read_curve,
    settings_for,
)
from retnet.nn import RetNetForCausalLM
from retnet.training.text import as_tokens
from support.exchange import check_results, exchange, write_inputs

TEXT = b"the cat sat on the mat, the dog sat on the log. " * 60


@pytest.fixture(autouse=True)
def one_thread():
    """Uses one thread. On a busy machine, two threads wait for each other longer than these models
    compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model():
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "num_layers": 1, "num_heads": 2, "key_dim": 8, "value_dim": 16}
    return RetNetForCausalLM(RetNetConfig.preset("tiny", decay="power2", ffn_dim=32, **sizes))


# Corpus


def test_corpus_splits_and_leaves_out(tmp_path):
    for n in range(20):
        (tmp_path / f"m{n:02}.py").write_bytes(b"x = %d" % n)
    (tmp_path / "m03_empty.py").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"no")
    for folder in ("site-packages/a", "test", "sub/tests", "idlelib/idle_test"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "left_out.py").write_bytes(b"no = 1")
    corpus = load_corpus(tmp_path)
    assert corpus.held_out == [b"x = 9", b"x = 19"]
    assert corpus.train == [b"x = %d" % n for n in range(20) if n % 10 != 9]


def test_corpus_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold 10 \*.py files or more, got 0"):
        load_corpus(tmp_path)


def test_tokens_are_bytes():
    assert as_tokens(b"\x00a\xff").tolist() == [0, 97, 255]


# N-gram models, by hand: training text "abab", "ba": counts a 3, b 3; ab 2, ba 2; aba 1, bab 1


def test_bigram_by_hand():
    model = NGram([b"abab", b"ba"], 2)
    one_a = (3 + 2 / 256) / 8
    one_c = (0 + 2 / 256) / 8
    b_after_a = (2 + 1 * one_a) / 3
    c_after_b = (0 + 1 * one_c) / 3
    assert model.bits(b"ab") == pytest.approx(-math.log2(b_after_a))
    assert model.bits(b"abc") == pytest.approx(-math.log2(b_after_a * c_after_b))
    # "c" was never seen, so the prediction after it falls back to single bytes.
    assert model.bits(b"ca") == pytest.approx(-math.log2(one_a))


def test_trigram_by_hand():
    model = NGram([b"abab", b"ba"], 3)
    one_a = (3 + 2 / 256) / 8
    a_after_b = b_after_a = (2 + 1 * one_a) / 3
    a_after_ab = (1 + 1 * a_after_b) / 2
    assert model.bits(b"aba") == pytest.approx(-math.log2(b_after_a * a_after_ab))
    a_after_a = (0 + 1 * one_a) / 3
    assert model.bits(b"bbaa")  # the context of two bytes was never seen, so the bigram decides
    assert model.bits(b"aaa") == pytest.approx(-2 * math.log2(a_after_a))
    assert model.bits_per_byte([b"aaa", b"aba"]) == pytest.approx(
        (model.bits(b"aaa") + model.bits(b"aba")) / 4
    )


@pytest.mark.parametrize("order", [2, 3])
def test_ngram_probabilities_sum_to_one(order):
    model = NGram([TEXT], order)
    for context in (b"th", b"t", b"zq", b"z"):
        bits = [model.bits(context + bytes([c])) for c in range(256)]
        before = model.bits(context) if len(context) > 1 else 0.0
        assert sum(2 ** -(b - before) for b in bits) == pytest.approx(1)


def test_ngram_order_error():
    with pytest.raises(ValueError, match="NGram: order must be 2 or 3, got 4"):
        NGram([TEXT], 4)


# Training


def test_recipe(tmp_path):
    """The recipe reaches the target in 5 minutes on two cores."""
    settings = settings_for(5, tmp_path)
    assert (settings.batch_size, settings.seq_len, settings.grad_accum_steps) == (4, 256, 1)
    assert (settings.lr, settings.warmup, settings.weight_decay) == (4e-3, 0.03, 0.1)
    assert (settings.betas, settings.clip, settings.minutes) == ((0.9, 0.95), 1.0, 5)
    assert not settings.stream and settings.precision == "float32"


def test_curve_comes_from_the_log(tmp_path):
    lines = [
        {"step": 1, "loss": 5.0, "tokens": 8, "seconds": 0.5},
        {"step": 1, "smoothed_loss": 3.0, "validation_loss": 4.0, "tokens": 8, "seconds": 0.7},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (point,) = read_curve(tmp_path / "log.jsonl")
    assert point == Point(0.7, 8, 3 / math.log(2), 4 / math.log(2))


def test_bits_per_byte_reads_whole_files(monkeypatch):
    monkeypatch.setattr("retnet.training.evaluation._TOKENS", 50)
    model = make_model().double()
    files = [TEXT[:131], b"ab"]
    nats = 0.0
    for text in files:
        ids = as_tokens(text).long().unsqueeze(0)
        logits = model(ids[:, :-1]).logits[0]
        nats += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    # The state is passed between segments, and the model computes in float64.
    assert bits_per_byte(model, files) == pytest.approx(nats / 131 / math.log(2), rel=1e-6)


# Forms, plots, the whole command


def test_forms_agree_in_the_table():
    rows = compare_forms(make_model(), as_tokens(TEXT[:200]).long().unsqueeze(0))
    assert [row.pair for row in rows] == [
        "chunkwise - parallel",
        "recurrent - parallel",
        "recurrent - chunkwise",
        "decode steps - chunkwise",
    ]
    assert all(row.relative < 1e-5 and row.max_abs < 1e-4 for row in rows)


def test_forms_that_differ_show(monkeypatch):
    model = make_model()
    forward = type(model).forward

    def skewed(self, ids, form="chunkwise", **rest):
        output = forward(self, ids, form=form, **rest)
        return output._replace(logits=output.logits * 1.01) if form == "recurrent" else output

    monkeypatch.setattr(type(model), "forward", skewed)
    rows = compare_forms(model, as_tokens(TEXT[:40]).long().unsqueeze(0))
    assert [row.relative > 5e-3 for row in rows] == [False, True, True, False]


def test_decoding_state_does_not_grow():
    model = make_model()
    decoding = measure_decoding(model, 20)
    assert len(decoding.step_us) == 20 and min(decoding.step_us) > 0
    assert set(decoding.state_bytes) == {1 * 2 * 8 * 16 * 4 + 8}


def test_pictures(tmp_path):
    curve = [Point(15.0 * n, 1000 * n, 4.0 / n, 4.2 / n) for n in range(1, 5)]
    plot_loss(curve, {"bigram": 3.5, "trigram": 2.6}, 1.1, tmp_path / "loss.png")
    plot_decay(make_model().config, tmp_path / "decay.png")
    decoding = Decoding([100.0 + n % 7 for n in range(256)], [1000] * 256)
    plot_decoding(make_model().config, decoding, tmp_path / "decoding.png")
    for name in ("loss", "decay", "decoding"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def small_demo(monkeypatch):
    files = [TEXT[n : n + 700] for n in range(20)]
    monkeypatch.setattr(command, "load_corpus", lambda: Corpus(files, [TEXT[5:900], TEXT[:600]]))
    monkeypatch.setattr(command, "RetNetForCausalLM", lambda config: make_model())
    monkeypatch.setattr(command, "_DECODE_STEPS", 128)


def test_command_end_to_end(small_demo, tmp_path, capsys):
    assert command.main(["--minutes", "0.01", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in (
        *("Before training", "After training", "decode steps - chunkwise", "x bigram"),
        "on 1 of the 2 held-out files",
    ):
        assert part in text
    found = {p.name for p in tmp_path.iterdir()} - {"tensorboard"}
    (state,) = (name for name in found if name.startswith("training-"))
    assert found - {state} == {
        "config.json",
        "model.safetensors",
        "log.jsonl",
        "loss.png",
        "decay.png",
        "decoding.png",
    }
    assert command.main(["--minutes", "0.02", "--out", str(tmp_path), "--resume"]) == 0
    assert "Resumed" in capsys.readouterr().out
    assert not (tmp_path / state).exists()
    # A run from the start replaces the old one, whatever model the old one had.
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    other = RetNetForCausalLM(RetNetConfig.preset("tiny", norm="rms"))
    other.save(tmp_path)
    assert command.main(["--minutes", "0.01", "--out", str(tmp_path)]) == 0
    assert retnet.load(tmp_path).config == make_model().config


def test_cpp_reads_the_checkpoint(small_demo, tmp_path):
    assert command.main(["--minutes", "0.01", "--out", str(tmp_path)]) == 0
    model, ids = retnet.load(tmp_path), as_tokens(TEXT[:40]).long().view(2, 20)
    with torch.no_grad():
        write_inputs(tmp_path, model, ids)
        exchange([tmp_path])
        check_results(tmp_path, model, ids)


def test_command_reports_an_interruption(small_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "train", lambda _: 2)
    assert command.main(["--minutes", "0.01", "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().out


def test_command_is_refused_where_another_run_writes(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_text("")
    handle = os.open(tmp_path / ".retnet.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert command.main(["--out", str(tmp_path)]) == 1
    os.close(handle)
    assert re.fullmatch(r"retnet\.demo: .*: in use by .*\n", capsys.readouterr().err)
    assert (tmp_path / "model.safetensors").exists()


def test_command_holds_a_full_run_to_the_target(small_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "_FULL_MINUTES", 0.001)
    monkeypatch.setattr(command, "bits_per_byte", lambda *_: 7.0)
    with pytest.raises(AssertionError, match=r"bits per byte must be <= .*, got 7"):
        command.main(["--minutes", "0.002", "--out", str(tmp_path)])
