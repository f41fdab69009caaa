# SPDX-License-Identifier: Apache-2.0
"""The text: the source of Python's own standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import NamedTuple

__all__ = ["Corpus", "load_corpus"]

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Corpus(NamedTuple):
    """Files to learn from and files kept back, each as its bytes."""

    train: list[bytes]
    held_out: list[bytes]


def load_corpus(root: Path | None = None) -> Corpus:
    """Reads every *.py under `root`, installed packages and tests left out.

    The files are sorted by path; every tenth one is held out. Files of less than two bytes hold
    nothing to predict and are dropped first.

    Args:
        root: the folder; None for the standard library of the running Python.

    Raises:
        FileNotFoundError: fewer than ten files.
    """
    if root is None:
        root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts)
    )
    texts = [text for text in (path.read_bytes() for path in paths) if len(text) > 1]
    if len(texts) < 10:
        raise FileNotFoundError(f"corpus: {root} must hold 10 *.py files or more, got {len(texts)}")
    held_out = texts[9::10]
    del texts[9::10]
    return Corpus(texts, held_out)
