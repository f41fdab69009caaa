# SPDX-License-Identifier: Apache-2.0
"""The command keeps freed memory mapped."""

import os
import platform
import subprocess
import sys

import pytest

import retnet.cli

PROGRAM = """
import resource, torch
from retnet._memory import keep_memory_mapped
if {keep}:
    keep_memory_mapped()
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, **environment: str) -> int:
    """Of the last of some tensors of 64 MiB, each freed before the next."""
    malloc = {name for name in os.environ if name.startswith("MALLOC_")}
    clean = {name: x for name, x in os.environ.items() if name not in malloc}
    command = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return int(subprocess.check_output(command, env=clean | environment, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_stays_mapped():
    pages = (64 << 20) // (2 << 20)  # at least: huge ones
    assert faults(keep=False) >= pages
    assert faults(keep=True) < pages
    assert faults(keep=True, MALLOC_MMAP_MAX_="1000") >= pages


def test_the_command_asks_for_it(monkeypatch, capsys):
    """As a process of its own, not within another program."""
    asked = []
    monkeypatch.setattr(retnet.cli, "keep_memory_mapped", lambda: asked.append(True))
    call = ["generate", "nowhere", "--prompt", "x"]
    monkeypatch.setattr(sys, "argv", ["retnet", *call])
    assert retnet.cli.main(call) == 1
    assert asked == []
    assert retnet.cli.main(None) == 1
    assert asked == [True]
    assert "nowhere" in capsys.readouterr().err
