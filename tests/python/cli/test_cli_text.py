# SPDX-License-Identifier: Apache-2.0
"""The command `retnet`: which tokenizer it uses, what it reads with it, and what it prints."""

import io
import re
import sys

import pytest
import torch

import retnet
from retnet.cli import main
from retnet.generation import generate
from support.cases.train import MODEL, make_byte_model

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["?", "<s>", "</s>", "the", "cat", "sat", "on", "mat"]
TEXT = "the cat sat on the mat\n" * 30  # 180 words


def save_words(path, words=WORDS, single=None):
    """Writes a tokenizer.json of whole words."""
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if single:
        tokenizer.add_special_tokens(["<s>", "</s>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer.save(str(path))
    return tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Returns the working directory, with a text and a tokenizer.json of its words."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text(TEXT)
    save_words(tmp_path / "words.json")
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def train(out, *options):
    sizes = [x for key, value in MODEL.items() for x in (f"--model.{key}", value)]
    model = () if "--init" in options else sizes
    return run("train", "--data", "text", "--out", out, "--steps", 2, "--batch_size", 2,
               "--seq_len", 8, "--device", "cpu", *model, *options)  # fmt: skip


def refused(capsys, message):
    """Checks that stderr has one line of error. Returns whether nothing else was printed."""
    printed = capsys.readouterr()
    assert re.search(message, printed.err) and printed.err.count("\n") == 1, printed.err
    return printed.out == ""


# What is read


@pytest.mark.parametrize("setting", ["truncation", "padding"])
def test_files_are_read_whole(setting, folder, capsys):
    tokenizer = Tokenizer.from_file("words.json")
    if setting == "truncation":
        tokenizer.enable_truncation(16)
    else:
        tokenizer.enable_padding(length=1000)
    tokenizer.save("words.json")
    assert train("run", "--tokenizer", "words.json", "--validation_share", 0) == 0
    assert "180 tokens to train on, 0 held out" in capsys.readouterr().out
    assert (folder / "run/tokenizer.json").read_bytes() == (folder / "words.json").read_bytes()
    assert run("eval", "run", "text") == 0
    count = len(TEXT) - len("the") - len("\n")  # no token holds the last white space
    assert f"1 files, 179 tokens and {count} bytes predicted" in capsys.readouterr().out
    # A prompt is neither truncated nor padded.
    model = retnet.load("run")
    prompt = [3, 4, 5, 6] * 9
    text = " ".join(WORDS[n] for n in prompt)
    assert run("generate", "run", "--prompt", text, "--max_new_tokens", 9, "--temperature", 0) == 0
    new = generate(model, torch.tensor([prompt]), max_new_tokens=9, temperature=0)[0][36:]
    assert capsys.readouterr().out == " ".join([text, *(WORDS[n] for n in new)]) + "\n"


@pytest.mark.parametrize("prompt, ids", [("the cat", [1, 3, 4]), ("", [1]), ("a </s>", [1, 0, 2])])
def test_a_prompt_is_continued_before_the_end_of_the_document(prompt, ids, folder, capsys):
    save_words("words.json", single="<s> $A </s>")
    assert train("run", "--tokenizer", "words.json", "--validation_share", 0) == 0
    assert "182 tokens to train on" in capsys.readouterr().out
    model = retnet.load("run")
    options = ("--prompt", prompt, "--max_new_tokens", 12, "--seed", 5)
    assert run("generate", "run", *options) == 0
    new = generate(model, torch.tensor([ids]), max_new_tokens=12, seed=5)[0][len(ids) :].tolist()
    words = [WORDS[n] for n in new if n not in (1, 2)]
    assert capsys.readouterr().out == prompt + " " * bool(prompt) + " ".join(words) + "\n"


# What is printed


def save_byte_fallback_model(folder):
    """Saves an untrained model. Most of what it generates is not UTF-8."""
    vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    vocabulary |= {"▁": 257, "h": 258, "i": 259}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    make_byte_model(vocab_size=len(vocabulary)).save(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["bytes", "tokens"])
def test_any_output_is_text(kind, folder, capsys):
    if kind == "bytes":
        make_byte_model(vocab_size=256).save(folder)
    else:
        save_byte_fallback_model(folder)
    for seed in range(3):
        options = ("--max_new_tokens", 80, "--seed", seed)
        assert run("generate", ".", "--prompt", "hi é", *options) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith("hi é") and printed.out.count("\ufffd") > 20
        assert printed.err == ""


def test_an_incomplete_character_is_shown(folder, capsys):
    model = make_byte_model(vocab_size=256)
    with torch.no_grad():  # always the first byte of a character of four
        model.norm.weight.zero_(), model.norm.bias.fill_(1)
        model.lm_head.weight.zero_()[0xF0] = 1
    model.save(folder)
    for count in (1, 3):
        options = ("--max_new_tokens", count, "--temperature", 0)
        assert run("generate", ".", "--prompt", "a", *options) == 0
        assert capsys.readouterr().out == "a" + "\ufffd" * count + "\n"


@pytest.mark.parametrize("kind", ["bytes", "tokens"])
def test_a_prompt_that_is_not_utf8(kind, folder, capsys):
    if kind == "bytes":
        make_byte_model(vocab_size=256).save(folder)
    else:
        save_byte_fallback_model(folder)
    assert run("generate", ".", "--prompt", "caf\udce9") == 1
    assert refused(capsys, r"^retnet generate: prompt must be UTF-8, got 'caf\\udce9' around")


def test_output_that_stdout_cannot_encode(folder, capsys, monkeypatch):
    """In the locale C, Python's escapes replace what is not ASCII."""
    save_byte_fallback_model(folder)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("retnet.cli.keep_memory_mapped", lambda: None)
    monkeypatch.setattr(sys, "argv", ["retnet", "generate", ".", "--prompt", "hi é", "--seed", "1"])
    assert main() == 0
    out.flush()
    assert out.buffer.getvalue().startswith(rb"hi \xe9") and rb"\ufffd" in out.buffer.getvalue()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("options", [(), ("--temperature", 0), ("--top_k", 3)])
def test_weights_that_are_not_finite(options, folder, capsys):
    model = make_byte_model(vocab_size=256)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    model.save(folder)
    assert run("generate", ".", "--prompt", "hi", *options) == 1
    assert refused(capsys, "^retnet generate: logits must be finite, got nan for prompt 0; the w")
    assert run("eval", ".", "text") == 1
    assert refused(capsys, "^retnet eval: loss must be finite, got nan; the weights may hold NaN")


# Which tokenizer is used


@pytest.fixture
def base(folder):
    """Returns the folder of a run on words. It also holds tokenizers with the same words in another
    order, one word more and one less.
    """
    assert train("base", "--tokenizer", "words.json") == 0
    save_words("other.json", [*WORDS[:3], *WORDS[:2:-1]])
    save_words("more.json", [*WORDS, "dog"])
    save_words("less.json", WORDS[:-1])
    return folder


def test_init_takes_the_tokenizer_of_its_folder(base, capsys):
    assert train("new", "--init", "base") == 0
    assert "162 tokens to train on" in capsys.readouterr().out
    assert (base / "new/tokenizer.json").read_bytes() == (base / "words.json").read_bytes()
    assert run("generate", "new", "--prompt", "the cat") == 0
    assert run("eval", "new", "text") == 0
    capsys.readouterr()
    # The run continues with the tokenizer in its own folder and accepts no other.
    (base / "base/tokenizer.json").unlink()
    assert train("new", "--init", "base", "--resume", "--steps", 3) == 0
    assert (
        train("new", "--init", "base", "--resume", "--steps", 4, "--tokenizer", "other.json") == 1
    )
    assert "other.json: tokens must be those of " in capsys.readouterr().err


@pytest.mark.parametrize("name, size", [("more.json", 9), ("less.json", 7)])
def test_a_tokenizer_of_more_or_fewer_tokens_is_told(name, size, base, capsys):
    text = (base / "text").read_text()
    (base / "text").write_text(text.replace("mat", "cat"))
    capsys.readouterr()
    for number, command in enumerate(
        (("generate", "base", "--prompt", "the"), ("eval", "base", "text"), ("train",))
    ):
        done = train("new", "--init", "base", "--tokenizer", name) if number == 2 else run(
            *command, "--tokenizer", name
        )  # fmt: skip
        warning = f"retnet {command[0]}: warning: vocab_size = 8 of the model is not that of the "
        assert done == 0 and f"{warning}tokenizer ({size})\n" in capsys.readouterr().err
    assert (base / "new/tokenizer.json").read_bytes() == (base / name).read_bytes()


def test_the_tokens_of_a_model_cannot_change(base, capsys):
    capsys.readouterr()
    named = ("--tokenizer", "other.json")
    for done in (
        lambda: run("generate", "base", "--prompt", "the", *named),
        lambda: run("eval", "base", "text", *named),
        lambda: train("new", "--init", "base", *named),
        lambda: train("base", "--resume", "--steps", 4, *named),
    ):
        assert done() == 1
        message = r"other\.json: tokens must be those of .*base/tokenizer\.json, got 'mat' for id 3"
        assert refused(capsys, f"{message}, not 'the'$")
    assert not (base / "new").exists()


def test_tokens_are_never_read_as_bytes(base, capsys):
    """This holds even if the tokenizer has as many tokens as there are bytes."""
    assert train("many", "--tokenizer", "words.json", "--model.vocab_size", 256) == 0
    make_byte_model(vocab_size=300).save(base / "saved")
    for folder, why in (("many", "its model learned tokens"), ("saved", "vocab_size = 300 is not")):
        (base / folder / "tokenizer.json").unlink(missing_ok=True)
        capsys.readouterr()
        for done in (
            lambda folder=folder: run("generate", folder, "--prompt", "the"),
            lambda folder=folder: run("eval", folder, "text"),
            lambda folder=folder: train("new", "--init", folder),
        ):
            assert done() == 1
            message = (
                rf"{folder}: holds no tokenizer\.json, and {why}.*; name one with --tokenizer$"
            )
            assert refused(capsys, message)
    assert not (base / "new").exists()
    assert train("many", "--resume", "--steps", 3, "--model.vocab_size", 256) == 1
    assert refused(capsys, "its model learned tokens")


def test_bytes_are_never_read_as_tokens(base, capsys):
    assert train("bytes", "--model.vocab_size", 300) == 0
    capsys.readouterr()
    named = ("--tokenizer", "words.json")
    for done in (
        lambda: run("generate", "bytes", "--prompt", "the", *named),
        lambda: run("eval", "bytes", "text", *named),
        lambda: train("new", "--init", "bytes", *named),
        lambda: train("bytes", "--resume", "--steps", 4, "--model.vocab_size", 300, *named),
    ):
        assert done() == 1
        assert refused(capsys, r"words\.json: must not be used, the model of .*bytes learned bytes")
    # A model may have more ids than there are bytes.
    assert run("generate", "bytes", "--prompt", "the", "--seed", 1) == 0
    assert run("eval", "bytes", "text") == 0
    assert train("new", "--init", "bytes") == 0
    assert train("bytes", "--resume", "--steps", 3, "--model.vocab_size", 300) == 0


def test_bytes_beside_a_tokenizer_are_refused(folder, capsys):
    """Otherwise generate would use that tokenizer."""
    (folder / "run").mkdir()
    (folder / "words.json").rename(folder / "run/tokenizer.json")
    assert train("run") == 1
    assert refused(
        capsys, r"run: holds a tokenizer\.json, but the run reads bytes; name it with --to"
    )
    assert [path.name for path in (folder / "run").iterdir()] == ["tokenizer.json"]
    assert train("run", "--tokenizer", "run/tokenizer.json") == 0
    assert run("generate", "run", "--prompt", "the") == 0
