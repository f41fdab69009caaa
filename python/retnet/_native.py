# SPDX-License-Identifier: Apache-2.0
"""Loads the extension if torch has the minor version that it was built with."""

from pathlib import Path

import torch

# The build writes the version beside the library, such as "2.15".
TORCH_VERSION = Path(__file__).with_name("lib") / "torch_version"


def _refuse_another_torch() -> None:
    """Raises a clear ImportError if torch has another minor version.

    Without this check, the extension would only name a missing C++ symbol.
    """
    if not TORCH_VERSION.exists():
        return  # it was not built, and loading the extension says so
    built = TORCH_VERSION.read_text().strip()
    if torch.__version__.split(".")[:2] != built.split("."):
        raise ImportError(
            f"retnet was built with torch {built} and does not work with torch "
            f"{torch.__version__}: install torch {built}, or build retnet again with this torch "
            "(pip install --no-build-isolation)"
        )


_refuse_another_torch()
try:
    from retnet import _C
except ImportError as error:
    raise ImportError(
        "retnet's native part did not load. Likely cause: it was not built for this Python "
        "(pip install -e . --no-build-isolation)."
    ) from error

__all__ = ["_C"]
