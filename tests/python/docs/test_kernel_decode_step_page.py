# SPDX-License-Identifier: Apache-2.0
"""docs/kernels/decode_step.md is correct: its C++ computes the decode step, its excerpts are those
of the kernel, and its counts are those of the headers.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from support.kernel_pages import blocks, compile_and_run
from support.paths import ROOT

PAGE = (ROOT / "docs/kernels/decode_step.md").read_text()
# Six units, the last of which is not full. With 4 blocks, one would be idle.
HEAD_DIM_QK, HEAD_DIM_V = 70, 330
CASES = {"layer": (0.97, 1), "forgets": (0.0, 0)}  # gamma, interleaved
CLUSTERS = (1, 2, 3, 6)

MAIN = f"""
#include <cstdint>
#include <cstdio>
#include <limits>

void run(double log_decay, bool interleaved) {{
  uint32_t seed = 1;
  const auto random = [&](int count) {{
    Vector vector(count);
    for (double& x : vector) x = (seed = seed * 1664525u + 1013904223u) / 2147483648.0 - 1;
    return vector;
  }};
  const int Dk = {HEAD_DIM_QK}, Dv = {HEAD_DIM_V};
  Params p{{}};
  p.head_dim_qk = Dk, p.head_dim_v = Dv, p.scale = 0.25, p.log_decay = log_decay;
  p.eps = 1e-3, p.position = 1234, p.interleaved = interleaved;
  for (Vector* x : {{&p.q, &p.k}}) *x = random(Dk);
  for (Vector* x : {{&p.v, &p.gate, &p.weight, &p.bias}}) *x = random(Dv);
  p.frequencies = random(Dk / 2);
  Vector start = random(Dk * Dv);
  if (std::isinf(log_decay)) start[3] = std::numeric_limits<double>::quiet_NaN();
  for (int cluster : {{0, {", ".join(map(str, CLUSTERS))}}}) {{
    Vector state = start, out(Dv);
    cluster == 0 ? plain(p, state, out) : blocks(p, cluster, state, out);
    for (const Vector* result : {{&state, &out}})
      for (double x : *result) std::printf("%.17g ", x);
    std::printf("\\n");
  }}
}}

