# SPDX-License-Identifier: Apache-2.0
"""The files that are read as text: links, runs among the text, and one role for each file."""

import os
import re
from pathlib import Path

import pytest

from retnet.cli import main
from retnet.training.settings import is_settings
from retnet.training.sources import Sources
from support.cases.train import MODEL, make_byte_model

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = "out = 'run'\nsteps = 3\ndata = ['.']\n"


def make_tree(root, *names):
    """Makes files with their names as text. a -> b is a link, and a = b is a hard link."""
    for name in names:
        path, _, target = name.partition(" ")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if target.startswith("-> "):
            (root / path).symlink_to(target[3:])
        elif target.startswith("= "):
            os.link(root / target[2:], root / path)
        elif path.endswith(".toml"):
            (root / path).write_text(SETTINGS)
        else:
            (root / path).write_text(path)


def below(root, paths):
    return [str(path.relative_to(root)) for path in paths]


# Links

LINKS = {
    "file": (["a/x", "s/y", "a/link -> ../s/y"], ["a/link", "a/x"], []),
    "folder": (["a/x", "s/y", "s/d/z", "a/link -> ../s"], ["a/link/d/z", "a/link/y", "a/x"], []),
    "nothing but a link": (["s/y", "a/link -> ../s", "a/b/.x"], ["a/link/y"], []),
    "link to a link": (["s/y", "l -> s", "a/link -> ../l"], ["a/link/y"], []),
    "to itself": (["a/x", "a/b/loop -> ."], ["a/x"], ["a/b/loop"]),
    "to a folder above": (["a/b/x", "a/b/loop -> .."], ["a/b/x"], ["a/b/loop"]),
    "above the root": (["a/x", "a/up -> ..", "y"], ["a/up/y", "a/x"], ["a/up/a"]),
    "each to the other": (
        ["a/x", "a/to -> ../s", "s/back -> ../a"], ["a/x"], ["a/to/back"]),
    "two to one": (["s/y", "a/one -> ../s", "a/two -> ../s"], ["a/one/y"], ["a/two"]),
    "beside the folder": (["a/s/y", "a/z -> s"], ["a/s/y"], ["a/z"]),
    "before the folder": (["a/s/y", "a/b -> s"], ["a/b/y"], ["a/s"]),
    "into a folder": (["a/s/d/y", "a/z -> s/d"], ["a/s/d/y"], ["a/z"]),
    "into a hidden one": (["a/.s/y", "a/z -> .s"], ["a/z/y"], []),
    "hidden": (["a/x", "s/y", "a/.link -> ../s"], ["a/x"], []),
    "hard": (["a/x", "a/y = a/x"], ["a/x"], ["a/y"]),
}  # fmt: skip


@pytest.mark.parametrize("tree, found, twice", LINKS.values(), ids=LINKS)
def test_links(tree, found, twice, tmp_path):
    make_tree(tmp_path, *tree)
    sources = Sources({})
    assert below(tmp_path, sources.files([tmp_path / "a"], "text")) == found
    left = sources.left_out.get("read once, as text", [])
    assert below(tmp_path, left) == twice and len(sources.left_out) == bool(twice)


def test_the_order_is_that_of_sorted_paths(tmp_path):
    names = ["a/b/c", "a.b/c", "a-b", "a/b.c", "A/x", "é/x", "a/b-c/d", "ab", "a b/c"]
    make_tree(tmp_path, *(name.replace(" ", "_") for name in names))
    want = sorted((p for p in tmp_path.rglob("*") if p.is_file()), key=lambda p: p.parts)
    assert Sources({}).files([tmp_path], "text") == want


def test_a_path_named_twice_is_read_once(tmp_path):
    make_tree(tmp_path, "a/x", "a/y", "b", "l -> a")
    for names, found in (
        (["b", "b"], ["b"]),
        (["a", "a/y"], ["a/x", "a/y"]),
        (["a/y", "a"], ["a/y", "a/x"]),
        (["l", "a/../a"], ["l/x", "l/y"]),
    ):
        sources = Sources({})
        assert below(tmp_path, sources.files([tmp_path / n for n in names], "text")) == found
        assert list(sources.left_out) == ["read once, as text"]


LOST = {
    "link to nothing": ("a/x -> none", FileNotFoundError, "a/x: links to nothing"),
    "link to itself": ("a/x -> x", OSError, "symbolic links: .*a/x"),
    "nothing": ("b", FileNotFoundError, "/a: no such file or folder"),
}


