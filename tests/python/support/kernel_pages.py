# SPDX-License-Identifier: Apache-2.0
"""Finds, compiles and runs the code in the pages of docs/kernels."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Returns the language, name and text of each code block."""
    return re.findall(r"^```(\S*) ?(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def compile_and_run(folder: Path, source: str, *flags: str) -> str:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    (folder / "main.cpp").write_text(source)
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = ["g++", "-std=c++20", "-O1", *warnings, *flags, "main.cpp", "-o", "main"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return subprocess.check_output([folder / "main"], text=True)
