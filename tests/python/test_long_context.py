# SPDX-License-Identifier: Apache-2.0
"""One million tokens in one call: the chunkwise form is linear in T in memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/million_tokens.py"


@pytest.mark.parametrize(("backward", "limit"), [(False, 2e9), (True, 4e9)])
def test_memory(backward, limit):
    command = [sys.executable, str(SCRIPT), "--json", *(["--backward"] if backward else [])]
    result = json.loads(subprocess.check_output(command, text=True))
    assert result["finite"]
    assert result["peak_bytes"] < limit, result
