# SPDX-License-Identifier: Apache-2.0
"""The package of tests/on_simt, whose operators run CUDA kernels in the SIMT emulator."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import retnet.ops  # noqa: F401  loads the library

ON_SIMT = "RETNET_ON_SIMT" in os.environ

# CUDA's numbers of errors, and what it says.
OUT_OF_MEMORY = (2, "out of memory")
OLD_DRIVER = (35, "CUDA driver version is insufficient for CUDA runtime version")
NO_DEVICE = (100, "no CUDA-capable device is detected")
NO_CODE = (209, "no kernel image is available for execution on the device")
LAUNCH_FAILURE = (719, "unspecified launch failure")


def launches() -> int:
    """Returns the number of kernels launched so far."""
    return torch.ops.retnet_on_simt.launches()


def take_findings() -> list[str]:
    """Returns what has been wrong in how kernels were launched, and forgets it."""
    return torch.ops.retnet_on_simt.take_findings()


def fail(call: str, error: int, after: int = 0) -> None:
    """Makes a call of the runtime fail once, after `after` calls that do not."""
    torch.ops.retnet_on_simt.fail(call, error, after)


@contextmanager
def device(**limits: int) -> Iterator[None]:
    """Replaces the H100 by a device with other limits.

    They are capability, multiprocessors, shared_bytes and code_architecture.
    """
    torch.ops.retnet_on_simt.set_limits(**limits)
    try:
        yield
    finally:
        torch.ops.retnet_on_simt.set_limits()