int main() {{
"""


def step(gamma: float, interleaved: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns state and out in float64, by complex numbers and matrices."""
    seed = 1

    def random(count: int) -> np.ndarray:
        nonlocal seed
        numbers = []
        for _ in range(count):
            seed = (seed * 1664525 + 1013904223) % 2**32
            numbers.append(seed / 2**31 - 1)
        return np.array(numbers)

    q, k = random(HEAD_DIM_QK), random(HEAD_DIM_QK)
    v, gate, weight, bias = (random(HEAD_DIM_V) for _ in range(4))
    turn = np.exp(1j * 1234 * random(HEAD_DIM_QK // 2))
    start = random(HEAD_DIM_QK * HEAD_DIM_V).reshape(HEAD_DIM_QK, HEAD_DIM_V)

    def rotated(x: np.ndarray) -> np.ndarray:
        pairs = x.reshape(-1, 2) if interleaved else x.reshape(2, -1).T
        turned = (pairs[:, 0] + 1j * pairs[:, 1]) * turn
        both = np.stack([turned.real, turned.imag])
        return both.T.ravel() if interleaved else both.ravel()

    state = gamma * start + np.outer(rotated(k), v)
    o = 0.25 * rotated(q) @ state
    normed = (o - o.mean()) / np.sqrt(o.var() + 1e-3)
    return state, (normed * weight + bias) * gate / (1 + np.exp(-gate))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """Returns, for each case, state and out of `plain` and of each cluster size, concatenated."""
    code = {name: text for language, name, text in blocks(PAGE) if language == "cpp"}
    assert list(code) == ["common", "plain", "blocks"]
    calls = [
        f"  run({'-INFINITY' if gamma == 0 else repr(math.log(gamma))}, {interleaved});\n"
        for gamma, interleaved in CASES.values()
    ]
    source = "".join([*code.values(), MAIN, *calls, "}\n"])
    lines = compile_and_run(tmp_path_factory.mktemp("step"), source).splitlines()
    rows = iter([np.array(line.split(), dtype=np.float64) for line in lines])
    return {case: [next(rows) for _ in range(1 + len(CLUSTERS))] for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_code_computes_the_step(case, results):
    state, out = step(*CASES[case])
    plain, *split = results[case]
    for got in (plain, split[0]):
        for values, expected in ((got[: state.size], state.ravel()), (got[state.size :], out)):
            assert np.abs(values - expected).max() <= 1e-12 * np.abs(expected).max()
    for other in split[1:]:
        assert np.array_equal(other, split[0])


def test_excerpts_are_verbatim():
    sources = [
        " ".join((ROOT / "kernels/cuda" / name).read_text().split())
        for name in ("retention/decode_step/kernel.cuh", "prim/angle.cuh")
    ]
    excerpts = [text for language, _, text in blocks(PAGE) if language == "cuda"]
    assert len(excerpts) >= 2
    for excerpt in excerpts:
        assert any(" ".join(excerpt.split()) in source for source in sources), excerpt
    assert {language for language, _, _ in blocks(PAGE)} == {"cpp", "cuda"}
    assert PAGE.count("```") == 2 * len(blocks(PAGE))


def test_counts_are_those_of_the_headers(tmp_path):
    table = re.findall(
        r"^\| (\d+) \| (\d+) \| (\d) \| ([\d.]+) us \| ([\d.]+) us \| (\d+)% \|$",
        PAGE,
        re.MULTILINE,
    )
    assert len(table) == 4
    checks = "".join(f"  row({heads}, {batch});\n" for heads, batch, *_ in table)
    source = f"""
#include <cstdio>
#include "kernels/cuda/retention/decode_step/cost_model.h"
using namespace retnet::kernels::cuda;
void row(int64_t heads, int64_t batch) {{
  DecodeStepParams p;
  p.batch = batch, p.heads = heads, p.dtype = DType::kBFloat16;
  p.head_dim_qk = 256, p.head_dim_v = 512;
  const ModelDevice& device = kModelDevices[0];
  const int cluster = decode_step_cluster(p, device.limits);
  const DecodeStepTime t =
      decode_step_time(p, cluster, device.limits.multiprocessors, device.memory_tbps);
  std::printf("%d %.1f %.1f ", cluster, t.memory_ns / 1000, t.total() / 1000);
  std::printf("%.0f\\n", 100 * t.share());
}}
int main() {{
  const auto state = decode_step_state_bytes(256, 512);
  std::printf("%lld %lld %zu %d\\n", (long long)state,
              (long long)(decode_step_memory_bytes(DType::kBFloat16, 256, 512) - state),
              decode_step_shared_bytes(256, 512, 1), kDecodeStepBarriers);
{checks}}}
"""
    counts, *rows = compile_and_run(tmp_path, source, f"-I{ROOT}").splitlines()
    state, vectors, shared, barriers = map(int, counts.split())
    for text in (f"{state:,} bytes", f"{vectors:,} bytes", f"{shared:,} bytes"):
        assert text in PAGE, text
    assert f"**Barriers.** There are {barriers} barriers:\n" in PAGE
    parts = re.search(r"\*\*Shared memory\*\*.*?(\|.*?)\n\n\*\*", PAGE, re.DOTALL)[1]
    sizes = [int(x.replace(",", "")) for x in re.findall(r"\| ([\d,]+) \|", parts)]
    assert sum(sizes) == shared
    for (_, _, *stated), row in zip(table, rows, strict=True):
        assert stated == row.split()


def test_the_page_is_in_the_documentation():
    assert "kernels/decode_step\n" in (Path(ROOT) / "docs/index.md").read_text()
