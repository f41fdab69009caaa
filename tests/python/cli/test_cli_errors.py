# SPDX-License-Identifier: Apache-2.0
"""The command `retnet`: an error is one line, the exit status is not 0, and nothing is lost."""

import json
import os
import re
import subprocess
import sys

import pytest

import retnet
from retnet.cli import main
from retnet.training.settings import RENAMED
from support.cases.cli import cut_short, losses, run
from support.cases.train import full_disk, make_byte_model

pytestmark = pytest.mark.usefixtures("one_thread")

BAD_RUNS = {
    "no file": (("none.toml",), 1, "none.toml: No such file or directory"),
    "not toml": (("bad.toml",), 1, "bad.toml: must be TOML: "),
    "unknown key": (("key.toml",), 1, r"unknown key seq_lenn \(did you mean 'seq_len'\?\)"),
    "old keys": (
        ("old.toml",),
        1,
        "old.toml: keys were renamed: batch is now batch_size, accumulate is now grad_accum_steps$",
    ),
    "old option": (("run.toml", "--length", "8"), 2, "--length was renamed to --seq_len; "),
    "old option=": (("--batch=8",), 2, "--batch was renamed to --batch_size; "),
    "unknown option": (("run.toml", "--wamup", "1"), 2, r"--wamup \(did you mean '--warmup'\?\)"),
    "unknown field": (("model.toml",), 1, r"model\.embed_dims \(did you mean 'embed_dim'\?\)"),
    "bad field": (("run.toml", "--model.key_dim", "7"), 1, "key_dim must be even, got 7"),
    "bad preset": (("run.toml", "--model.preset", "huge"), 1, "name must be one of .* got 'huge'"),
    "type": (("run.toml", "--lr", "fast"), 1, "lr must be a finite number, got 'fast'"),
    "range": (("run.toml", "--batch_size", "0"), 1, r"batch_size must be in 1\.\.inf, got 0"),
    "long": (("run.toml", "--lr", "1" * 400), 1, "lr must be a finite number, got 1{400}$"),
    "long beta": (("run.toml", "--betas", "0", "1" * 400), 1, "betas must be a list of finite n"),
    "nested": (("nested.toml",), 1, "nested.toml: must be TOML: maximum recursion"),
    "nested value": (("run.toml", "--lr", "[" * 9999), 1, "lr must be a finite number, got '\\["),
    "no table": (("small.toml", "--model.num_layers", "2"), 1, "model must be a table, got 'small"),
    "preset list": (("run.toml", "--model.preset", '["tiny"]'), 1, r"name must .* got \['tiny'\]"),
    "empty path": (("run.toml", "--data", ""), 1, "data must name files or .* got an empty path"),
    "empty check": (("run.toml", "--validation", ""), 1, "validation must name .* an empty path"),
    "meta": (("run.toml", "--device", "meta"), 1, "device: must be available, got 'meta'"),
    "memory": (
        ("run.toml", "--model.vocab_size", "2147483647", "--model.embed_dim", "65536"),
        1,
        "train: not enough memory: .*can't allocate memory",
    ),
    "sizes": (
        ("run.toml", "--model.vocab_size", "2147483647", "--model.embed_dim", "2147483647"),
        1,
        "train: not enough memory: Storage size calculation overflowed",
    ),
    "no steps": (("run.toml", "--steps", "0"), 1, "either steps or minutes must be > 0"),
    "no data": (("run.toml", "--data", "none"), 1, "none: no such file or folder"),
    "empty folder": (("run.toml", "--data", "empty"), 1, "must hold files to read, got an empty"),
    "empty file": (("run.toml", "--data", "empty.txt"), 1, "must hold at least two tokens"),
    "short": (("run.toml", "--seq_len", "9999"), 1, "must hold at least seq_len = 9999 tokens"),
    "tokens": (("run.toml", "--model.vocab_size", "100"), 1, r"token ids must be in 0\.\.99"),
    "device": (("run.toml", "--device", "abacus"), 1, "device: must be available, got 'aba"),
    "precision": (("run.toml", "--precision", "int8"), 1, "precision must be one of float32, bfl"),
    "tokenizer": (("run.toml", "--tokenizer", "empty.txt"), 1, "tokenizer.json|pip install"),
    "init": (("plain.toml", "--init", "empty"), 1, "must hold config.json and model.safetensors"),
    "cut init": (("plain.toml", "--init", "cut"), 1, "cut/model.safetensors: must be a whole saf"),
    "unreadable": (("run.toml", "--data", "memory"), 1, "mem: Input/output error"),
    "out": (("run.toml", "--out", "empty.txt/x"), 1, "empty.txt/x: Not a directory"),
}


