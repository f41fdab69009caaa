# SPDX-License-Identifier: Apache-2.0
"""Sets up the memory allocator for programs that compute on a CPU."""

import ctypes
import os

__all__ = ["keep_memory_mapped"]

# Environment variables of glibc, and the tunables with the same meaning.
_VARIABLES = {
    "MALLOC_MMAP_MAX_": "glibc.malloc.mmap_max",
    "MALLOC_TRIM_THRESHOLD_": "glibc.malloc.trim_threshold",
}


def keep_memory_mapped() -> None:
    """Keeps freed memory in the process, where the next tensors reuse it.

    Otherwise large tensors are mapped again each time, and each call pays for page faults. The
    function does nothing if

    - the C library is not glibc;
    - the environment has a setting: ``MALLOC_MMAP_MAX_``, ``MALLOC_TRIM_THRESHOLD_``, or the same
      in ``GLIBC_TUNABLES``.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "").split(":")
    given = os.environ.keys() | {item.partition("=")[0] for item in tunables}
    if given & {*_VARIABLES, *_VARIABLES.values()}:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never trims
