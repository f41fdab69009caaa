# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of training."""

import pytest

from support.cases.train import MODEL, TEXT


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Returns the command of a run of two steps into the folder `run` beside its text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(TEXT)
    sizes = [part for name, value in MODEL.items() for part in (f"--model.{name}", value)]
    return ("train", "--data", "text", "--out", "run", "--steps", 2, "--batch_size", 2,
            "--seq_len", 32, "--device", "cpu", *sizes)  # fmt: skip