@pytest.mark.parametrize("arguments, status, message", BAD_RUNS.values(), ids=BAD_RUNS.keys())
def test_bad_run(arguments, status, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    (folder / "empty.txt").touch()
    (folder / "memory").symlink_to("/proc/self/mem")  # it can be opened, but not read at its start
    make_byte_model().save(folder / "cut")
    cut_short(folder / "cut" / "model.safetensors")
    (folder / "bad.toml").write_text("lr = = 1")
    (folder / "nested.toml").write_text("x = " + "[" * 200_000)
    (folder / "old.toml").write_text("steps = 1\naccumulate = 2\nbatch = 3")
    (folder / "small.toml").write_text('model = "small"')
    (folder / "key.toml").write_text("seq_lenn = 1")
    text = (folder / "run.toml").read_text()
    (folder / "model.toml").write_text(text + "embed_dims = 3\n")
    (folder / "plain.toml").write_text(text[: text.index("[model]")])
    try:
        found = run("train", *arguments)
    except SystemExit as error:
        found = error.code
    printed = capsys.readouterr().err
    assert found == status and re.search(message, printed), printed
    assert printed.startswith("retnet train: ") and printed.count("\n") == 1
    assert not (folder / "run").exists()


def test_a_run_is_not_overwritten(folder, capsys):
    assert run("train", folder / "run.toml") == 0
    before = {path: path.read_bytes() for path in (folder / "run").iterdir() if path.is_file()}
    for more, message in (
        ((), "holds a model; continue with --resume, or choose another out"),
        (("--resume", "--model.norm", "rms"), "must hold the model of the settings"),
        (("--resume", "--stream"), "stream must be that of the run"),
        (("--resume", "--data", folder / "text/deep"), "the text in data has changed since"),
        (("--resume", "--seed", 1), "seed must be that of the run (0), got 1"),
    ):
        assert run("train", folder / "run.toml", *more) == 1
        assert message in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (folder / "run").iterdir() if p.is_file()}


def test_a_run_of_an_older_version_goes_on_once_its_keys_are_renamed(folder, capsys):
    assert run("train", folder / "run.toml") == 0
    settings = folder / "run" / "run.toml"
    new = old = settings.read_text()
    for before, now in RENAMED.items():
        assert re.search(f"^{now} = ", old, re.MULTILINE)
        old = re.sub(f"^{now} = ", f"{before} = ", old, flags=re.MULTILINE)
    settings.write_text(old)
    capsys.readouterr()
    assert run("train", settings, "--resume", "--steps", 7) == 1
    told = ", ".join(f"{before} is now {now}" for before, now in RENAMED.items())
    assert capsys.readouterr().err == f"retnet train: {settings}: keys were renamed: {told}\n"
    assert len(losses(folder / "run")) == 6 and settings.read_text() == old
    settings.write_text(new)
    assert run("train", settings, "--resume", "--steps", 7) == 0
    assert len(losses(folder / "run")) == 7


@pytest.mark.parametrize("end", [(), ("--steps", 2), ("--steps", 0, "--minutes", 1e-9)])
def test_a_run_past_its_end_is_left_alone(end, folder, capsys):
    assert run("train", folder / "run.toml") == 0
    before = {path: path.read_bytes() for path in (folder / "run").iterdir() if path.is_file()}
    capsys.readouterr()
    assert run("train", folder / "run.toml", "--resume", *end) == 0
    printed = capsys.readouterr().out
    assert re.search(r"run: nothing to do, the run has reached its end .* holds 6 steps", printed)
    assert printed.count("\n") == 1
    assert before == {p: p.read_bytes() for p in (folder / "run").iterdir() if p.is_file()}


@pytest.mark.parametrize("text", ['{"model_type": "gpt2"}', "[" * 200_000])
def test_a_foreign_folder_is_refused_before_training(text, folder, capsys):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(text)
    assert run("train", folder / "run.toml") == 1
    printed = capsys.readouterr()
    assert "config.json: " in printed.err and "not replaced" in printed.err and not printed.out
    assert [path.name for path in (folder / "run").iterdir()] == ["config.json"]


