# SPDX-License-Identifier: Apache-2.0
"""The memory allocator of programs that compute on a CPU."""

import ctypes
import os

__all__ = ["keep_memory_mapped"]

# Environment variables of glibc, and its tunables of the same meaning.
_VARIABLES = {
    "MALLOC_MMAP_MAX_": "glibc.malloc.mmap_max",
    "MALLOC_TRIM_THRESHOLD_": "glibc.malloc.trim_threshold",
}


def keep_memory_mapped() -> None:
    """From now on freed memory stays with the process, for its next tensors.

    Else large tensors are mapped anew each time, and faulting them in costs an operator up to half
    of its time. Does nothing where the C library is not glibc, and where the environment says what
    to do: ``MALLOC_MMAP_MAX_``, ``MALLOC_TRIM_THRESHOLD_``, or the same in ``GLIBC_TUNABLES``.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "").split(":")
    given = os.environ.keys() | {item.partition("=")[0] for item in tunables}
    if given & {*_VARIABLES, *_VARIABLES.values()}:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never
