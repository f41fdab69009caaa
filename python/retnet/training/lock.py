# SPDX-License-Identifier: Apache-2.0
"""The lock of a run's folder: one run at a time writes there."""

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
"""The file in the folder. Removed when the run ends; one that a killed run left locks nothing."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# The open lock file of each locked folder of this process, and the thread that locked it.
_held: dict[tuple[int, int], tuple[int, int]] = {}


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Holds the folder of a run; no other process, and no other thread, holds it meanwhile.

    The kernel frees the lock when the process dies, whatever ends it. The thread that holds the
    folder may lock it again. A folder that does not exist is made, and removed again if it is
    empty at the end. Where the file system knows no locks, a warning is printed to stderr and
    nothing is locked.

    Raises:
        BlockingIOError: another run holds the folder; the message names its process.
        OSError: the folder or the lock file could not be made.
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
        if _held.pop(key, None):  # not in a forked child, which holds nothing
            path = folder / LOCK
            with suppress(OSError):
                if _is_same(handle, path):
                    path.unlink()  # before it is unlocked, so that it is no other's
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)  # for children that inherited the file, too
            os.close(handle)
            with suppress(OSError):
                for path in made:
                    path.rmdir()


def _open_locked(folder: Path) -> int:
    """Makes and locks the file; tries again where a run that ends removes file or folder."""
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
    raise OSError(f"{path}: could not be made")


def _sign(handle: int) -> None:
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
    with suppress(OSError):  # on a full disk the lock holds, and does not say for whom
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
    """A forked child shares the open files, by which it would keep the locks of a dead parent."""
    for handle, _ in _held.values():
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
