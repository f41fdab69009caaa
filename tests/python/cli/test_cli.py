# SPDX-License-Identifier: Apache-2.0
"""The command `retnet`: what a run writes, and what generate and eval print."""

import dataclasses
import importlib.util
import math
import os
import re
import sys

import pytest
import torch

import retnet
from retnet.generation import generate
from retnet.training.evaluation import evaluate
from retnet.training.settings import TrainingSettings, tomllib
from retnet.training.text import as_tokens
from support.cases.cli import losses, run
from support.cases.train import MODEL, make_byte_model, read_log
from support.paths import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")


def read_board(out, name):
    """Returns what TensorBoard shows of a run: {step: value}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard")).Reload()
    return {event.step: pytest.approx(event.value, rel=1e-6) for event in board.Scalars(name)}


def test_train_writes_a_checkpoint_a_log_and_its_settings(folder, capsys):
    assert run("train", folder / "run.toml", "--lr", "2e-3", "--model.num_layers", 2,
               "--check_every", 0) == 0  # fmt: skip
    out = folder / "run"
    assert {path.name for path in out.iterdir()} - {"tensorboard"} == {
        "config.json", "model.safetensors", "training-6.pt", "log.jsonl", "run.toml",
    }  # fmt: skip
    written = tomllib.loads((out / "run.toml").read_text())
    assert written["lr"] == 2e-3 and written["seq_len"] == 32 and written["clip"] == 1.0
    assert written["model"] == {**MODEL, "num_layers": 2}
    model = retnet.load(out)
    assert model.config == make_byte_model(num_layers=2).config
    checks = [line for line in read_log(out) if "validation_loss" in line]
    assert len(checks) == 6 and checks[-1]["tokens"] == 6 * 2 * 32
    text = capsys.readouterr().out
    assert re.search(r"parameters on \w+; [\d,]+ bytes to train on, 333 held out", text)
    if importlib.util.find_spec("tensorboard"):
        assert read_board(out, "loss") == dict(enumerate(losses(out), start=1))
    # The copy of the settings describes a run by itself and works from any folder.
    assert run("train", out / "run.toml", "--resume", "--steps", 7) == 0
    assert len(losses(out)) == 7


def test_options_replace_keys_of_every_type(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert run("train", "--data", "text/00.txt", "text/02.txt", "--out", "new", "--steps", 1,
               "--betas", 0.5, 0, "--stream", "--validation", "text/04.txt", "--batch_size", 1,
               "--model.embed_dim", 16, "--model.decay", "[-1, -0.5, -0.2, -0.1]",
               "--model.tie_embeddings", "true", "--model.rotary_style", "half") == 0  # fmt: skip
    written = tomllib.loads((folder / "new" / "run.toml").read_text())
    assert written["data"] == [str(folder / "text/00.txt"), str(folder / "text/02.txt")]
    assert written["out"] == str(folder / "new")
    assert written["betas"] == [0.5, 0.0] and written["stream"] is True
    config = retnet.load(folder / "new").config
    assert config.decay == (-1.0, -0.5, -0.2, -0.1) and config.tie_embeddings
    assert config.embed_dim == 16 and config.rotary_style == "half"


def test_init_starts_from_a_checkpoint(folder):
    model = make_byte_model(norm="rms").bfloat16()
    model.save(folder / "first")
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(text[: text.index("[model]")])
    assert run("train", folder / "run.toml", "--init", folder / "first", "--lr", 0) == 0
    new = retnet.load(folder / "run")
    assert new.config == model.config and new.norm.weight.dtype == torch.float32
    for a, b in zip(model.parameters(), new.parameters(), strict=True):
        assert torch.equal(a.float(), b)


def test_words(word_run, capsys):
    assert run("train", word_run / "run.toml") == 0
    assert retnet.load(word_run / "run").config.vocab_size == 6
    assert run("generate", word_run / "run", "--prompt", "the cat", "--max_new_tokens", 5) == 0
    text = capsys.readouterr().out.splitlines()[-1]
    assert text.startswith("the cat ") and len(text.split()) == 7
    (word_run / "one").write_text("the cat sat")
    assert run("eval", word_run / "run", word_run / "one") == 0
    assert "1 files, 2 tokens and 8 bytes predicted" in capsys.readouterr().out
    # If the vocabulary of the tokenizer differs from that of the model, a warning says so.
    for size in (8, 5):
        make_byte_model(vocab_size=size).save(word_run / f"model{size}")
        named = (word_run / f"model{size}", "--tokenizer", word_run / "words.json")
        assert run("generate", *named, "--prompt", "the", "--max_new_tokens", 3) == 0
        assert run("eval", *named, word_run / "one") == 0
        warning = f"warning: vocab_size = {size} of the model is not that of the tokenizer (6)"
        assert capsys.readouterr().err.count(warning) == 2
    # A vocabulary that is too small for the tokens is an error.
    assert (
        run("train", word_run / "run.toml", "--out", word_run / "b", "--model.vocab_size", 5) == 1
    )
    assert re.search(r"token ids must be in 0\.\.4 \(vocab_size\), got 5", capsys.readouterr().err)


@pytest.mark.parametrize("page", ["README.md", "docs/python/command_line.md"])
def test_the_page_shows_a_run(page):
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    plain = TrainingSettings(**tomllib.loads(block))
    assert plain.model_config(256).embed_dim == 1024 and plain.grad_accum_steps == 2
    if "README" not in page:
        full = TrainingSettings(**tomllib.loads(block.replace("\n# tok", "\ntok")))
        begun = block[: block.index("[model]")].replace("\n# init", "\ninit")
        assert plain.stream and full.tokenizer and TrainingSettings(**tomllib.loads(begun)).init


def help_texts(command, monkeypatch, capsys):
    """Returns {option: (text, default)}, as `retnet COMMAND --help` prints them."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        run(command, "--help")
    printed = re.sub(r"\n {20,}", "   ", capsys.readouterr().out)
    lines = re.findall(r"^  (?:-h, )?--(\S+)(?: \S+)*(?: {2,}(\S.*))?$", printed, re.MULTILINE)
    texts = {option: re.fullmatch(r"(.*?) ?(?:\(default: (.*)\))?", text) for option, text in lines}
    return {option: (found[1], values(found[2] or "")) for option, found in texts.items()}


