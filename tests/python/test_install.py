# SPDX-License-Identifier: Apache-2.0
"""The CMake package: an application finds, links and runs it, with or without a CUDA toolkit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import retnet

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("RETNET_BUILD_DIR", ROOT / "build"))
CMAKE = str(Path(sys.executable).with_name("cmake"))
TORCH = Path(torch.__file__).parent


def run(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_cuda_toolkit() -> dict[str, str]:
    """The environment with nvcc and everything that points to a toolkit taken away."""
    folders = [x for x in os.environ["PATH"].split(":") if not (Path(x) / "nvcc").exists()]
    gone = ("CUDA", "NVCC", "TORCH_CUDA", "LIBRARY_PATH", "LD_LIBRARY_PATH", "CPATH")
    kept = {name: x for name, x in os.environ.items() if not name.startswith(gone)}
    return {**kept, "PATH": ":".join(folders)}


def build_and_run_app(prefix: Path, folder: Path, env: dict[str, str]) -> None:
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={Path(sys.executable).with_name('ninja')}"]
    run(CMAKE, "-S", str(ROOT / "tests/install"), "-B", str(folder), *generator,
        f"-DCMAKE_PREFIX_PATH={prefix};{TORCH}", "-DCMAKE_BUILD_TYPE=Debug", env=env)  # fmt: skip
    run(CMAKE, "--build", str(folder), env=env)
    # The sum over tokens of (1 + 2 + 3) * 2 in each of two columns; a text of 128 + 16 tokens;
    # 8 + 4 tokens read.
    assert run(str(folder / "app"), env=env).split() == [retnet.__version__, "24", "144", "12"]


def test_installed_from_the_build_tree(tmp_path):
    """The very library that Python imports, CUDA kernels included where they were built."""
    run(CMAKE, "--install", str(BUILD), "--prefix", str(tmp_path / "prefix"))
    build_and_run_app(tmp_path / "prefix", tmp_path / "app", dict(os.environ))


def test_configured_built_and_run_without_a_cuda_toolkit(tmp_path):
    env = without_cuda_toolkit()
    assert shutil.which("nvcc", path=env["PATH"]) is None
    build, prefix = str(tmp_path / "build"), tmp_path / "prefix"
    out = run(CMAKE, "-S", str(ROOT), "-B", build, "-G", "Ninja",
              f"-DCMAKE_MAKE_PROGRAM={Path(sys.executable).with_name('ninja')}",
              f"-DRETNET_TORCH_DIR={TORCH}", "-DCMAKE_BUILD_TYPE=Debug",
              "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DCMAKE_IGNORE_PATH=/usr/local/cuda/bin",
              env=env)  # fmt: skip
    assert "RetNet: CUDA kernels OFF (no nvcc)" in out
    run(CMAKE, "--build", build, env=env)
    run(CMAKE, "--install", build, "--prefix", str(prefix), env=env)
    build_and_run_app(prefix, tmp_path / "app", env)


def test_wheel(tmp_path):
    """What `pip install .` installs: it works outside the source tree."""
    pip = [sys.executable, "-m", "pip"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("retnet-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    code = "import retnet, torch; print(retnet.__file__, torch.ops.retnet.rotary)"
    out = run(sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert out.split() == [str(tmp_path / "site/retnet/__init__.py"), "retnet.rotary"]


@pytest.mark.skipif("TORCH_CUDA_ARCH_LIST" not in os.environ, reason="kernels were not asked for")
def test_the_imported_library_holds_the_kernels():
    """Where CI asks for the kernels, the library that passes the tests without a GPU has them."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("retnet::gated_group_norm", "CUDA")
    assert has_kernel("retnet::retention", "CUDA")


def test_one_version():
    assert f"VERSION {retnet.__version__} " in (ROOT / "CMakeLists.txt").read_text()


def test_the_library_registers_operators_without_python():
    """torch.ops.load_library is enough for a program that only calls operators by name."""
    library = Path(retnet.__file__).parent / "lib/libretnet.so"
    code = f"import torch; torch.ops.load_library('{library}'); print(torch.ops.retnet.retention)"
    assert run(sys.executable, "-c", code).strip() == "retnet.retention"
