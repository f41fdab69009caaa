# SPDX-License-Identifier: Apache-2.0
"""Checks the rules that hold the layers apart; prints each breach and exits 1 where there is one.

Layers point one way: kernels <- csrc/ops <- csrc/nn <- csrc/bindings <- python.
"""

import re
import subprocess
import sys
from pathlib import Path

MAX_LINES = 500
# (files, what their #include lines must not name, why)
RULES = [
    (r"kernels/", r"torch|ATen|c10|pybind11", "kernels know pointers, strides and a stream only"),
    (r"csrc/(?!ops/cuda/)", r"kernels/", "only csrc/ops/cuda calls kernels"),
    (r"csrc/ops/", r"nn/|torch/torch\.h|torch/extension\.h", "operators stand below modules"),
    (r"csrc/(?!bindings/)", r"pybind11|Python\.h|torch/extension\.h", "C++ works without Python"),
]
SOURCES = re.compile(r"\.(h|cpp|cu|cuh|cu\.in|py|sh|cmake)$|(^|/)(CMakeLists\.txt|Makefile)$")


def breaches() -> list[str]:
    """One line for each breach of a rule among the files that git tracks or would track."""
    found = []
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, text=True).split():
        if not SOURCES.search(name) or not Path(name).exists():
            continue
        lines = Path(name).read_text().splitlines()
        if len(lines) > MAX_LINES:
            found.append(f"{name}: {len(lines)} lines, the limit is {MAX_LINES}")
        if not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:3]):
            found.append(f"{name}: no SPDX line at the top")
        for files, forbidden, why in RULES:
            if not re.match(files, name):
                continue
            for number, line in enumerate(lines, 1):
                if re.match(rf'\s*#\s*include\s*[<"]({forbidden})', line):
                    found.append(f"{name}:{number}: {line.strip()}: {why}")
    return found


if __name__ == "__main__":
    problems = breaches()
    print("\n".join(problems) or "layers: no breach")
    sys.exit(bool(problems))
