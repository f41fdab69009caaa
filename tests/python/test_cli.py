# SPDX-License-Identifier: Apache-2.0
"""The command `retnet`: runs that are killed and go on, what is written, one line for an error."""

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import retnet
from cases_train import MODEL, TEXT, full_disk, make_byte_model
from retnet.cli import main
from retnet.generation import generate
from retnet.training.evaluation import evaluate
from retnet.training.settings import RENAMED, TrainingSettings, tomllib
from retnet.training.text import as_tokens

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """A folder with text in `text` and a run in `run.toml`."""
    (tmp_path / "text" / "deep").mkdir(parents=True)
    for n in range(12):
        name = ("deep/" if n % 2 else "") + f"{n:02}.txt"
        (tmp_path / "text" / name).write_bytes(TEXT[n : 200 + 20 * n])
    write_toml(tmp_path)
    return tmp_path


def write_toml(folder, **changes):
    settings = {"data": [f"{folder}/text"], "out": f"{folder}/run", "steps": 6, "batch_size": 2,
                "seq_len": 32, "lr": 1e-2, "device": "cpu", **changes}  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    lines += ["[model]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in MODEL.items())]
    (folder / "run.toml").write_text("".join(lines))


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    """Of every step; the last line of a run that writes may be cut short."""
    lines = (folder / "log.jsonl").read_text().rpartition("\n")[0].splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def run(*arguments):
    return main([str(argument) for argument in arguments])


def start(*arguments, **options):
    """The command as a process of its own, with one thread like `run` here."""
    return subprocess.Popen(
        [sys.executable, "-m", "retnet", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


# Runs that end before their time


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


KINDS = {
    "windows": (),
    "stream": ("--stream", "--grad_accum_steps", "2"),
    "bfloat16": ("--precision", "bfloat16"),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kill_9_and_resume_gives_the_losses_of_a_straight_run(kind, folder):
    steps = ("--steps", 60)
    assert run("train", folder / "run.toml", "--out", folder / "straight", *steps, *kind) == 0
    straight, cut = losses(folder / "straight"), []
    (folder / "run").mkdir()  # --resume starts a run in a folder without a checkpoint
    command = ("train", folder / "run.toml", "--save_every", 0, "--resume", *steps, *kind)
    weights, log = folder / "run" / "model.safetensors", folder / "run" / "log.jsonl"
    for least in (5, 20):
        process = start(*command)
        wait_for(lambda least=least: weights.exists() and len(losses(folder / "run")) > least)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        retnet.load(folder / "run")
        cut.append(int(retnet.checkpoint.read_metadata(folder / "run")["step"]))
    assert 5 <= cut[0] < cut[1] < 60 and log.exists()
    assert run(*command) == 0
    assert losses(folder / "run") == straight and len(straight) == 60
    a, b = retnet.load(folder / "straight"), retnet.load(folder / "run")
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_says_so(number, folder):
    options = ("--steps", 9999, "--save_every", 0)
    process = start("train", "run.toml", *options, cwd=folder, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (folder / "run" / "model.safetensors").exists())
    process.send_signal(number)
    printed = process.communicate()[0]
    assert process.returncode == 128 + number and "Go on with --resume" in printed
    step = int(retnet.checkpoint.read_metadata(folder / "run")["step"])
    assert len(losses(folder / "run")) == step
    assert run("train", folder / "run.toml", "--resume", "--steps", step + 2) == 0
    assert len(losses(folder / "run")) == step + 2


# What a run writes


def read_board(out, name):
    """What TensorBoard shows of a run: {step: value}."""
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
    assert re.search(r"parameters on \w+; [\d,]+ bytes to learn from, 333 held out", text)
    if importlib.util.find_spec("tensorboard"):
        assert read_board(out, "loss") == dict(enumerate(losses(out), start=1))
    # The copy is a run by itself, from any folder.
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


@pytest.fixture
def word_run(folder):
    """A run on words instead of bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: n for n, word in enumerate(["?", "the", "cat", "sat", "on", "mat,"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "words.json"))
    write_toml(folder, tokenizer=f"{folder}/words.json", seq_len=8, steps=2)
    return folder


def test_words(word_run, capsys):
    assert run("train", word_run / "run.toml") == 0
    assert retnet.load(word_run / "run").config.vocab_size == 6
    assert run("generate", word_run / "run", "--prompt", "the cat", "--max_new_tokens", 5) == 0
    text = capsys.readouterr().out.splitlines()[-1]
    assert text.startswith("the cat ") and len(text.split()) == 7
    (word_run / "one").write_text("the cat sat")
    assert run("eval", word_run / "run", word_run / "one") == 0
    assert "1 files, 2 tokens and 8 bytes predicted" in capsys.readouterr().out
    # A larger or smaller vocabulary than that of the model is told, and is no error.
    for size in (8, 5):
        make_byte_model(vocab_size=size).save(word_run / f"model{size}")
        named = (word_run / f"model{size}", "--tokenizer", word_run / "words.json")
        assert run("generate", *named, "--prompt", "the", "--max_new_tokens", 3) == 0
        assert run("eval", *named, word_run / "one") == 0
        warning = f"warning: vocab_size = {size} of the model is not that of the tokenizer (6)"
        assert capsys.readouterr().err.count(warning) == 2
    # A vocabulary that is too small for the tokens.
    assert (
        run("train", word_run / "run.toml", "--out", word_run / "b", "--model.vocab_size", 5) == 1
    )
    assert re.search(r"token ids must be in 0\.\.4 \(vocab_size\), got 5", capsys.readouterr().err)


def test_the_readme_shows_a_run():
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    plain = TrainingSettings(**tomllib.loads(block))
    full = TrainingSettings(**tomllib.loads(block.replace("\n# tok", "\ntok")))
    assert plain.model_config(256).embed_dim == 1024 and plain.stream and full.tokenizer


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


# Errors: one line, exit status not 0, nothing lost

BAD_RUNS = {
    "no file": (("none.toml",), 1, "none.toml: No such file or directory"),
    "not toml": (("bad.toml",), 1, "bad.toml: must be TOML: "),
    "unknown key": (("key.toml",), 1, r"unknown key seq_lenn \(did you mean 'seq_len'\?\)"),
    "old keys": (
        ("old.toml",),
        1,
        "old.toml: keys were renamed: batch is now batch_size, accumulate is now grad_accum_steps$",
    ),
    "old option": (("run.toml", "--length", "8"), 2, "--length was renamed, it is now --seq_len; "),
    "old option=": (("--batch=8",), 2, "--batch was renamed, it is now --batch_size; "),
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
    "meta": (("run.toml", "--device", "meta"), 1, "device: must be one that is here, got 'meta'"),
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
    "empty file": (("run.toml", "--data", "empty.txt"), 1, "must hold two tokens or more"),
    "short": (("run.toml", "--seq_len", "9999"), 1, "must hold seq_len = 9999 tokens or more"),
    "tokens": (("run.toml", "--model.vocab_size", "100"), 1, r"token ids must be in 0\.\.99"),
    "device": (("run.toml", "--device", "abacus"), 1, "device: must be one that is here, got 'aba"),
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
    (folder / "memory").symlink_to("/proc/self/mem")  # opens, and cannot be read at its start
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
        ((), "holds a model; go on with --resume, or choose another out"),
        (("--resume", "--model.norm", "rms"), "must hold the model of the settings"),
        (("--resume", "--stream"), "stream, batch_size and model must be those of the run"),
        (("--resume", "--data", folder / "text/deep"), "data must be what the run began with"),
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
    """The log and TensorBoard's files, long before a checkpoint; the other thread keeps quiet."""
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
        ("big", "vocab_size = 300 is not that of bytes; name one by --tokenizer"),
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
    """A tokenizer of more tokens than the model: a warning, and an error where one occurs."""
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
        (("generate", folder / "model", "--prompt", ""), "prompt must hold a token"),
        ((*generate, "--seed", 2**64), "seed must be in 0..2^64-1 or None, got 184467440"),
        ((*generate, "--seed", -1), "seed must be in 0..2^64-1 or None, got -1"),
        ((*generate, "--device", "meta"), "device: must be one that is here, got 'meta'"),
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
