# SPDX-License-Identifier: Apache-2.0
"""The log of a run: log.jsonl, and TensorBoard's files where it is installed."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["LOG", "Log", "quiet_board"]

LOG = "log.jsonl"
"""The file in the folder of a run."""
_BLOCK = 1 << 16


class Log:
    """log.jsonl, one line a step or check, and TensorBoard where it is installed.

    The log is cut where the checkpoint stands that a run goes on from: after `size` bytes, or after
    the last whole line before them where the file is shorter or damaged there, which is told.

    Where one of them cannot be written, each method raises an OSError that names the folder.
    """

    def __init__(self, folder: Path, size: int, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        path = folder / LOG
        self._file = path.open("a+b")
        whole = _end_of_lines(self._file, min(self._file.tell(), size))
        if whole < size:
            print(
                f"retnet: warning: {path}: lines are missing at its end: {whole:,} bytes of whole "
                f"lines are left of the {size:,} that stood there at the checkpoint",
                file=sys.stderr,
            )
        self._file.truncate(whole)
        self._file.seek(whole)
        self._board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, **values: float) -> None:
        """Adds a line."""
        with self._named_errors():
            self._file.write((json.dumps({"step": step, **values}) + "\n").encode())
            if self._board:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def sync(self) -> int:
        """Flushes all lines to the disk; returns their bytes."""
        with self._named_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> int:
        """Closes the files; returns the bytes of the log."""
        with self._named_errors():
            try:
                size = self._file.tell()
                self._file.close()
            finally:
                if self._board:
                    self._board.close()
        return size

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = f"the log could not be written: {error.strerror or error}"
            raise OSError(f"{self._folder}: {reason}") from error


@contextmanager
def quiet_board() -> Iterator[None]:
    """TensorBoard's thread prints no traceback: its error is raised by the next call of the log."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        is_board = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_board and isinstance(args.exc_value, OSError)):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _end_of_lines(file: BinaryIO, size: int) -> int:
    """Where the last whole line of the first `size` bytes ends."""
    while size > 0:
        start = max(size - _BLOCK, 0)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0
