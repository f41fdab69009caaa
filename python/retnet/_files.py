# SPDX-License-Identifier: Apache-2.0
"""Reads and writes files.

A file is never left half written. Errors about a safetensors file name the file.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "WEIGHT_DTYPES",
    "dtype_name",
    "hint",
    "open_tensors",
    "replace_file",
    "write_tensors",
    "wrong_dtype",
]

WEIGHT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes that weights may have, by their names in safetensors files."""


def wrong_dtype(name: str, got: str) -> str:
    """Returns the message for weights `name` whose dtype `got` is not in `WEIGHT_DTYPES`."""
    return f"{name} must be floating point (F64, F32, F16 or BF16), got {got}"


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name in `WEIGHT_DTYPES`, or that of torch for other dtypes."""
    names = {known: name for name, known in WEIGHT_DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def hint(name: str, names: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" with the nearest of `names`, or "" if none is near."""
    near = get_close_matches(name, list(names), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file so that a full disk or a kill at any moment leaves the old file intact.

    `write` gets the path of a new file in the same folder. That file is flushed to the disk and
    then renamed. Its name contains the process id, so that two processes never write to one file.

    Raises:
        OSError: the file could not be written. The message names `path`.
    """
    _remove_leftovers(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        _sync(part)
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = error.__context__  # torch.save hides the error of the disk
        reason = " ".join(str(cause if isinstance(cause, OSError) else error).split())
        raise OSError(
            f"{path}: could not be written; any old file is unchanged: {reason}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    try:
        _sync(path.parent)
    except OSError as error:
        raise OSError(f"{path}: was replaced, but a power cut may undo it: {error}") from error


def _remove_leftovers(path: Path) -> None:
    """Removes parts of this file that killed processes left behind."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        number = part.name.split(".")[-2]
        if number.isdecimal() and not _runs(int(number)):
            part.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only tests whether it exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file with `replace_file`."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", **metadata}
    replace_file(path, lambda part: save_file(whole, part, header))


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Opens a safetensors file for reading. Its tensors are on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a complete safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: must be a whole safetensors file: {error}") from error
