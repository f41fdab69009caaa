# SPDX-License-Identifier: Apache-2.0
"""The memory allocator of programs that compute on a CPU."""

import ctypes
import os

__all__ = ["keep_memory_mapped"]


def keep_memory_mapped() -> None:
    """From now on freed memory stays with the process, for its next tensors.

    Else large tensors are mapped anew each time, and faulting them in costs an operator up to half
    of its time. Does nothing where the C library is not glibc, and where ``MALLOC_MMAP_MAX_`` or
    ``MALLOC_TRIM_THRESHOLD_`` is in the environment: those say what to do.
    """
    if {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never
