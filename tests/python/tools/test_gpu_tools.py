# SPDX-License-Identifier: Apache-2.0
"""The lists of tools/gpu_wheels.sh cover what a GPU machine without a network needs."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDERS = ["python", "tests/python", "benchmarks", "tools"]
MACHINE = {"python_version": "3.12", "python_full_version": "3.12.0", "extra": ""}
# Modules of this project, which are found by path, and peers of the benchmarks, whose wheels have
# other names.
OURS = {"retnet", "support", *(p.stem for folder in FOLDERS for p in (ROOT / folder).glob("*.py"))}
PEERS = {"fla": "flash-linear-attention", "torchscale": "torchscale"}
# Tests that do not run there import these.
ELSEWHERE = {"tensorboard"}


def needed(name: str) -> set[str]:
    """Returns the packages that a package requires on that machine, without extras."""
    every = [Requirement(text) for text in requires(name) or []]
    return {r.name for r in every if r.marker is None or r.marker.evaluate(MACHINE)}


def there() -> set[str]:
    """Returns the packages in the two lists."""
    script = (ROOT / "tools/gpu_wheels.sh").read_text()
    lists = [re.search(rf"^{x}=\((.*?)\)", script, re.M | re.S) for x in ("present", "packages")]
    return {canonicalize_name(word.split("==")[0]) for x in lists for word in x[1].split()}


def imports() -> dict[str, str]:
    """Returns the top-level modules that any file imports, each with one such file."""
    found = {}
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            found.update({name.split(".")[0]: str(path.relative_to(ROOT)) for name in names})
    return found


def test_what_the_package_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    every = [Requirement(text) for text in project["project"]["dependencies"]]
    every += [Requirement(text) for text in project["build-system"]["requires"]]
    names = {r.name for r in every if r.marker is None or r.marker.evaluate(MACHINE)}
    assert {canonicalize_name(name) for name in names} - there() == set()


def test_what_is_imported():
    """The lists cover the imports of the package, its tests, benchmarks and tools."""
    wheels, third = packages_distributions(), imports()
    for name in [*sys.stdlib_module_names, *OURS, *ELSEWHERE, "tomli"]:  # before Python 3.11
        third.pop(name, None)
    assert {"torch", "numpy", "safetensors", "tomli_w", "hypothesis"} <= third.keys()
    missing = {
        f"{name} in {file}"
        for name, file in third.items()
        if not {canonicalize_name(x) for x in [*wheels.get(name, []), PEERS.get(name, name)]}
        & there()
    }
    assert missing == set()


@pytest.mark.parametrize("name", ["hypothesis", "pytest-xdist", "tomli-w"])
def test_what_the_wheels_require(name):
    """The wheels are installed without their requirements, so the lists must cover them."""
    assert {canonicalize_name(x) for x in needed(name)} <= there()
