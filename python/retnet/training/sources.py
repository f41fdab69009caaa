# SPDX-License-Identifier: Apache-2.0
"""Finds the files to read as text.

Folders are read recursively, links are followed, and each file has one role.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from retnet.training.lock import LOCK
from retnet.training.settings import is_settings
from retnet.weights import CONFIG, WEIGHTS

__all__ = ["Sources"]

_RUN_FILES = re.compile(
    r"config\.json|log\.jsonl|model\.safetensors|run\.toml|tokenizer\.json|training-\d+\.pt"
)
_MARKS = (
    {CONFIG, WEIGHTS},
    {LOCK},
    {"run.toml", "log.jsonl"},
)  # each of these marks the folder of a run
_SHOWN = 3


class Sources:
    """Lists the files that a command reads, so that it reads each file once and in one role.

    These are left out, both inside folders and if they are named:

    - what `own` names, and what was listed before, even by another path, a link or a hard link;
    - folders of runs and of checkpoints, and the files that a run writes there;
    - safetensors files, and settings of runs (TOML files in which most keys are those of
      `retnet.training.settings.TrainingSettings`).

    Inside folders, pipes, sockets and devices are left out as well. Names inside folders that
    start with a dot are skipped without a message.

    Args:
        own: files and folders that have another role, and the name of that role. Everything in
            such a folder is left out, even if a link or a path leads into it. A path that does not
            exist has no role. None and "" are ignored.

    Attributes:
        left_out: the paths that were left out, by reason.
    """

    def __init__(self, own: Mapping[str | Path | None, str]) -> None:
        self.left_out: dict[str, list[Path]] = {}
        self._roles: dict[tuple[int, int], str] = {}
        paths = {Path(path): role for path, role in own.items() if path}
        self._own = {path.resolve(): role for path, role in paths.items() if path.exists()}
        for path, role in self._own.items():
            self._roles[_identity(os.stat(path))] = role
            for member in (
                path.iterdir() if path.is_dir() else ()
            ):  # for hard links to them elsewhere
                if member.is_file() and not member.is_symlink():
                    self._roles[_identity(os.stat(member))] = role

    def __str__(self) -> str:
        """Returns in one line what was left out, or "" if nothing was."""
        return _told(self.left_out)

    def tell_left_out(self, command: str) -> None:
        """Prints to stderr what was left out, if anything was."""
        if str(self):
            print(f"retnet {command}: left out: {self}", file=sys.stderr)

    def files(self, paths: Iterable[str | Path], role: str) -> list[Path]:
        """Returns the named files, and all files in the named folders, sorted by path in each.

        Args:
            paths: files and folders.
            role: their role. Later calls leave them out and give this role as the reason.

        Raises:
            FileNotFoundError: a path does not exist, is neither a file nor a folder, or links to
                nothing.
            OSError: a folder cannot be read.
            ValueError: a folder is empty, or all files were left out.
        """
        roots = [Path(path) for path in paths]
        found: list[Path] = []
        left_out: dict[str, list[Path]] = {}
        for root in roots:
            is_empty = True
            for path, reason in self._walk(root, role):
                (left_out.setdefault(reason, []) if reason else found).append(path)
                is_empty = False
            if is_empty:
                raise ValueError(f"{root}: must hold files to read, got an empty folder")
        if left_out and not found:
            raise ValueError(
                f"{_names(roots)}: must hold files to read, but all were left out: "
                f"{_told(left_out)}"
            )
        for reason, left in left_out.items():
            self.left_out.setdefault(reason, []).extend(left)
        return found

    def _walk(self, root: Path, role: str) -> Iterator[tuple[Path, str]]:
        """Yields the paths below a root in order, each with the reason to leave it out, or ""."""
        read = f"read once, as {role}"
        waiting = [root]  # the next path is the last item
        while waiting:
            path = waiting.pop()
            is_root = path is root
            status = _status(path, is_root)
            # For any other path, the walk has checked the folders above it.
            target = path.resolve() if is_root or path.is_symlink() else None
            names: list[str] = []
            reason = self._roles.get(_identity(status), "")
            if not reason and target:
                reason = self._why_not_there(target)
            if not reason and stat.S_ISDIR(status.st_mode):
                names = sorted(os.listdir(path), reverse=True)
                reason = "folder of a run or checkpoint" if _is_run(names) else ""
            elif not reason:
                reason = _why_no_text(target or path, status, is_root)
            if not reason:
                self._roles[_identity(status)] = read
            if reason or not stat.S_ISDIR(status.st_mode):
                yield path, reason
            else:
                waiting += [path / name for name in names if not name.startswith(".")]

    def _why_not_there(self, path: Path) -> str:
        """Returns why the folders above a path exclude it, or ""."""
        for own, role in self._own.items():
            if path.is_relative_to(own):
                return role
        if _RUN_FILES.fullmatch(path.name) and _is_run(os.listdir(path.parent)):
            return "file of a run or checkpoint"
        return ""


def _why_no_text(path: Path, status: os.stat_result, is_root: bool) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "neither file nor folder"
    if path.suffix == ".safetensors":
        return "weights"
    if (is_root or path.suffix.lower() == ".toml") and is_settings(path):
        return "settings of a run"
    return ""


def _status(path: Path, is_root: bool) -> os.stat_result:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        what = "links to nothing" if path.is_symlink() else "no such file or folder"
        raise FileNotFoundError(f"{path}: {what}") from None
    if is_root and not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise FileNotFoundError(f"{path}: no such file or folder, but a pipe, socket or device")
    return status


def _is_run(names: Iterable[str]) -> bool:
    return any(mark <= set(names) for mark in _MARKS)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _names(paths: Iterable[Path]) -> str:
    paths = list(dict.fromkeys(paths))
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(str, paths[:_SHOWN])) + more


def _told(left_out: Mapping[str, list[Path]]) -> str:
    return "; ".join(f"{_names(paths)} ({reason})" for reason, paths in left_out.items())
