# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of the command `retnet`."""

import pytest

from support.cases.cli import write_toml
from support.cases.train import TEXT


@pytest.fixture
def folder(tmp_path):
    """Returns a folder with text in `text` and a run in `run.toml`."""
    (tmp_path / "text" / "deep").mkdir(parents=True)
    for n in range(12):
        name = ("deep/" if n % 2 else "") + f"{n:02}.txt"
        (tmp_path / "text" / name).write_bytes(TEXT[n : 200 + 20 * n])
    write_toml(tmp_path)
    return tmp_path


@pytest.fixture
def word_run(folder):
    """Returns the folder of a run on words instead of bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: n for n, word in enumerate(["?", "the", "cat", "sat", "on", "mat,"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "words.json"))
    write_toml(folder, tokenizer=f"{folder}/words.json", seq_len=8, steps=2)
    return folder