@pytest.mark.parametrize("tree, error, message", LOST.values(), ids=LOST)
def test_what_cannot_be_found_is_an_error(tree, error, message, tmp_path):
    make_tree(tmp_path, tree)
    with pytest.raises(error, match=message):
        Sources({}).files([tmp_path / "a"], "text")


def test_pipes_are_named(tmp_path):
    make_tree(tmp_path, "a/x")
    os.mkfifo(tmp_path / "a/pipe")
    sources = Sources({})
    assert below(tmp_path, sources.files([tmp_path], "text")) == ["a/x"]
    assert str(sources) == f"{tmp_path}/a/pipe (neither file nor folder)"
    with pytest.raises(FileNotFoundError, match="but a pipe, socket or device"):
        Sources({}).files([tmp_path / "a/pipe"], "text")


# Roles: what a run in `p/run` reads of `p`, and what it leaves out

RUN, OTHER = "belongs to this run", "folder of a run or checkpoint"
MODEL_FILES = ["config.json", "model.safetensors"]
ROLES = {
    "out": (["p/x", "p/run/log.jsonl", "p/run/y"], ["p/x"], {RUN: ["p/run"]}),
    "out by a link": (["p/x", "p/run/y", "p/l -> run"], ["p/x"], {RUN: ["p/l", "p/run"]}),
    "file of out": (["p/x", "p/run/y", "p/l -> run/y"], ["p/x"], {RUN: ["p/l", "p/run"]}),
    "folder of out": (
        ["p/x", "p/run/d/y", "p/l -> run/d"], ["p/x"], {RUN: ["p/l", "p/run"]}),
    "hard link to out": (["p/run/w", "p/l = p/run/w", "p/x"], ["p/x"], {RUN: ["p/l", "p/run"]}),
    "link in out to text": (["p/x", "p/run/l -> ../x", "p/run/m -> .."], ["p/x"], {RUN: ["p/run"]}),
    "checkpoint": (
        ["p/x", *(f"p/m/{name}" for name in MODEL_FILES), "p/m/d/y"], ["p/x"], {OTHER: ["p/m"]}),
    "run that was killed": (
        ["p/x", "p/m/run.toml", "p/m/log.jsonl"], ["p/x"], {OTHER: ["p/m"]}),
    "run that starts": (["p/x", "p/m/.retnet.lock"], ["p/x"], {OTHER: ["p/m"]}),
    "linked checkpoint": (
        ["p/x", *(f"m/{name}" for name in MODEL_FILES), "p/l -> ../m"], ["p/x"], {OTHER: ["p/l"]}),
    "file of a checkpoint": (
        ["p/x", *(f"m/{name}" for name in MODEL_FILES), "p/l -> ../m/config.json"], ["p/x"],
        {"file of a run or checkpoint": ["p/l"]}),
    "text in a checkpoint": (
        [*(f"m/{name}" for name in MODEL_FILES), "m/y", "p/l -> ../m/y"], ["p/l"], {}),
    "a configuration alone": (["p/config.json", "p/log.jsonl"], ["p/config.json", "p/log.jsonl"],
        {}),
    "weights": (["p/x", "p/a.safetensors"], ["p/x"], {"weights": ["p/a.safetensors"]}),
    "linked weights": (["p/x", "a.safetensors", "p/w -> ../a.safetensors"], ["p/x"],
        {"weights": ["p/w"]}),
    "settings of some run": (["p/x", "p/other.toml"], ["p/x"],
        {"settings of a run": ["p/other.toml"]}),
    "settings": (["p/x", "p/settings"], ["p/x"], {"the settings": ["p/settings"]}),
    "tokenizer": (["p/x", "p/words.json"], ["p/x"], {"the tokenizer": ["p/words.json"]}),
    "linked tokenizer": (["p/x", "p/words.json", "p/a -> words.json"], ["p/x"],
        {"the tokenizer": ["p/a", "p/words.json"]}),
}  # fmt: skip


@pytest.mark.parametrize("tree, found, left_out", ROLES.values(), ids=ROLES)
def test_a_file_has_one_role(tree, found, left_out, tmp_path):
    make_tree(tmp_path, *tree)
    own = {"run": RUN, "settings": "the settings", "words.json": "the tokenizer"}
    for named in ([tmp_path / "p"], sorted((tmp_path / "p").iterdir())):  # p, and p/*
        sources = Sources({tmp_path / "p" / name: role for name, role in own.items()})
        assert below(tmp_path, sources.files(named, "text")) == found
        assert {r: below(tmp_path, paths) for r, paths in sources.left_out.items()} == left_out


