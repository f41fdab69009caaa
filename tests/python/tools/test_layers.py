# SPDX-License-Identifier: Apache-2.0
"""tools/layers.py finds each violation of its rules, and reports nothing that they allow."""

import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from layers import breaches

SPDX = "// SPDX-License-Identifier: Apache-2.0"
ASM = '  asm volatile("bar.sync 0;");'
KERNEL = '#include "kernels/cuda/norm/launch.h"'
CPU_KERNEL = '#include "kernels/cpu/norm/kernel.h"'

BREACHES = [
    ("kernels/cuda/norm/x.cuh", "#include <torch/library.h>"),
    ("kernels/cuda/prim/x.cuh", "#include <ATen/core/Tensor.h>"),
    ("kernels/cuda/norm/x.cu.in", "# include <c10/cuda/CUDAStream.h>"),
    ("kernels/cpu/x.h", "#include <ATen/core/Tensor.h>"),
    ("kernels/cpu/x.cpp", '#include "ops/check.h"'),
    ("csrc/ops/x.cpp", KERNEL),
    ("csrc/ops/cpu/x.cpp", KERNEL),
    ("kernels/cpu/x.h", KERNEL),
    ("csrc/ops/x.cpp", CPU_KERNEL),
    ("csrc/ops/cuda/x.cpp", CPU_KERNEL),
    ("kernels/cuda/x.cpp", CPU_KERNEL),
    ("tests/cpp/x.cpp", CPU_KERNEL),
    ("csrc/ops/composite/x.cpp", KERNEL),
    ("csrc/bindings/module.cpp", KERNEL),
    ("tests/cpp/x.cpp", KERNEL),
    ("examples/app/main.cpp", KERNEL),
    ("kernels/cuda/norm/x.cuh", ASM),
    ("kernels/cuda/norm/x.cuh", "  asm("),
    ("csrc/ops/cuda/x.cpp", ASM),
    ("kernels/cuda/norm/x.cuh", "#ifdef RETNET_EMULATE"),
    ("kernels/cuda/norm/x.cuh", "#ifndef __CUDA_ARCH__"),
    ("kernels/cuda/norm/x.cuh", "  # if __CUDA_ARCH__ >= 900"),
    ("csrc/ops/x.cpp", "#if defined(USE_CUDA)"),
    ("csrc/ops/x.cpp", '#include "nn/retnet.h"'),
    ("csrc/ops/x.h", "#include <torch/torch.h>"),
    ("csrc/nn/x.h", "#include <torch/extension.h>"),
    ("csrc/version.cpp", "#include <Python.h>"),
    ("csrc/nn/x.cpp", "#include <nlohmann/json.hpp>"),
    ("csrc/bindings/x.cpp", "#include <retnet/io/checkpoint.h>"),
]
ALLOWED = [
    ("kernels/cuda/norm/x.cuh", KERNEL),
    ("csrc/ops/cuda/x.cpp", KERNEL),
    ("csrc/ops/cpu/x.cpp", CPU_KERNEL),
    ("kernels/cpu/isa/x.cpp", CPU_KERNEL),
    ("tests/kernels/cuda/x.cpp", KERNEL),
    ("tests/simt/x.cpp", '#include "kernels/cuda/prim/prim.cuh"'),
    ("kernels/cuda/prim/x.cuh", ASM),
    ("kernels/cuda/prim/x.cuh", "#ifdef RETNET_EMULATE"),
    ("kernels/cuda/norm/x.cuh", "// asm, #if and torch are for others"),
    ("csrc/ops/cuda/x.cpp", "#include <torch/library.h>"),
    ("kernels/cpu/x.cpp", "#include <immintrin.h>"),
    ("csrc/bindings/module.cpp", "#include <torch/extension.h>"),
    ("csrc/io/x.cpp", '#include "io/files.h"'),
]


@pytest.mark.parametrize(("name", "line"), BREACHES)
def test_breach(name, line):
    (found,) = breaches(name, [SPDX, line])
    assert found.startswith(f"{name}:2: {line.strip()}: ")


@pytest.mark.parametrize(("name", "line"), ALLOWED)
def test_allowed(name, line):
    assert breaches(name, [SPDX, line]) == []


def test_licence_and_length():
    assert breaches("x.py", ["import torch"]) == ["x.py: no SPDX line at the top"]
    assert breaches("x.py", [SPDX] * 700) == []
    assert breaches("x.py", [SPDX] * 701) == ["x.py: 701 lines, the limit is 700"]
