# SPDX-License-Identifier: Apache-2.0
"""The chunkwise form is linear in T: in memory, by one call on a million tokens, and in work."""

import json
import math
import subprocess
import sys

import pytest
import torch

from retnet.ops import retention
from support.cases.retention import grads, make_inputs, require_grad
from support.paths import ROOT

SCRIPT = ROOT / "benchmarks/million_tokens.py"


@pytest.mark.parametrize(("backward", "limit"), [(False, 2e9), (True, 4e9)])
def test_memory(backward, limit):
    command = [sys.executable, str(SCRIPT), "--json", *(["--backward"] if backward else [])]
    result = json.loads(subprocess.check_output(command, text=True))
    assert result["finite"]
    assert result["peak_bytes"] < limit, result


def arithmetic(T: int, form: str, backward: bool) -> int:
    """Returns the multiplications and additions in the matrix products of one head of 16 by 24. The
    inputs are float64, so the composite runs, and the profiler sees its products.
    """
    inputs = require_grad(make_inputs(1, T, 1, 16, 24, dtype=torch.float64))
    call = lambda: retention(**inputs, form=form, chunk_size=64)  # noqa: E731
    if backward:
        outputs = call()
        call = lambda: grads(outputs, inputs)  # noqa: E731
    with torch.profiler.profile(record_shapes=True) as profile:
        call()
    products = [e.input_shapes for e in profile.events() if e.name == "aten::bmm"]
    return sum(2 * math.prod(left) * right[-1] for left, right in products)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("form", "T", "least", "most"), [("chunkwise", 1024, 3.95, 4.05), ("parallel", 512, 11, 16.1)]
)
def test_work(form, T, least, most, backward):
    """Four times as many tokens take four times the work, or up to sixteen times in the parallel
    form.
    """
    ratio = arithmetic(4 * T, form, backward) / arithmetic(T, form, backward)
    assert least <= ratio <= most


def test_work_of_the_chunkwise_form_is_what_numerics_states():
    """There are T (2 K V + C (K + V)) products, each with an addition."""
    assert arithmetic(1024, "chunkwise", False) == 2 * 1024 * (2 * 16 * 24 + 64 * (16 + 24))