def test_full_disk(folder, capsys):
    assert run("train", folder / "run.toml") == 0
    with full_disk(5000):
        assert run("train", folder / "run.toml", "--steps", 8, "--resume") == 1
    printed = capsys.readouterr().err
    assert re.search(r"^retnet train: .*could not be written.*File too large", printed, re.M)
    assert retnet.checkpoint.read_metadata(folder / "run")["step"] == "6"
    assert run("train", folder / "run.toml", "--steps", 8, "--resume") == 0
    assert len(losses(folder / "run")) == 8


def test_a_full_disk_is_one_line_whatever_was_written(folder):
    """The disk fills up in the log or the files of TensorBoard, long before a checkpoint. The
    writer thread of TensorBoard prints nothing.
    """
    command = [sys.executable, "-m", "retnet", "train", folder / "run.toml", "--steps", "400"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with full_disk(4000):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    *bar, error = ended.stderr.strip().splitlines()
    assert ended.returncode == 1
    assert re.fullmatch(
        r"retnet train: .*/run: the log could not be written: File too large", error
    )
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr, bar


def test_bad_models(folder, capsys):
    make_byte_model(vocab_size=300).save(folder / "big")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    make_byte_model().save(folder / "cut")
    cut_short(folder / "cut" / "model.safetensors")
    for name, message in (
        ("none", "must hold config.json and model.safetensors"),
        ("big", "vocab_size = 300 is not that of bytes; name one with --tokenizer"),
        ("foreign", "format_version must be an integer in 1..1, got None"),
        ("cut", "model.safetensors: must be a whole safetensors file"),
    ):
        for command in (("generate", folder / name, "--prompt", "a"),
                        ("eval", folder / name, folder / "text")):  # fmt: skip
            assert run(*command) == 1
            printed = capsys.readouterr()
            assert printed.err.startswith(f"retnet {command[0]}: ") and printed.out == ""
            assert message in printed.err and printed.err.count("\n") == 1


def test_tokens_beyond_the_vocabulary(word_run, capsys):
    """A tokenizer with more tokens than the model gives a warning, and an error if such a token
    occurs.
    """
    words = json.loads((word_run / "words.json").read_text())
    words["model"]["vocab"]["dog"] = 1000
    (word_run / "more.json").write_text(json.dumps(words))
    make_byte_model(vocab_size=8).save(word_run / "model")
    (word_run / "dog.txt").write_text("the dog")
    tokenizer = ("--tokenizer", word_run / "more.json")
    for command, name in (
        (("generate", word_run / "model", "--prompt", "the dog", *tokenizer), "prompt"),
        (("eval", word_run / "model", word_run / "dog.txt", *tokenizer), "data"),
    ):
        assert run(*command) == 1
        printed = capsys.readouterr()
        warning, error = printed.err.splitlines()
        assert "vocab_size = 8 of the model is not that of the tokenizer (1001)" in warning
        message = f"{name}: token ids must be < vocab_size = 8, got 1000"
        assert error == f"retnet {command[0]}: {message}" and printed.out == ""


def test_resume_of_a_damaged_run(folder, capsys):
    assert run("train", folder / "run.toml", "--steps", 2) == 0
    out = folder / "run"
    whole = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for name, message in (
        ("model.safetensors", "must be a whole safetensors file"),
        ("training-2.pt", "training-2.pt: must be "),
        ("config.json", "config.json: RetNetConfig: text must be JSON"),
    ):
        cut_short(out / name)
        capsys.readouterr()
        assert run("train", folder / "run.toml", "--resume") == 1
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1, printed
        (out / name).write_bytes(whole[out / name])
    assert {path: path.read_bytes() for path in whole} == whole
    assert run("train", folder / "run.toml", "--resume") == 0
    assert len(losses(out)) == 6


def test_bad_calls(folder, capsys):
    make_byte_model().save(folder / "model")
    generate = ("generate", folder / "model", "--prompt", "a")
    for command, message in (
        (("generate", folder / "model", "--prompt", ""), "prompt must hold at least one token"),
        ((*generate, "--seed", 2**64), "seed must be in 0..2^64-1 or None, got 184467440"),
        ((*generate, "--seed", -1), "seed must be in 0..2^64-1 or None, got -1"),
        ((*generate, "--device", "meta"), "device: must be available, got 'meta'"),
        (("generate", folder / "model", "--prompt", "a", "--top_k", 0), "top_k must be >= 1"),
        (("eval", folder / "model", folder / "none"), "none: no such file or folder"),
        (("eval", folder / "model", folder / "text", "--window", 1), "window must be >= 2, got 1"),
    ):
        assert run(*command) == 1
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    with pytest.raises(SystemExit) as error:
        main(["trian"])
    assert error.value.code == 2
