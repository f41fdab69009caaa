# SPDX-License-Identifier: Apache-2.0
"""The commands in the README are targets of the Makefile, and CI runs them. test_docs.py runs the
code of the README.
"""

import re
import subprocess
import sys

from support.paths import ROOT

README = (ROOT / "README.md").read_text()


def test_commands_are_run_by_ci():
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci/run").read_text()
    commands = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert commands >= {"demo", "test"}
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
    run_by_ci = set(re.findall(r"\bmake ([a-z][a-z-]*)", ci))
    run_by_test = set(re.search("^test: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    # Tests run bench, mutate and results. gpu-wheels downloads. newest runs one pair of the matrix.
    allowed = {"bench", "mutate", "results", "gpu-wheels", "matrix"}
    assert commands - run_by_ci - run_by_test <= allowed


def test_minimal_example_is_short_and_learns():
    example = ROOT / "examples/train_minimal.py"
    assert len(example.read_text().splitlines()) <= 40
    printed = subprocess.check_output([sys.executable, str(example), "21"], text=True)
    bits = [float(x) for x in re.findall(r"([0-9.]+) bits/byte", printed)]
    assert len(bits) == 2 and bits[0] > 7 and bits[1] < 4.5


def test_data_parallel_example_learns(tmp_path):
    (command,) = re.findall(r"^torchrun (.*)$", README, flags=re.MULTILINE)
    *options, example = command.split()
    run = [sys.executable, "-m", "torch.distributed.run", *options, str(ROOT / example), "9"]
    printed = subprocess.check_output(run, text=True, cwd=tmp_path)
    bits = [float(x) for x in re.findall(r"([0-9.]+) bits/byte", printed)]
    assert len(bits) == 2 and bits[0] > 7 and bits[1] < 5  # the first step and the last
    assert (tmp_path / "ddp/model.safetensors").stat().st_size > 0