VALIDATION = {
    "folder below": (["p/x", "p/v/y"], ["p/v"], ["p/x"], ["p/v"]),
    "file below": (["p/x", "p/y"], ["p/y"], ["p/x"], ["p/y"]),
    "beside": (["p/x", "v/y"], ["v"], ["p/x"], []),
    "linked": (["p/x", "v/y", "p/l -> ../v"], ["v"], ["p/x"], ["p/l"]),
    "by a link": (["p/x", "p/v/y", "l -> p/v"], ["l"], ["p/x"], ["p/v"]),
    "hard link": (["p/x", "v/y", "p/l = v/y"], ["v"], ["p/x"], ["p/l"]),
    "linked file": (["p/x", "v/y", "p/l -> ../v/y"], ["v"], ["p/x"], ["p/l"]),
    "part of a folder": (["p/d/x", "p/d/y"], ["p/d/y"], ["p/d/x"], ["p/d/y"]),
}


@pytest.mark.parametrize("tree, validation, found, left", VALIDATION.values(), ids=VALIDATION)
def test_validation_text_is_left_out_of_training(tree, validation, found, left, tmp_path):
    make_tree(tmp_path, *tree)
    sources = Sources({})
    assert sources.files([tmp_path / name for name in validation], "validation text")
    assert below(tmp_path, sources.files([tmp_path / "p"], "training text")) == found
    assert below(tmp_path, sources.left_out.get("read once, as validation text", [])) == left


NOTHING = {
    "out": (["run/x"], ["run"], [], r"/run \(belongs to this run\)$"),
    "below out": (["run/books/x"], ["run/books"], [], r"/run/books \(belongs to this run\)$"),
    "file below out": (["run/x"], ["run/x"], [], r"/run/x \(belongs to this run\)$"),
    "checkpoint": ([f"m/{n}" for n in MODEL_FILES], ["m"], [], r"/m \(folder of a run or checkp"),
    "its files": (
        [f"m/{n}" for n in MODEL_FILES], ["m/config.json"], [], r"/config\.json \(file of a run"),
    "weights": (["a.safetensors"], ["a.safetensors"], [], r"/a\.safetensors \(weights\)$"),
    "validation": (["p/x"], ["p"], ["p/x"], r"/p/x \(read once, as validation text\)$"),
    "below validation": (["p/q/x"], ["p/q"], ["p"], r"/p/q \(read once, as validation text\)$"),
    "many": ([f"p/{n}" for n in range(9)], ["p"], [f"p/{n}" for n in range(9)],
             r"/p/0, \S+/p/1, \S+/p/2 and 6 more \(read once"),
}  # fmt: skip


@pytest.mark.parametrize("tree, data, validation, message", NOTHING.values(), ids=NOTHING)
def test_nothing_left_is_an_error(tree, data, validation, message, tmp_path):
    make_tree(tmp_path, *tree)
    sources = Sources({tmp_path / "run": RUN})
    sources.files([tmp_path / name for name in validation], "validation text")
    with pytest.raises(
        ValueError, match=r"must hold files to read, but all were left out: \S*" + message
    ):
        sources.files([tmp_path / name for name in data], "training text")


# The commands

SMALL = ("--batch_size", 2, "--seq_len", 8, "--device", "cpu",
         *(x for name, value in MODEL.items() for x in (f"--model.{name}", value)))  # fmt: skip


def run(*arguments):
    return main([str(argument) for argument in arguments])


def texts(root):
    """Returns 100 bytes of text and 50 bytes for validation."""
    (root / "val").mkdir(parents=True)
    (root / "a.txt").write_text("hello, some text. " * 5 + "0123456789")
    (root / "val" / "v.txt").write_text("held out " * 5 + "01234")


