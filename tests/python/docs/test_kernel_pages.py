# SPDX-License-Identifier: Apache-2.0
"""docs/kernels/retention.md and backward.md are correct: their C++ computes retention, their
excerpts are those of the kernels, and their counts are those of the headers.
"""

import math
import re

import numpy as np
import pytest

from support.kernel_pages import blocks, compile_and_run
from support.paths import ROOT

RETENTION = (ROOT / "docs/kernels/retention.md").read_text()
BACKWARD = (ROOT / "docs/kernels/backward.md").read_text()


BLOCKS = blocks(RETENTION)
VERSIONS = ("plain", "chunkwise", "tiles")
TOKENS, HEAD_DIM_QK = 75, 32
# 32 columns are one slice, and 64 are two blocks of `tiles`.
CASES = {"decay": (31 / 32, 32), "two slices": (31 / 32, 64), "gamma = 0": (0.0, 32)}
SCALE = 0.25

# Prints final state and out of each version, a line each. The inputs are those of `retention`
# below, but for a NaN in the initial state where gamma = 0, which drops it.
MAIN = f"""
#include <cstdint>
#include <cstdio>
#include <limits>

void print(const Matrix& state, const Matrix& out) {{
  for (const Matrix* m : {{&state, &out}})
    for (double x : m->elements) std::printf("%.17g ", x);
  std::printf("\\n");
}}

void run(double log_decay, int head_dim_v) {{
  uint32_t seed = 1;
  const auto random = [&](int rows, int columns) {{
    Matrix m{{columns, std::vector<double>(rows * columns)}};
    for (double& x : m.elements) x = (seed = seed * 1664525u + 1013904223u) / 2147483648.0 - 1;
    return m;
  }};
  const int T = {TOKENS}, Dk = {HEAD_DIM_QK}, Dv = head_dim_v;
  const Matrix q = random(T, Dk), k = random(T, Dk), v = random(T, Dv);
  const Params p{{T, Dk, Dv, {SCALE}, log_decay, q, k, v}};
  Matrix start = random(Dk, Dv);
  if (std::isinf(log_decay)) start(1, 2) = std::numeric_limits<double>::quiet_NaN();
  for (const auto& version : {{plain, chunkwise}}) {{
    Matrix state = start, out{{Dv, std::vector<double>(T * Dv, -1.0)}};
    version(p, state, out);
    print(state, out);
  }}
  Matrix state = start, out{{Dv, std::vector<double>(T * Dv, -1.0)}};
  for (int column = 0; column < Dv; column += kSlice) tiles(p, column, state, out);
  print(state, out);
}}

int main() {{
"""


