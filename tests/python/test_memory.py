# SPDX-License-Identifier: Apache-2.0
"""The command keeps freed memory mapped."""

import os
import platform
import subprocess
import sys

import pytest

import retnet._memory
import retnet.cli

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
    """Of the last of some pieces of 64 MiB, each freed before the next. Without torch, which takes
    seconds to import, and whose tensors are malloc's."""
    malloc = ("MALLOC_", "GLIBC_TUNABLES")
    clean = {name: x for name, x in os.environ.items() if not name.startswith(malloc)}
    command = [sys.executable, "-c", PROGRAM.format(keep=keep, module=retnet._memory.__file__)]
    return int(subprocess.check_output(command, env=clean | environment, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_stays_mapped():
    pages = (64 << 20) // (2 << 20)  # at least: huge ones
    assert faults(keep=False) >= pages
    assert faults(keep=True) < pages
    assert faults(keep=True, MALLOC_MMAP_MAX_="1000") >= pages
    tunables = "glibc.malloc.arena_max=2:glibc.malloc.mmap_max=1000"
    assert faults(keep=True, GLIBC_TUNABLES=tunables) >= pages
    assert faults(keep=True, GLIBC_TUNABLES="glibc.malloc.arena_max=2") < pages


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
