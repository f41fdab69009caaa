# SPDX-License-Identifier: Apache-2.0
"""Helpers of several tests that run on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from support.cases.ops import Inputs


def clones(inputs: Inputs) -> Inputs:
    return {name: x.clone() for name, x in inputs.items()}


@contextmanager
def waiting_raises() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
