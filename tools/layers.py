# SPDX-License-Identifier: Apache-2.0
"""Checks the rules that separate the layers. Prints each violation and exits with 1 if there is
one.

Layers point one way: kernels <- csrc/ops <- csrc/nn <- csrc/bindings <- python.
"""

import re
import subprocess
import sys
from pathlib import Path

MAX_LINES = 700
INCLUDE = r'\s*#\s*include\s*[<"]'
# (files, a pattern that none of their lines may match, the reason)
RULES = [
    (
        r"kernels/",
        INCLUDE + r"(torch|ATen|c10|pybind11|csrc/|ops/|nn/)",
        "kernels know pointers, strides and a stream only",
    ),
    (
        r"(?!kernels/cuda/|csrc/ops/cuda/|tests/(kernels/cuda/|simt/|python/docs/test_kernel_))",
        INCLUDE + r"kernels/cuda/",
        "only csrc/ops/cuda and the tests of the kernels call CUDA kernels",
    ),
    (
        r"(?!kernels/cpu/|csrc/ops/cpu/|tests/kernels/cpu/)",
        INCLUDE + r"kernels/cpu/",
        "only csrc/ops/cpu and the tests of the kernels call CPU kernels",
    ),
    (
        r"kernels/(?!cuda/prim/)|csrc/",
        r".*\b(asm|__asm__)\b\s*(volatile|\()|\s*#\s*(if|ifdef|ifndef|elif)\b",
        "PTX and conditional code stand in kernels/cuda/prim only",
    ),
    (
        r"csrc/ops/",
        INCLUDE + r"(nn/|torch/torch\.h|torch/extension\.h)",
        "operators stand below modules",
    ),
    (
        r"csrc/(?!io/)",
        INCLUDE + r"(io/|retnet/io/|nlohmann/)",
        "the library works without JSON and files",
    ),
    (
        r"csrc/(?!bindings/)",
        INCLUDE + r"(pybind11|Python\.h|torch/extension\.h)",
        "C++ works without Python",
    ),
]
SOURCES = re.compile(r"\.(h|cpp|cu|cuh|cu\.in|py|sh|cmake)$|(^|/)(CMakeLists\.txt|Makefile)$")


def breaches(name: str, lines: list[str]) -> list[str]:
    """Returns one line for each violation of a rule by the file ``name``."""
    found = []
    if len(lines) > MAX_LINES:
        found.append(f"{name}: {len(lines)} lines, the limit is {MAX_LINES}")
    if not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:3]):
        found.append(f"{name}: no SPDX line at the top")
    for files, forbidden, why in RULES:
        if re.match(files, name):
            for number, line in enumerate(lines, 1):
                if re.match(forbidden, line):
                    found.append(f"{name}:{number}: {line.strip()}: {why}")
    return found


def sources() -> list[str]:
    """Returns the source files that git tracks or would track."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listed, text=True).split()
    return [name for name in names if SOURCES.search(name) and Path(name).exists()]


if __name__ == "__main__":
    problems = [
        x for name in sources() for x in breaches(name, Path(name).read_text().splitlines())
    ]
    print("\n".join(problems) or "layers: no breach")
    sys.exit(bool(problems))
