# SPDX-License-Identifier: Apache-2.0
"""What the parts of kernel_report.py share: a gate that fails, and the printing of tables."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DTYPES = ("fp32", "fp16", "bf16")


class Failure(NamedTuple):
    """A gate that does not hold."""

    gate: str
    where: str
    value: float
    limit: str

    def __str__(self) -> str:
        return f"FAIL {self.gate}: {self.where}: {self.value:.6g}, limit {self.limit}"


def near(gate: str, where: str, value: float, stated: float, share: float) -> list[Failure]:
    """Returns the failed gate if a value is not what a header states, within a share of it."""
    if abs(value - stated) <= share * stated:
        return []
    return [Failure(gate, where, value, f"{stated:g}" + (f" within {share:.0%}" if share else ""))]


def architecture_order(architecture: str) -> int:
    """Sorts architectures by number."""
    return int(re.sub(r"\D", "", architecture))


def print_table(title: str, header: str, rows: Iterable[Sequence[object]]) -> None:
    """Prints aligned columns: the first to the left, others to the right."""
    cells = [header.split()]
    for row in rows:
        cells.append([f"{x:.4g}" if isinstance(x, float) else str(x) for x in row])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(title)
    for first, *rest in cells:
        others = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join([f"{first:{widths[0]}}", *others]))
    print()
