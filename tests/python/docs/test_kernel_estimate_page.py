# SPDX-License-Identifier: Apache-2.0
"""Compares the tables of docs/kernels/estimate.md with tools/estimate_report.py.

The goals have to lie a little above the estimates.
"""

import re
import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import estimate_report

PAGE = (ROOT / "docs/kernels/estimate.md").read_text()


def rows(section: str) -> list[list[str]]:
    """Returns the cells of the table in a section, without its head."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return cells[2:]


def test_the_goals():
    table = {row[0]: [float(x) for x in row[1:4]] for row in rows("What stalls each kernel")}
    assert {name: row[2] for name, row in table.items()} == estimate_report.GOALS
    for name, (estimate, bound, goal) in table.items():
        assert bound <= estimate <= goal <= 1.07 * estimate, name


def test_the_validation():
    table = [(name, int(own), int(other)) for name, own, other, _ in rows("Validation")]
    assert table == list(estimate_report.VALIDATION)
    for *_, own, other, ratio in rows("Validation"):
        assert ratio == f"{int(own) / int(other):.0%}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:tools|tests)/[\w/.]+)`", PAGE))))
def test_the_files_exist(path):
    assert (ROOT / path).is_file()
