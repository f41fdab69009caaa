# SPDX-License-Identifier: Apache-2.0
"""The portable CPU kernels work when they are compiled for other architectures and run in qemu."""

import shutil
import subprocess

import pytest

from support.paths import ROOT

FLAGS = ["-std=c++20", "-O2", "-ffp-contract=fast", "-Wno-psabi", "-static", f"-I{ROOT}"]
SOURCES = ["tests/kernels/cpu/portable_check.cpp", "kernels/cpu/isa/portable.cpp"]
# The compiler, and the program that runs the result.
ARCHITECTURES = {"this": ("g++", []), "aarch64": ("aarch64-linux-gnu-g++", ["qemu-aarch64"])}


@pytest.mark.parametrize(("compiler", "emulator"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_portable_kernels(compiler, emulator, tmp_path):
    for tool in (compiler, *emulator):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}")
    program = tmp_path / "portable_check"
    subprocess.run([compiler, *FLAGS, *SOURCES, "-o", program], cwd=ROOT, check=True)
    done = subprocess.run([*emulator, program], capture_output=True, text=True, check=False)
    assert done.stdout == "280 checks, 0 failures\n" and done.returncode == 0, done.stdout


@pytest.mark.parametrize("source", ["registry_other.cpp", "emulated.cpp"])
def test_what_only_other_architectures_compile(source, tmp_path):
    compiler, _ = ARCHITECTURES["aarch64"]
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    file = ROOT / "kernels/cpu/isa" / source
    command = [compiler, *FLAGS, "-O1", "-c", file, "-o", tmp_path / "o"]
    subprocess.run(command, check=True)
