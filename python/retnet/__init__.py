# SPDX-License-Identifier: Apache-2.0
"""Retentive Networks for PyTorch: retention operators and modules."""

import torch

try:
    from retnet import _C
except ImportError as error:
    raise ImportError(
        "retnet's native part did not load. Likely causes: it was not built (pip install -e . "
        "--no-build-isolation), or it was built against another torch than "
        f"{torch.__version__} (build it again)."
    ) from error

from retnet import ops
from retnet.checkpoint import load
from retnet.config import RetNetConfig
from retnet.state import RetNetState

__all__ = ["RetNetConfig", "RetNetState", "__version__", "load", "ops"]
__version__: str = _C.__version__
