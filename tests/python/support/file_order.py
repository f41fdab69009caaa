# SPDX-License-Identifier: Apache-2.0
"""The test files that pytest runs first."""

import pytest

# The longest file comes first, so that no worker is left alone with it at the end. The files that a
# GPU should run in the short time that it may be there come next.
FIRST = (
    "test_install.py",
    "test_retention.py",
    "test_gpu.py",
    "test_gpu_step.py",
    "test_retention_step.py",
    "test_multi_scale_retention_step.py",
)


def sort_by_file(items: list[pytest.Item]) -> None:
    """Puts files of FIRST first. The others stay in their order."""
    rank = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))
