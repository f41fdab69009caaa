# SPDX-License-Identifier: Apache-2.0
"""Retentive Networks for PyTorch: retention operators and modules."""

from retnet._native import _C  # first, since it refuses another torch

# isort: split
from retnet import ops
from retnet.checkpoint import load
from retnet.config import RetNetConfig
from retnet.state import RetNetState

__all__ = ["RetNetConfig", "RetNetState", "__version__", "load", "ops"]
__version__: str = _C.__version__