def page_texts(first):
    """Returns {name: (text, default)} of the table whose first column has the title `first`."""
    page = (ROOT / "docs/python/command_line.md").read_text().replace("`", "")
    table = page.partition(f"| {first} | default | meaning |\n")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row[1:-1].split("|")] for row in table.splitlines()[1:]]
    return {name.removeprefix("--"): (text, values(default)) for name, default, text in rows}


def values(text):
    """Returns the words and numbers of a default, without the brackets and quotes of TOML."""
    words = re.findall(r'[^\s,"\[\]]+', text)
    return [float(word) if word[0].isdigit() else word for word in words]


@pytest.mark.parametrize("command", ["train", "generate", "eval", "convert"])
def test_every_option_has_a_text(command, monkeypatch, capsys):
    texts = help_texts(command, monkeypatch, capsys)
    assert len(texts) > 3
    assert [option for option, (text, _) in texts.items() if len(text) < 10] == []


def test_page_and_help_of_train_agree(monkeypatch, capsys):
    options = help_texts("train", monkeypatch, capsys)
    keys = {key.name for key in dataclasses.fields(TrainingSettings)} - {"model"}
    model = {f"model.{key.name}" for key in dataclasses.fields(retnet.RetNetConfig)}
    assert set(options) == keys | model | {"help", "resume", "model.preset"}
    page = page_texts("key")
    assert page.pop("[model]")[0]
    assert page == {name: options[name] for name in keys}


def test_page_and_help_of_generate_agree(monkeypatch, capsys):
    options = help_texts("generate", monkeypatch, capsys)
    page = page_texts("option of generate")
    assert set(page) == set(options) - {"help", "device", "tokenizer"}
    assert page == {name: options[name] for name in page}


def test_help_lists_the_presets(monkeypatch, capsys):
    text, default = help_texts("train", monkeypatch, capsys)["model.preset"]
    with pytest.raises(ValueError) as error:
        retnet.RetNetConfig.preset("none")
    presets = re.findall('"(.*?)"', str(error.value))
    assert re.findall(r"[\w.]+", text.partition(": ")[2].replace(" or ", " ")) == presets
    assert default == ["tiny"]


# generate, eval


def test_generate_streams_the_text_of_generate(tmp_path, capsys):
    model = make_byte_model()
    model.save(tmp_path)
    for options, how in (
        (("--temperature", 0), {"temperature": 0}),
        (("--seed", 3, "--top_k", 9), {"seed": 3, "top_k": 9}),
        (("--seed", 3, "--top_p", 0.5), {"seed": 3, "top_p": 0.5}),
    ):
        assert run("generate", tmp_path, "--prompt", "thé", "--max_new_tokens", 20, *options) == 0
        ids = generate(model, torch.tensor([list("thé".encode())]), max_new_tokens=20, **how)
        want = bytes(ids[0].tolist()).decode(errors="replace")
        assert capsys.readouterr().out == want + "\n"


def test_generate_into_a_closed_pipe(tmp_path, capfd):
    make_byte_model().save(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        os.close(reader)
        os.close(writer)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        os._exit(run("generate", tmp_path, "--prompt", "x", "--max_new_tokens", 10**6))
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("window", [None, 16])
def test_eval_states_its_context(window, folder, capsys):
    model = make_byte_model()
    model.save(folder / "model")
    files = [folder / "text" / name for name in ("00.txt", "02.txt")]
    options = ("--window", window) if window else ()
    assert run("eval", folder / "model", *files, *options) == 0
    text = capsys.readouterr().out
    score = evaluate(model, [as_tokens(path.read_bytes()) for path in files], window)
    said = {key: value for key, value in (line.split(maxsplit=1) for line in text.splitlines())}
    assert said["text"] == f"2 files, {score.tokens} tokens and {score.tokens} bytes predicted"
    assert said["loss"] == f"{score.loss:.4f} nats/token"
    assert float(said["perplexity"].split()[0]) == pytest.approx(math.exp(score.loss), abs=1e-3)
    assert said["bits/byte"] == f"{score.loss / math.log(2):.4f}"
    state = "all of the document before each token (the state is carried)"
    assert said["context"].startswith("windows of 16 tokens; before each" if window else state)
