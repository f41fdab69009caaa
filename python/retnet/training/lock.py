# SPDX-License-Identifier: Apache-2.0
"""Locks the folder of a run, so that only one run at a time writes to it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

__all__ = ["LOCK", "locked"]

LOCK = ".retnet.lock"
"""Name of the lock file in the folder.

A run removes the file when it ends. A file that a killed run left behind locks nothing.
"""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# For each folder that this process has locked: the open lock file, and the thread that locked it.
_held: dict[tuple[int, int], tuple[int, int]] = {}


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Locks the folder of a run against other processes and other threads.

    - The kernel frees the lock when the process ends, however it ends.
    - The thread that holds the lock may lock the folder again.
    - A folder that does not exist is made. It is removed again if it is empty at the end.
    - If the file system has no locks, a warning is printed to stderr and nothing is locked.

    Raises:
        BlockingIOError: another run holds the lock. The message names its process.
        OSError: the folder or the lock file could not be created.
    """
    folder = Path(folder)
    if folder.is_dir():
        held = _held.get(_identity(os.stat(folder)))
        if held and held[1] == threading.get_ident():
            yield
            return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    handle = _open_locked(folder)
    key = _identity(os.stat(folder))
    _held[key] = handle, threading.get_ident()
    try:
        yield
    finally:
        if _held.pop(key, None):  # false in a forked child, which holds no lock
            path = folder / LOCK
            with suppress(OSError):
                if _is_same(handle, path):
                    path.unlink()  # while it is locked, so that it cannot belong to another run
            with suppress(OSError):
                fcntl.flock(
                    handle, fcntl.LOCK_UN
                )  # needed because children may have inherited the file
            os.close(handle)
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def _open_locked(folder: Path) -> int:
    """Makes and locks the file.

    It tries again if another run that ends at that moment removes the file or the folder.
    """
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    for _ in range(100):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, flags, 0o666)
        except FileNotFoundError:
            continue
        try:
            _lock(handle, folder)
        except OSError:
            os.close(handle)
            raise
        if _is_same(handle, path):
            _sign(handle)
            return handle
        os.close(handle)
    raise OSError(f"{path}: could not be created")


def _sign(handle: int) -> None:
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
    with suppress(OSError):  # on a full disk, the lock works but does not name its holder
        os.ftruncate(handle, 0)
        os.write(handle, holder.encode())


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = " ".join(os.read(handle, 200).decode(errors="replace").split())
        raise BlockingIOError(
            f"{folder}: in use by {holder or 'another process'}; "
            "wait until it ends, or choose another out"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(error.errno, error.strerror, str(folder / LOCK)) from error
        print(
            f"retnet: warning: {folder}: the file system has no locks ({error.strerror}); "
            "a second run into this folder would not be noticed",
            file=sys.stderr,
        )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_same(handle: int, path: Path) -> bool:
    try:
        return _identity(os.fstat(handle)) == _identity(os.stat(path))
    except FileNotFoundError:
        return False


def _forget() -> None:
    """Closes the lock files in a forked child.

    The child shares the open files, and would otherwise keep the locks after the parent has died.
    """
    for handle, _ in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