def test_a_run_below_its_text(tmp_path, capsys):
    """Either settings file resumes the run, and a second run does not read the first."""
    texts(tmp_path / "p")
    first = ("train", "--data", tmp_path / "p", "--validation_share", 0, "--out")
    (tmp_path / "p/cfg.toml").write_text(f"data = ['{tmp_path}/p']\nout = '{tmp_path}/p/run'\n"
                                         "steps = 2\nvalidation_share = 0\n")  # fmt: skip
    assert run("train", tmp_path / "p/cfg.toml", *SMALL) == 0
    said = capsys.readouterr()
    assert "; 150 bytes to train on, 0 held out" in said.out
    told = [line for line in said.err.splitlines() if "left out" in line]
    assert told == [f"retnet train: left out: {tmp_path}/p/cfg.toml (the settings); "
                    f"{tmp_path}/p/run (belongs to this run)"]  # fmt: skip
    assert run("train", tmp_path / "p/run/run.toml", "--resume", "--steps", 3) == 0
    assert run(*first, tmp_path / "p/run", "--resume", "--steps", 4, *SMALL) == 0
    capsys.readouterr()
    assert run(*first, tmp_path / "p/run2", "--steps", 1, *SMALL) == 0
    said = capsys.readouterr()
    assert "; 150 bytes to train on, 0 held out" in said.out
    assert f"{tmp_path}/p/run (folder of a run or checkpoint)" in said.err
    assert run("train", tmp_path / "p/run/run.toml", "--resume", "--steps", 5) == 0


def test_validation_below_the_text(tmp_path, capsys):
    texts(tmp_path)
    assert run("train", "--data", tmp_path, "--validation", tmp_path / "val", "--out",
               tmp_path / "run", "--steps", 1, *SMALL) == 0  # fmt: skip
    said = capsys.readouterr()
    assert "; 100 bytes to train on, 50 held out" in said.out
    assert f"{tmp_path}/val (read once, as validation text)" in said.err


def test_eval_reads_no_weights(tmp_path, capsys):
    texts(tmp_path)
    model = tmp_path / "model"
    make_byte_model().save(model)
    os.link(model / "model.safetensors", tmp_path / "val" / "linked")
    for path in (model, model / "model.safetensors", tmp_path / "val" / "linked"):
        assert run("eval", model, path) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(r"retnet eval: .*must hold files .* left out: .*\n", said)
    assert run("eval", model, tmp_path) == 0
    said = capsys.readouterr()
    assert "2 files, 148 tokens" in said.out
    assert said.err.startswith(
        f"retnet eval: left out: {model} (folder of a run or checkpoint); "
        f"{tmp_path}/val/linked (the model)\n"
    )
    (model / "sample.txt").write_text("what it wrote")
    assert run("eval", model, model / "sample.txt") == 0


SWALLOWED = {
    "data": (("--data", "a.txt", "cfg.toml"), "data: cfg.toml"),
    "alone": (("--data", "cfg.toml"), "data: cfg.toml"),
    "validation": (("--data", "a.txt", "--validation", "a.txt", "cfg.toml"), "validation: cfg.t"),
    "another name": (("--data", "a.txt", "settings"), "data: settings"),
    "a mistyped key": (("--data", "a.txt", "key.toml"), "data: key.toml"),
    "with options": (("--steps", 1, "--out", "run", "--data", "a.txt", "cfg.toml"), "data: cfg"),
}


@pytest.mark.parametrize("arguments, message", SWALLOWED.values(), ids=SWALLOWED)
def test_settings_behind_data_are_an_error(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts(tmp_path / "p")
    Path("p/a.txt").rename("a.txt")
    Path("cfg.toml").write_text(SETTINGS, "utf-8-sig")
    Path("settings").write_text(SETTINGS)
    Path("key.toml").write_text(SETTINGS + "lenght = 3\n")
    assert run("train", *arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"retnet train: {message}") and said.count("\n") == 1
    assert " holds the settings of a run and would be read as text; name it first: retnet t" in said
    assert not Path("run").exists()


NO_SETTINGS = {
    "project": "[project]\nname = 'x'\n[build-system]\nrequires = []\n",
    "one key": "seed = 3\ntitle = 'x'\n[owner]\nname = 'y'\n",
    "empty": "",
    "text": "out of the woods",
    "nested": "x = " + "[" * 5000,
    "long": "seed = 3\n" + "#" * 100_000,
}


def test_settings_of_older_versions_are_settings(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("batch = 2\nlength = 8\naccumulate = 3\ntitle = 'x'\nname = 'y'\n")
    assert is_settings(path)
    with pytest.raises(ValueError, match=r"x\.toml \(settings of a run\)"):
        Sources({}).files([path], "text")


@pytest.mark.parametrize("text", NO_SETTINGS.values(), ids=NO_SETTINGS)
def test_other_files_are_no_settings(text, tmp_path):
    (tmp_path / "x.toml").write_text(text)
    assert not is_settings(tmp_path / "x.toml")
    assert Sources({}).files([tmp_path / "x.toml"], "text")
