# SPDX-License-Identifier: Apache-2.0
"""The Python tests form a tree: what test files share is in the package `support`."""

import ast
import sys
from pathlib import PurePath

import pytest

from support.paths import ROOT

TESTS = ROOT / "tests/python"
# These folders run with every version of torch, and no other library need be installed there.
FEW_PACKAGES = ("checkpoint", "cpp", "generation", "gpu", "nn", "ops")
PACKAGES = {"torch", "numpy", "pytest", "hypothesis", "safetensors", "retnet"}


def imports(name: str, source: str) -> set[str]:
    """Returns the modules that a file imports anywhere. `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(PurePath(name).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [package, node.module]))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def variables(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


def of_support(modules: set[str], sources: dict[str, str]) -> set[str]:
    """Returns the files of the package `support` among some modules."""
    names = [module.replace(".", "/") for module in modules if module.startswith("support.")]
    return {x for name in names for x in (f"{name}.py", f"{name}/__init__.py") if x in sources}


def problems(sources: dict[str, str]) -> list[str]:
    """Returns one line for each violation of a rule by the files, whose paths start at
    tests/python.
    """
    found = []
    names = [PurePath(name).name for name in sources]
    imported = {name: imports(name, source) for name, source in sources.items()}
    tests = {name.removesuffix(".py") for name in names if name.startswith("test_")} | {"conftest"}
    for name, source in sources.items():
        folder, file = PurePath(name).parent.as_posix(), PurePath(name).name
        if file.startswith("test_"):
            if folder == ".":
                found.append(f"{name}: is in no folder")
            if names.count(file) > 1:
                found.append(f"{name}: another test file has that name")
        elif file != "conftest.py" and not name.startswith("support/"):
            found.append(f"{name}: is neither a test nor in support/")
        for module in sorted(imported[name]):
            if tests & set(module.split(".")):
                found.append(f"{name}: imports {module}: share it by the package support")
        if "__file__" in variables(source) and name != "support/paths.py":
            found.append(f"{name}: uses __file__: support.paths has ROOT and BUILD")
    for name in sources:
        if not name.startswith(FEW_PACKAGES) and name != "conftest.py":
            continue
        reached, new = set(), {name}
        while new:
            reached |= new
            new = set().union(*(of_support(imported[x], sources) for x in new)) - reached
        for file in sorted(reached):
            others = {module.split(".")[0] for module in imported[file]} - sys.stdlib_module_names
            for package in sorted(others - PACKAGES - {"support"} - tests):
                found.append(f"{name}: needs {package}, by {file}")
    return found


def test_the_tree():
    sources = {path.relative_to(TESTS).as_posix(): path.read_text() for path in TESTS.rglob("*.py")}
    assert {"conftest.py", "support/paths.py", "ops/test_retention.py"} <= sources.keys()
    assert problems(sources) == []


SUPPORT = {"support/a.py": "import torch", "support/b.py": "from support import a, c"}


@pytest.mark.parametrize(
    ("sources", "problem"),
    [
        ({"ops/test_x.py": "import torch\nfrom support.b import y"}, None),
        ({"ops/test_x.py": "import os, numpy.linalg\nfrom torch import nn"}, None),
        ({"convert/test_x.py": "import fla"}, None),
        ({"test_x.py": ""}, "test_x.py: is in no folder"),
        ({"nn/test_x.py": "", "ops/test_x.py": ""}, "nn/test_x.py: another test file has that"),
        ({"ops/cases.py": ""}, "ops/cases.py: is neither a test nor in support/"),
        ({"ops/test_x.py": "import test_y", "nn/test_y.py": ""}, "ops/test_x.py: imports test_y"),
        ({"ops/test_x.py": "def f():\n  from test_x import y"}, "ops/test_x.py: imports test_x"),
        ({"ops/test_x.py": "from . import test_x"}, "ops/test_x.py: imports ops.test_x"),
        ({"ops/test_x.py": "from conftest import y"}, "ops/test_x.py: imports conftest"),
        ({"ops/test_x.py": "ROOT = Path(__file__).parents[3]"}, "ops/test_x.py: uses __file__"),
        ({"nn/test_x.py": "import fla"}, "nn/test_x.py: needs fla, by nn/test_x.py"),
        ({"conftest.py": "import fla"}, "conftest.py: needs fla, by conftest.py"),
        (
            {"ops/test_x.py": "import support.b", "support/c.py": "from fla.models import x"},
            "ops/test_x.py: needs fla, by support/c.py",
        ),
    ],
    ids=str,
)
def test_breaches(sources, problem):
    found = problems({**SUPPORT, **sources})
    assert [x[: len(problem)] for x in found][:1] == [problem] if problem else found == []
