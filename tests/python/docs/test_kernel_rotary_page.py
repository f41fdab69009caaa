# SPDX-License-Identifier: Apache-2.0
"""The figures of docs/kernels/rotary.md follow from its assumptions and from the cost model."""

import pytest

from retnet import RetNetConfig
from support.kernel_pages import compile_and_run
from support.paths import ROOT

PAGE = " ".join((ROOT / "docs/kernels/rotary.md").read_text().split())
BFLOAT16 = 2  # bytes
BYTES_PER_US = 3.35e6
CONFIG = RetNetConfig.preset("1.3b")


def training_step_us() -> float:
    return 6 * 1.3e9 / 400e6


def test_assumptions():
    assert "(d = 2,048, 24 layers)" in PAGE and (CONFIG.embed_dim, CONFIG.num_layers) == (2048, 24)
    assert "400 TFLOP/s. All figures are a **model**, at 3.35 TB/s in bfloat16." in PAGE
    assert f"6 FLOP per parameter and token: {6 * 1.3:.1f} GFLOP a token" in PAGE
    assert f"{training_step_us():.1f} us at 400" in PAGE


def test_counts_are_those_of_the_header(tmp_path):
    source = """
#include <cstdio>
#include "kernels/cuda/rotary/cost_model.h"
using namespace retnet::kernels::cuda;
int main() {
  std::printf("%d %d %d", static_cast<int>(rotary_memory_bytes(DType::kBFloat16, 1)) / 2,
              kRotaryAngleOperations, static_cast<int>(rotary_angle_bytes(DType::kBFloat16)));
}
"""
    per_element, operations, of_angle = map(
        int, compile_and_run(tmp_path, source, f"-I{ROOT}").split()
    )
    # The composite moves ten times what the kernel moves.
    assert f"saves {10 * per_element - per_element} of {10 * per_element} bytes per element" in PAGE
    assert f"Together these are {operations} operations in float64" in PAGE
    assert f"it then moves {of_angle} bytes in bfloat16" in PAGE
    # A multiprocessor starts 128 operations of float32 in a cycle, and 2 of float64.
    ps = operations / (128 * 2 * 2.52) * 1000
    model = "(128 multiprocessors at 2.52 GHz, 1 TB/s), a **model** gives"
    assert f"{model} {ps:.0f} ps for the operations and {of_angle} ps for the bytes" in PAGE


# Bytes saved for a token: in q and k, forward and backward, of each layer; in 48 blocks, three
# accesses forward and backward; in each layer, two accesses forward and four backward.
SAVED = {
    "rotation": 2 * CONFIG.embed_dim * 36 * 2 * CONFIG.num_layers,
    "residual and norm": 3 * CONFIG.embed_dim * BFLOAT16 * 2 * CONFIG.num_layers,
    "SwiGLU": 6 * (8 * CONFIG.embed_dim // 3) * BFLOAT16 * CONFIG.num_layers,
}


@pytest.mark.parametrize("kernel", SAVED)
def test_table_of_fused_kernels(kernel):
    megabytes, us = SAVED[kernel] / 1e6, SAVED[kernel] / BYTES_PER_US
    time = f"{us:.1f}" if us > 1 else f"{us:.2f}"
    share = 100 * us / training_step_us()
    percent = f"{share:.0f}" if share > 10 else f"{share:.1f}"
    assert f"| {kernel} | {megabytes:.1f} MB | {time} us | {percent}% |" in PAGE
    assert ("dropped" in PAGE.partition(f"| {kernel} |")[2].split("|")[3]) == (share < 3)
