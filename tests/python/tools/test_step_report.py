# SPDX-License-Identifier: Apache-2.0
"""Each gate of tools/step_report.py fails where it should, and only there."""

import copy
import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import step_report

ITEM = {
    "dtype": "bf16",
    "cluster": 8,
    "counted": {"memory_bytes": 1000, "l2_loaded": 700, "l2_stored": 500}
    | {"barriers": 3, "conflicts": 0},
    "header": {"memory_bytes": 1000, "barriers": 3},
}
GOAL = {"device": "H100", "dtype": "bf16", "heads": 8, "from": 16, "batch": 17, "cluster": 2} | {
    **{name: 1.0 for name in step_report.TIMES},
    **{"share": 0.85, "goal": 0.8},
}


def failures(item=ITEM, goal=GOAL) -> list[tuple]:
    found: list[tuple] = []
    tables: list[tuple] = []
    counts = {"decode_step": [item], "decode_step_goals": [goal]}
    step_report.report(counts, lambda *gate: found.append(gate), lambda *t: tables.append(t))
    assert all(len(row) == len(header.split()) for _, header, rows in tables for row in rows)
    assert [len(rows) for *_, rows in tables] == [1, 1]
    return found


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({}, None),
        ({"memory_bytes": 1019}, None),
        ({"memory_bytes": 1021}, "bytes"),
        ({"memory_bytes": 979}, "bytes"),
        ({"barriers": 4}, "barriers"),
        ({"conflicts": 1}, "wavefronts"),
    ],
    ids=str,
)
def test_gates_of_counts(change, gate):
    item = copy.deepcopy(ITEM)
    item["counted"].update(change)
    assert [found[0] for found in failures(item)] == ([gate] if gate else [])


def test_gate_of_the_model():
    assert failures(goal=GOAL | {"share": 0.8}) == []
    assert failures(goal=GOAL | {"share": 0.79}) == [
        ("model", "decode_step H100 H=8 B=17, share of bandwidth", 0.79, "at least 0.8")
    ]
