# SPDX-License-Identifier: Apache-2.0
"""The log of a run: log.jsonl, and files for TensorBoard if it is installed."""

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
"""Name of the log file in the folder of a run."""
_BLOCK = 1 << 16


class Log:
    """Writes log.jsonl, with one line for each step or check, and TensorBoard if it is installed.

    When a run resumes, the log is cut after `size` bytes, where it ended at the checkpoint. If the
    file is shorter or damaged there, it is cut after the last whole line before that position, and
    a warning says so.

    Each method raises an OSError that names the folder if the log cannot be written.
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
                f"lines are left of the {size:,} that it had at the checkpoint",
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
        """Flushes all lines to the disk. Returns their size in bytes."""
        with self._named_errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> int:
        """Closes the files. Returns the size of log.jsonl in bytes."""
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
    """Keeps the thread of TensorBoard from printing a traceback.

    The next call of the log raises its error.
    """
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
    """Returns the end of the last whole line in the first `size` bytes."""
    while size > 0:
        start = max(size - _BLOCK, 0)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0
