# SPDX-License-Identifier: Apache-2.0
"""Which test files pytest runs first."""

import pytest

# The longest file, so that no worker is left alone with it at the end; then what a GPU should run
# first in the little time that it may be there.
FIRST = (
    "test_install.py",
    "test_retention.py",
    "test_gpu.py",
    "test_gpu_step.py",
    "test_retention_step.py",
    "test_multi_scale_retention_step.py",
)


def sort_by_file(items: list[pytest.Item]) -> None:
    """Files of FIRST come first; the others stay in their order."""
    rank = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))