def log_decay(gamma: float) -> float:
    return math.log(gamma) if gamma else -math.inf


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Returns, for each case and version, final state and out, concatenated."""
    code = {name: text for language, name, text in BLOCKS if language == "cpp"}
    assert list(code) == ["common", *VERSIONS]
    calls = [
        f"  run({log_decay(gamma)!r}, {head_dim_v});\n".replace("-inf", "-INFINITY")
        for gamma, head_dim_v in CASES.values()
    ]
    source = "".join([*code.values(), MAIN, *calls, "}\n"])
    lines = compile_and_run(tmp_path_factory.mktemp("retention"), source).splitlines()
    rows = iter([np.array(line.split(), dtype=np.float64) for line in lines])
    return {case: {version: next(rows) for version in VERSIONS} for case in CASES}


def retention(gamma: float, head_dim_v: int) -> np.ndarray:
    """Returns final state and out in float64, by the sum over all pairs of tokens."""
    seed = 1

    def random(rows: int, columns: int) -> np.ndarray:
        nonlocal seed
        numbers = []
        for _ in range(rows * columns):
            seed = (seed * 1664525 + 1013904223) % 2**32
            numbers.append(seed / 2**31 - 1)
        return np.array(numbers).reshape(rows, columns)

    q, k = random(TOKENS, HEAD_DIM_QK), random(TOKENS, HEAD_DIM_QK)
    v, start = random(TOKENS, head_dim_v), random(HEAD_DIM_QK, head_dim_v)
    t = np.arange(TOKENS)
    distance = t[:, None] - t
    weight = np.where(distance >= 0, gamma ** np.maximum(distance, 0.0), 0.0)
    out = SCALE * ((weight * (q @ k.T)) @ v + gamma ** (t[:, None] + 1.0) * (q @ start))
    state = gamma**TOKENS * start + (weight[-1][:, None] * k).T @ v
    return np.concatenate([state.ravel(), out.ravel()])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_code_computes_retention(case, version, results):
    expected = retention(*CASES[case])
    parts = np.split(np.arange(expected.size), [HEAD_DIM_QK * CASES[case][1]])
    for other in (expected, results[case]["plain"]):
        for part in parts:
            error = np.abs(results[case][version][part] - other[part]).max()
            assert error <= 1e-12 * np.abs(other[part]).max()


@pytest.mark.parametrize(
    ("page", "languages"), [(RETENTION, {"cpp", "cuda"}), (BACKWARD, {"cuda"})]
)
def test_excerpts_are_verbatim(page, languages):
    sources = [
        " ".join((ROOT / "kernels/cuda/retention" / name).read_text().split())
        for name in (
            *("chunkwise/kernel.cuh", "grad_log_decay/kernel.cuh"),
            *("decay.cuh", "segments.cuh", "tile.cuh"),
        )
    ]
    excerpts = [text for language, _, text in blocks(page) if language == "cuda"]
    assert len(excerpts) >= 2
    for excerpt in excerpts:
        assert any(" ".join(excerpt.split()) in source for source in sources), excerpt
    # Every code block of the page is checked.
    assert {language for language, _, _ in blocks(page)} == languages
    assert page.count("```") == 2 * len(blocks(page))


def test_counts_are_those_of_the_headers(tmp_path):
    source = """
#include <cstdio>
#include "kernels/cuda/retention/chunkwise/cost_model.h"
using namespace retnet::kernels::cuda;
int main() {
  const ChunkwiseTile& tile = kChunkwiseTiles[3];
  const ChunkwiseMma mma = chunkwise_mma(tile);
  const ChunkwiseWavefronts waves = chunkwise_wavefronts(tile);
  const ModelDevice& device = kModelDevices[0];
  // Of a cycle a chunk, per token and head: the slices of 32 heads run side by side.
  const double ns = 1 / device.clock_ghz / tile.chunk / 32;
  std::printf("%zu %d %d %d %d %d %d ", tile.shared_bytes(), mma.total(), mma.q_state, mma.q_k,
              mma.scores_v, mma.k_v, waves.total());
  std::printf("%d %d %d %d ", waves.q, waves.k_update, waves.copies,
              waves.total() - waves.q - waves.k_update - waves.copies);
  const auto l2 = static_cast<double>(chunkwise_l2_bytes(tile, 256, 512));
  const auto memory = static_cast<double>(chunkwise_memory_bytes(256, 512));
  std::printf("%.0f %.0f\\n", l2, memory);
  std::printf("%.2f %.2f %.2f %.2f\\n", ns * waves.total() / device.wavefronts_per_cycle,
              ns * mma.total() / device.mma_per_cycle, l2 / device.l2_tbps / 1000,
              memory / device.memory_tbps / 1000);
}
"""
    counts, times = compile_and_run(tmp_path, source, f"-I{ROOT}").splitlines()
    for count in counts.split():
        assert f"{int(count):,}" in RETENTION, count
    rows = ("shared memory", "tensor cores", "L2", "memory")
    for resource, time in zip(rows, times.split(), strict=True):
        assert f"| {resource} | {time} |" in RETENTION, (resource, time)


def test_counts_of_gradients_are_those_of_the_headers(tmp_path):
    source = """
