# SPDX-License-Identifier: Apache-2.0
"""docs/kernels/norm.md is correct: its C++ computes the gated group norm and its gradients, its
excerpts are those of the kernels, and its counts are those of the headers.
"""

import re

import numpy as np
import pytest
import torch

from support.kernel_pages import blocks, compile_and_run
from support.paths import ROOT

PAGE = (ROOT / "docs/kernels/norm.md").read_text()
EPS = 1e-3
TOKENS, HEADS = 37, 3
# Norm, Dv, elements per access: rows in a warp, with the last slots empty; rows of two warps.
CASES = {
    "layer": (1, 72, 8),
    "rms": (0, 72, 4),
    "layer, two warps": (1, 516, 4),
    "rms, two warps": (0, 520, 8),
}
# 19: each takes its rows once if a row has two warps, and column_sum has more rows than warps.
BLOCKS_PER_HEAD = (1, 2, 19)
NAMES = ("out", "grad_x", "grad_gate", "grad_weight", "grad_bias")

# Prints a line for `plain` and for each number of blocks: NAMES, one behind the other.
MAIN = f"""
#include <cstdint>
#include <cstdio>

void print(const Vector& out, const Gradients& grad) {{
  for (const Vector* result : {{&out, &grad.x, &grad.gate, &grad.weight, &grad.bias}})
    for (double x : *result) std::printf("%.17g ", x);
  std::printf("\\n");
}}

void run(bool layer, int head_dim_v, int vector) {{
  uint32_t seed = 1;
  const auto random = [&](int count) {{
    Vector values(count);
    for (double& x : values) x = (seed = seed * 1664525u + 1013904223u) / 2147483648.0 - 1;
    return values;
  }};
  const int affine = {HEADS} * head_dim_v, count = {TOKENS} * affine;
  Params p{{{TOKENS}, {HEADS}, head_dim_v, layer, {EPS}, {{}}, {{}}, {{}}, {{}}, {{}}}};
  for (Vector* x : {{&p.x, &p.gate, &p.grad_out}}) *x = random(count);
  for (Vector* x : {{&p.weight, &p.bias}}) *x = random(affine);
  Vector out(count);
  Gradients grad(p);
  plain(p, out, grad);
  print(out, grad);
  for (int blocks_per_head : {{{", ".join(map(str, BLOCKS_PER_HEAD))}}}) {{
    Vector out_of_rows(count);
    Gradients grad_of_rows(p);
    forward(p, vector, out_of_rows);
    backward(p, vector, blocks_per_head, grad_of_rows);
    print(out_of_rows, grad_of_rows);
  }}
}}

int main() {{
"""


def split(line: np.ndarray, head_dim_v: int) -> dict[str, np.ndarray]:
    """Returns the parts of a printed line."""
    affine = HEADS * head_dim_v
    ends = np.cumsum([TOKENS * affine] * 3 + [affine] * 2)
    assert line.size == ends[-1]
    return dict(zip(NAMES, np.split(line, ends[:-1]), strict=True))


