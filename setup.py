# SPDX-License-Identifier: Apache-2.0
"""Builds retnet._C with CMake. CMake defines the build, and this file only drives it.

RETNET_BUILD_DIR (default ./build) is the build tree, which is shared with ctest and `cmake
--install`. RETNET_CMAKE_ARGS is passed to the configuration. MAX_JOBS limits the parallel
compilations.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = os.path.abspath(os.environ.get("RETNET_BUILD_DIR", ROOT / "build"))
VERSION = re.search(r"project\(RetNet VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())


def tool(name: str) -> str:
    """Returns the path of cmake or ninja: the one installed in this Python, otherwise the one in
    PATH.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        try:
            module = __import__(name)
            found = str(Path(getattr(module, "CMAKE_BIN_DIR", None) or module.BIN_DIR) / name)
        except ImportError:
            sys.exit(f"retnet: {name} was not found; install it with `pip install {name}`")
    return found


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        self.cmake(
            "-S",
            str(ROOT),
            "-B",
            BUILD,
            "-G",
            "Ninja",
            "-DRETNET_PYTHON=ON",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *shlex.split(os.environ.get("RETNET_CMAKE_ARGS", "")),
        )
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        self.cmake("--build", BUILD, "--target", "_C", *jobs)
        self.install_into(Path(self.get_ext_fullpath(ext.name)).resolve().parent)

    def copy_extensions_to_source(self) -> None:
        # In an editable install the library is beside the extension, so both are installed again.
        self.install_into(ROOT / "python" / "retnet")

    def install_into(self, package: Path) -> None:
        self.cmake("--install", BUILD, "--component", "python", "--prefix", str(package))

    def cmake(self, *arguments: str) -> None:
        subprocess.check_call([tool("cmake"), *arguments])


setup(
    version=VERSION[1],
    ext_modules=[Extension("retnet._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    # Build trees share nothing, so another environment with another torch can have its own.
    options={"build": {"build_base": str(Path(BUILD, "setuptools"))}},
)
