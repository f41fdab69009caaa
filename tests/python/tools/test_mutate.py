# SPDX-License-Identifier: Apache-2.0
"""tools/mutate.py finds every barrier and wait, deletes one at a time, and reports which test
fails.
"""

import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import mutate

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
SOURCES = {"kernels/cuda/prim/a.cuh": PRIMITIVES, "kernels/cuda/x/k.cuh": KERNEL}


def test_statements():
    assert set(mutate.primitives(SOURCES)) == {"sync_block", "copies_wait", "arrive"}
    assert [(site.line, site.text) for site in mutate.statements(SOURCES)] == [
        (3, "prim::sync_block();"),
        (5, "prim::copies_wait<kStages - 2>();"),
        (6, "prim::arrive(first + 1, 64);"),
        (8, "__syncwarp(0xff);"),
    ]


def test_the_kernels_have_some():
    """The tool finds each primitive that orders, and each file that uses one."""
    sources = mutate.kernel_sources(ROOT)
    assert {"sync_block", "sync_warp", "bar_sync", "cp_async_wait", "cp_async_commit"} <= set(
        mutate.primitives(sources)
    )
    found = {site.file for site in mutate.statements(sources)}
    assert {"kernels/cuda/norm/column_sum.cu", "kernels/cuda/prim/reduce.cuh"} <= found
    assert "kernels/cuda/prim/cuda.cuh" not in found


class Emulator:
    """A stand-in that keeps the text that it builds. The second test fails if there is one."""

    def __init__(self, builds: bool, notices: bool):
        self.builds, self.notices, self.text = builds, notices, ""

    def build(self, tests):
        self.text = (mutate.TREE / "kernels/cuda/x/k.cuh").read_text()
        return None if self.builds else "error"

    def failure(self, tests):
        return (tests[1], "a race") if self.notices else None


@pytest.mark.parametrize(
    ("builds", "notices", "status"),
    [(True, True, "found"), (True, False, "SURVIVES"), (False, True, "does not build")],
)
def test_a_deletion(builds, notices, status, tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "TREE", tmp_path)
    file = tmp_path / "kernels/cuda/x/k.cuh"
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


def test_the_tests_of_a_kernel():
    emulator = object.__new__(mutate.Tests)
    emulator.commands = {"norm_test": [], "step_test": [], "chunk_test": []}
    emulator.objects = {
        "tests/norm.o": {"kernels/cuda/norm/norm.cuh", "kernels/cuda/prim/reduce.cuh"},
        "tests/chunk.o": {"kernels/cuda/retention/chunk.cuh"},
        "tests/step.o": {
            *("kernels/cuda/retention/decode_step/kernel.cuh", "kernels/cuda/prim/reduce.cuh"),
        },
        "a/norm_test.dir/n.o": {"kernels/cuda/norm/norm.h", "tests/n.cpp"},
        "a/step_test.dir/s.o": {"kernels/cuda/retention/decode_step/launch.h", "tests/s.cpp"},
        "a/chunk_test.dir/c.o": {"kernels/cuda/retention/chunk.h", "tests/c.cpp"},
    }
    tests, files = emulator.covering("kernels/cuda/retention/decode_step/kernel.cuh")
    assert tests == ["step_test", "chunk_test"]
    assert "tests/s.cpp" in files and "kernels/cuda/norm/norm.cuh" not in files
    assert set(emulator.covering("kernels/cuda/prim/reduce.cuh")[0]) == set(emulator.commands)


def test_the_first_test_to_fail_ends_the_others():
    emulator = object.__new__(mutate.Tests)
    script = "import sys, time; print(sys.argv); time.sleep(float(sys.argv[1])); sys.exit({})"
    emulator.commands = {
        "slow": [sys.executable, "-c", script.format(1), "100"],
        "passes": [sys.executable, "-c", script.format(0), "0"],
        "fails": [sys.executable, "-c", script.format(1), "0.5"],
    }
    test, output = emulator.failure(list(emulator.commands))
    assert test == "fails" and "'--abort'" in output
    assert emulator.failure(["passes"]) is None
