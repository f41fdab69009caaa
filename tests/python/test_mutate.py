# SPDX-License-Identifier: Apache-2.0
"""tools/mutate.py finds every barrier and wait, deletes one at a time, and tells what notices."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import mutate  # noqa: E402

PRIMITIVES = """
RETNET_DEVICE void sync_block() { __syncthreads(); }
RETNET_DEVICE void store(void* dst) {
  *dst = 1;
}
template <int kGroups>
RETNET_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}
RETNET_DEVICE void arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id)); }
"""
KERNEL = """
// prim::sync_block(); in a comment
if (x) prim::sync_block();
prim::store(dst);
prim::copies_wait<kStages - 2>();  /* prim::sync_block(); */
prim::arrive(first +
             1, 64);
__syncwarp(0xff);
"""
SOURCES = {"kernels/prim/a.cuh": PRIMITIVES, "kernels/x/k.cuh": KERNEL}


def test_statements():
    assert set(mutate.primitives(SOURCES)) == {"sync_block", "copies_wait", "arrive"}
    assert [(site.line, site.text) for site in mutate.statements(SOURCES)] == [
        (3, "prim::sync_block();"),
        (5, "prim::copies_wait<kStages - 2>();"),
        (6, "prim::arrive(first + 1, 64);"),
        (8, "__syncwarp(0xff);"),
    ]


def test_the_kernels_have_some():
    """Each primitive that orders is one that it finds, and each file with one of them."""
    sources = mutate.kernel_sources(ROOT)
    assert {"sync_block", "sync_warp", "bar_sync", "cp_async_wait", "cp_async_commit"} <= set(
        mutate.primitives(sources)
    )
    found = {site.file for site in mutate.statements(sources)}
    assert {"kernels/norm/column_sum.cu", "kernels/prim/reduce.cuh"} <= found
    assert "kernels/prim/cuda.cuh" not in found


class Emulator:
    """A stand-in that keeps the text it was asked to build; the second test fails if any."""

    def __init__(self, builds: bool, notices: bool):
        self.builds, self.notices, self.text = builds, notices, ""

    def build(self, tests):
        self.text = (mutate.TREE / "kernels/x/k.cuh").read_text()
        return None if self.builds else "error"

    def fails(self, test):
        return "a race" if self.notices and test == "second" else None


@pytest.mark.parametrize(
    ("builds", "notices", "status"),
    [(True, True, "found"), (True, False, "SURVIVES"), (False, True, "does not build")],
)
def test_a_deletion(builds, notices, status, tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "TREE", tmp_path)
    file = tmp_path / "kernels/x/k.cuh"
    file.parent.mkdir(parents=True)
    file.write_text(KERNEL)
    site = mutate.statements(SOURCES)[0]
    emulator = Emulator(builds, notices)
    result = mutate.mutate(site, ["first", "second"], emulator)
    assert result["status"] == status and result.get("test") == (
        "second" if status == "found" else None
    )
    assert emulator.text == KERNEL.replace("if (x) prim::sync_block();", "if (x) (void)0;")
    assert file.read_text() == KERNEL


def test_likeliest_test_first_and_others_left_out():
    emulator = object.__new__(mutate.Tests)
    emulator.commands = {"norm_test": [], "step_test": [], "chunk_test": []}
    emulator.objects = {
        "tests/norm.o": {"kernels/norm/norm.cuh", "kernels/prim/reduce.cuh"},
        "tests/chunk.o": {"kernels/retention/chunk.cuh"},
        "tests/step.o": {"kernels/retention/step.cuh", "kernels/prim/reduce.cuh"},
        "a/norm_test.dir/n.o": {"kernels/norm/norm.h", "tests/n.cpp"},
        "a/step_test.dir/s.o": {"kernels/retention/step.h", "tests/s.cpp"},
        "a/chunk_test.dir/c.o": {"kernels/retention/chunk.h", "tests/c.cpp"},
    }
    tests, files = emulator.covering("kernels/retention/step.cuh")
    assert tests == ["step_test", "chunk_test"]
    assert "tests/s.cpp" in files and "kernels/norm/norm.cuh" not in files
    assert set(emulator.covering("kernels/prim/reduce.cuh")[0]) == set(emulator.commands)
