# SPDX-License-Identifier: Apache-2.0
"""Memory on a CPU: freed memory stays mapped, and large outputs ask for huge pages."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import retnet._memory
import retnet.cli
from retnet.ops import gated_group_norm, retention, rotary
from support.cases.retention import grads, make_inputs, require_grad

PROGRAM = """
import ctypes, resource, runpy
if {keep}:
    runpy.run_path({module!r})["keep_memory_mapped"]()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = libc.malloc(64 << 20)
    ctypes.memset(memory, 1, 64 << 20)
    libc.free(memory)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool, **environment: str) -> int:
    """Returns the page faults of the last of several pieces of 64 MiB, each freed before the next.
    torch is not imported, because that takes seconds. Its tensors use malloc too.
    """
    malloc = ("MALLOC_", "GLIBC_TUNABLES")
    clean = {name: x for name, x in os.environ.items() if not name.startswith(malloc)}
    command = [sys.executable, "-c", PROGRAM.format(keep=keep, module=retnet._memory.__file__)]
    return int(subprocess.check_output(command, env=clean | environment, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_stays_mapped():
    pages = (64 << 20) // (2 << 20)  # at least, if all are huge pages
    assert faults(keep=False) >= pages
    assert faults(keep=True) < pages
    assert faults(keep=True, MALLOC_MMAP_MAX_="1000") >= pages
    tunables = "glibc.malloc.arena_max=2:glibc.malloc.mmap_max=1000"
    assert faults(keep=True, GLIBC_TUNABLES=tunables) >= pages
    assert faults(keep=True, GLIBC_TUNABLES="glibc.malloc.arena_max=2") < pages


def test_the_command_asks_for_it(monkeypatch, capsys):
    """It does so as a process of its own, but not within another program."""
    asked = []
    monkeypatch.setattr(retnet.cli, "keep_memory_mapped", lambda: asked.append(True))
    call = ["generate", "nowhere", "--prompt", "x"]
    monkeypatch.setattr(sys, "argv", ["retnet", *call])
    assert retnet.cli.main(call) == 1
    assert asked == []
    assert retnet.cli.main(None) == 1
    assert asked == [True]
    assert "nowhere" in capsys.readouterr().err


def advised(x: Tensor) -> bool:
    """Returns whether the system was asked for huge pages around the middle of ``x``."""
    middle, region = x.data_ptr() + x.nbytes // 2, range(0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            region = range(int(found[1], 16), int(found[2], 16))
        elif line.startswith("VmFlags:") and middle in region:
            return "hg" in line.split()
    raise AssertionError("not mapped")


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no transparent huge pages"
)
def test_large_outputs_ask_for_huge_pages():
    inputs = require_grad(make_inputs(1, 8192, 4, 64, 64, dtype=torch.float32))
    q, k, v = (inputs[name].detach() for name in "qkv")
    outputs = retention(**inputs)
    result = {"out": outputs[0], **grads(outputs, inputs)}
    result["norm"] = gated_group_norm(v, v, eps=1e-5)
    angles = {"positions": torch.arange(8192), "frequencies": torch.ones(32)}
    result["rotated q"], result["rotated k"] = rotary(q, k, **angles)
    for name in ["out", "q", "k", "v", "norm", "rotated q", "rotated k"]:
        assert result[name].nbytes == 8 << 20
        assert advised(result[name]), name