#include <cstdio>
#include "kernels/cuda/retention/chunkwise/cost_model.h"
using namespace retnet::kernels::cuda;
int main() {
  const ChunkwiseTile &tile = kChunkwiseTiles[5], &grad_v = kChunkwiseTiles[3];
  const ModelDevice& device = kModelDevices[0];
  const double ns = 1 / device.clock_ghz / 32;
  const int waves = chunkwise_wavefronts(tile).total(), mma = chunkwise_mma(tile).total();
  std::printf("%d %zu %d %d\\n", tile.head_dim_qk, tile.shared_bytes(), mma, waves);
  const double shared = ns * waves / tile.chunk / device.wavefronts_per_cycle;
  const double forward = ns * chunkwise_wavefronts(grad_v).total() / grad_v.chunk;
  std::printf("%.2f %.2f %.2f %.2f\\n", shared,
              static_cast<double>(chunkwise_l2_bytes(tile, 512, 256)) / device.l2_tbps / 1000,
              ns * mma / tile.chunk / device.mma_per_cycle,
              static_cast<double>(chunkwise_memory_bytes(512, 256)) / device.memory_tbps / 1000);
  std::printf("%.2f %.2f\\n", forward, 2 * shared + forward);
}
"""
    counts, times, sums = compile_and_run(tmp_path, source, f"-I{ROOT}").splitlines()
    for count in counts.split():
        assert f"{int(count):,}" in BACKWARD, count
    rows = ("shared memory", "L2", "tensor cores", "memory")
    for resource, time in zip(rows, times.split(), strict=True):
        assert f"| {resource} | {time} |" in BACKWARD, (resource, time)
    for time in sums.split():
        assert time in BACKWARD, time


def test_counts_of_grad_log_decay_are_those_of_its_header(tmp_path):
    source = """
#include <cmath>
#include <cstdio>
#include "kernels/cuda/retention/chunkwise/cost_model.h"
#include "kernels/cuda/retention/grad_log_decay/cost_model.h"
using namespace retnet::kernels::cuda;
int main() {
  const GradLogDecayTile& tile = kGradLogDecayTiles[2];
  const ModelDevice& device = kModelDevices[0];
  const int waves = grad_log_decay_wavefronts(tile).total(), mma = grad_log_decay_mma(tile).total();
  std::printf("%d %d %zu\\n", mma, waves, tile.shared_bytes());
  // Of a cycle a chunk, per token and head: 8 slices of 32 heads, in whole turns of the device.
  const double turns = std::ceil(8.0 * 32 / device.limits.multiprocessors);
  const double ns = turns / device.clock_ghz / tile.chunk / 32;
  const auto l2 = static_cast<double>(grad_log_decay_l2_bytes(tile, 256, 512));
  const auto memory = static_cast<double>(grad_log_decay_memory_bytes(256, 512));
  std::printf("%.2f %.2f %.2f %.2f\\n", ns * waves / device.wavefronts_per_cycle,
              ns * mma / device.mma_per_cycle, l2 / device.l2_tbps / 1000,
              memory / device.memory_tbps / 1000);
  // Without the compiler of kernels: what the source asks for, and the limit.
  const double least = mma + grad_log_decay_others(tile);
  const double most = mma * (1 + grad_log_decay_max_others_per_mma(tile));
  std::printf("%.2f %.2f\\n", ns * least / device.issue_per_cycle,
              ns * most / device.issue_per_cycle);
}
"""
    counts, times, limits = compile_and_run(tmp_path, source, f"-I{ROOT}").splitlines()
    for count in counts.split():
        assert f"{int(count):,}" in BACKWARD, count
    section = BACKWARD[BACKWARD.index("| resource, log_decay |") :]
    rows = ("shared memory", "tensor cores", "L2", "memory")
    for resource, time in zip(rows, times.split(), strict=True):
        assert f"| {resource} | {time} |" in section, (resource, time)
    issue = float(re.search(r"^\| issue \| ([\d.]+) \|$", section, re.MULTILINE)[1])
    least, most = map(float, limits.split())
    assert least <= issue <= most