def gated_group_norm(layer: int, head_dim_v: int) -> dict[str, np.ndarray]:
    """Computes the same with torch operators and autograd in float64."""
    seed = 1

    def random(*shape: int) -> torch.Tensor:
        nonlocal seed
        numbers = []
        for _ in range(int(np.prod(shape))):
            seed = (seed * 1664525 + 1013904223) % 2**32
            numbers.append(seed / 2**31 - 1)
        return torch.tensor(numbers, dtype=torch.float64).reshape(shape).requires_grad_()

    x, gate, grad_out = (random(TOKENS, HEADS, head_dim_v) for _ in range(3))
    weight, bias = random(HEADS, head_dim_v), random(HEADS, head_dim_v)
    norm = torch.nn.functional.layer_norm if layer else torch.nn.functional.rms_norm
    normed = norm(x, (head_dim_v,), eps=EPS)
    out = (normed * weight + bias) * torch.nn.functional.silu(gate)
    grads = torch.autograd.grad(out, (x, gate, weight, bias), grad_out)
    values = (out, *grads)
    return {name: t.detach().numpy().ravel() for name, t in zip(NAMES, values, strict=True)}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[dict[str, np.ndarray]]]:
    """Returns, for each case, the results of `plain`, and of `forward` and `backward` with each
    number of blocks.
    """
    code = {name: text for language, name, text in blocks(PAGE) if language == "cpp"}
    assert list(code) == ["common", "plain", "rows"]
    calls = [
        f"  run({str(bool(layer)).lower()}, {head_dim_v}, {vector});\n"
        for layer, head_dim_v, vector in CASES.values()
    ]
    source = "".join([*code.values(), MAIN, *calls, "}\n"])
    lines = compile_and_run(tmp_path_factory.mktemp("norm"), source).splitlines()
    rows = iter([np.array(line.split(), dtype=np.float64) for line in lines])
    return {
        case: [split(next(rows), head_dim_v) for _ in range(1 + len(BLOCKS_PER_HEAD))]
        for case, (_, head_dim_v, _) in CASES.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_code_computes_the_norm_and_its_gradients(case, results):
    expected = gated_group_norm(*CASES[case][:2])
    for got in results[case]:
        for name in NAMES:
            error = np.abs(got[name] - expected[name]).max()
            assert error <= 1e-12 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("case", CASES)
def test_only_sums_over_rows_depend_on_the_blocks(case, results):
    _, first, *others = results[case]
    for other in others:
        for name in ("out", "grad_x", "grad_gate"):
            assert np.array_equal(other[name], first[name]), name
        assert not np.array_equal(other["grad_weight"], first["grad_weight"])


def test_excerpts_are_verbatim():
    sources = [
        " ".join((ROOT / "kernels/cuda" / name).read_text().split())
        for name in (
            *("norm/row.cuh", "norm/forward_kernel.cuh", "norm/backward_kernel.cuh"),
            *("norm/column_sum.cu", "prim/reduce.cuh"),
        )
    ]
    excerpts = [text for language, _, text in blocks(PAGE) if language == "cuda"]
    assert len(excerpts) >= 5
    for excerpt in excerpts:
        assert any(" ".join(excerpt.split()) in source for source in sources), excerpt
    # Every code block of the page is checked.
    assert {language for language, _, _ in blocks(PAGE)} == {"cpp", "cuda"}
    assert PAGE.count("```") == 2 * len(blocks(PAGE))


def test_counts_are_those_of_the_headers(tmp_path):
    source = """
#include <cstdio>
#include <initializer_list>
#include "kernels/cuda/device.h"
#include "kernels/cuda/norm/cost_model.h"
using namespace retnet::kernels::cuda;
int main() {
  for (const GatedGroupNormTile& tile : kGatedGroupNormTiles) {
    std::printf("%d %d %d ", tile.max_head_dim_v, tile.threads_per_row,
                kGatedGroupNormBlock / tile.threads_per_row);
  }
  std::printf("\\n");
  const ModelDevice& device = kModelDevices[0];
  constexpr DType kDtype = DType::kBFloat16;
  for (const bool backward : {false, true}) {
    const GatedGroupNormBytes bytes = gated_group_norm_bytes(backward, kDtype, 512);
    const int rows = gated_group_norm_rows(backward, kDtype, 512);
    std::printf("%d %.2f %d %d\\n", static_cast<int>(bytes.memory()),
                static_cast<double>(bytes.memory()) / device.memory_tbps / 1000, rows,
                static_cast<int>(rows * bytes.loaded / 1024));
  }
  GatedGroupNormInputs p;
  p.tokens = 8192, p.heads = 8, p.head_dim_v = 512, p.dtype = kDtype;
  const double needed = device.memory_tbps * 1000 * device.memory_latency_ns;
  std::printf("%.1f %.0f %d %d %d\\n", 100 * gated_group_norm_workspace_share(p),
              needed / device.limits.multiprocessors / 1024, kGatedGroupNormForwardOccupancy,
              gated_group_norm_backward_occupancy(kDtype), kGatedGroupNormElements);
}
"""
    tiles, *kernels, others = compile_and_run(tmp_path, source, f"-I{ROOT}").splitlines()
    table = re.findall(r"^\| ([\d,]+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert " ".join(cell.replace(",", "") for row in table for cell in row) == tiles.strip()
    for name, kernel in zip(("forward", "backward"), kernels, strict=True):
        count, ns, rows, in_flight = kernel.split()
        assert f"| {name} | {int(count):,} | {ns} | {rows} | {in_flight} |" in PAGE
        assert f"{int(count):,} bytes a row" in PAGE
    share, needed, forward, backward, elements = others.split()
    text = " ".join(PAGE.split())
    assert f"The workspace adds {share}% to the bytes" in text
    assert f"{needed} KB in flight hide the latency" in text
    assert f"{forward} blocks of the forward with at most {65536 // 128 // int(forward)}" in text
    assert f"{backward} of the backward with {65536 // 128 // int(backward)}" in text
    assert f"{elements} elements of x a thread" in text


def test_the_page_is_in_the_documentation():
    assert "kernels/norm\n" in (ROOT / "docs/index.md").read_text()
