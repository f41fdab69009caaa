# SPDX-License-Identifier: Apache-2.0
"""A build works with the minor version of torch with which it was made, and refuses others in one
line before it loads a library.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import retnet
from retnet._native import TORCH_VERSION
from support.paths import ROOT

MAJOR, MINOR = map(int, torch.__version__.split(".")[:2])


def import_retnet(before: str = "", path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Imports torch, runs the statement ``before``, and imports retnet in a new process."""
    env = {**os.environ, "PYTHONPATH": str(path)} if path else None
    code = f"import torch; {before}\nimport retnet; print(retnet.__version__)"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def assert_refused(done: subprocess.CompletedProcess[str], built: str, installed: str) -> None:
    assert done.returncode == 1 and done.stdout == ""
    *trace, last = done.stderr.splitlines()
    assert last == (
        f"ImportError: retnet was built with torch {built} and does not work with torch "
        f"{installed}: install torch {built}, or build retnet again with this torch "
        "(pip install --no-build-isolation)"
    )
    assert "Error: " not in "".join(trace)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Returns a copy of the package with an extension that no program can load."""
    source, copy = Path(retnet.__file__).parent, tmp_path / "retnet"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for extension in source.glob("_C.*.so"):
        (copy / extension.name).write_bytes(b"no library")
    return copy


def test_the_record_is_this_torch():
    assert TORCH_VERSION.read_text() == f"{MAJOR}.{MINOR}\n"


@pytest.mark.parametrize("version", ["{0}.{2}.0a0", "{0}.{1}0.0+cpu", "{3}.{1}.0"])
def test_another_torch_is_refused(version):
    installed = version.format(MAJOR, MINOR, MINOR + 1, MAJOR + 1)
    assert_refused(
        import_retnet(f"torch.__version__ = {installed!r}"), f"{MAJOR}.{MINOR}", installed
    )


def test_another_patch_is_not_refused():
    done = import_retnet(f"torch.__version__ = '{MAJOR}.{MINOR}.99+cpu'")
    assert done.stdout == f"{retnet.__version__}\n", done.stderr


def test_it_is_refused_before_the_extension_is_loaded(package):
    (package / "lib/torch_version").write_text("2.10\n")
    assert_refused(import_retnet(path=package.parent), "2.10", torch.__version__)


def test_an_extension_that_does_not_load_is_told_apart(package):
    """There is no record of the version, as before the first build."""
    (package / "lib/torch_version").unlink()
    done = import_retnet(path=package.parent)
    assert done.returncode == 1
    assert "ImportError: retnet's native part did not load" in done.stderr
    assert "was built with torch" not in done.stderr


def test_the_range_is_one():
    """The two lists in pyproject.toml and CMake state the same range of torch versions."""
    specs = re.findall(r'"torch(>=[^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert len(specs) == 2 and len(set(specs)) == 1
    first, end = re.fullmatch(r">=([\d.]+),<([\d.]+)", specs[0]).groups()
    cmake = (ROOT / "CMakeLists.txt").read_text()
    compared = r"RETNET_TORCH_VERSION VERSION_(LESS|GREATER_EQUAL) ([\d.]+)"
    assert re.findall(compared, cmake) == [("LESS", first), ("GREATER_EQUAL", end)]
    last = re.search(rf"must be {re.escape(first)} to ([\d.]+), got", cmake)[1]
    assert last.split(".")[0] == end.split(".")[0]
    assert int(last.split(".")[1]) == int(end.split(".")[1]) - 1
    newest = re.search(r"^NEWEST_TORCH := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert newest.startswith(f"{last}.")
