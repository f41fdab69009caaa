# SPDX-License-Identifier: Apache-2.0
"""The modules of the package import each other in one direction, and the library does not import
the programs above it. An import inside a function counts too.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import retnet

ROOT = Path(retnet.__file__).parent
# The programs above the library.
PROGRAMS = ("retnet.__main__", "retnet.cli", "retnet.demo", "retnet.training")


def modules(root: Path) -> dict[str, Path]:
    """Returns the modules of the package in `root` by name. An extension is represented by its
    stub.
    """
    found = {}
    for path in sorted(root.rglob("*.py*")):
        if path.suffix not in (".py", ".pyi"):
            continue
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Returns the modules of `known` that a module imports anywhere in its code."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            for alias in node.names:
                member = f"{base}.{alias.name}"
                if member in known:
                    yield member
                elif base in known:
                    yield base


def graph(root: Path) -> dict[str, set[str]]:
    """Returns the modules that each module imports."""
    known = modules(root)
    return {name: {*imported(name, path, known)} - {name} for name, path in known.items()}


def circle(edges: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def is_program(name: str) -> bool:
    return any(f"{name}.".startswith(f"{program}.") for program in PROGRAMS)


def test_there_is_no_circle():
    edges = graph(ROOT)
    assert edges["retnet.cli"] > {"retnet.training.command", "retnet.generation"}
    assert "retnet.weights" in edges["retnet.nn.causal_lm"]
    assert circle(edges) == []


def test_the_library_imports_no_program():
    edges = graph(ROOT)
    library = {
        name: set(filter(is_program, names))
        for name, names in edges.items()
        if not is_program(name)
    }
    assert library.keys() >= {"retnet", "retnet.nn.linear", "retnet.checkpoint", "retnet.cpp"}
    assert {name: programs for name, programs in library.items() if programs} == {}


def test_files_of_weights_stand_below_the_modules():
    """Neither retnet.weights nor a module that it imports, directly or not, imports retnet.nn."""
    edges = graph(ROOT)
    below, waiting = set(), ["retnet.weights"]
    while waiting:
        name = waiting.pop()
        if name not in below:
            below.add(name)
            waiting += edges[name]
    assert "retnet.config" in below
    assert not any(
        name.startswith(("retnet.nn", "retnet.checkpoint", "retnet.cpp")) for name in below
    )


CIRCLES = {
    "modules": {"a.py": "import p.b", "b.py": "from p import a"},
    "names": {"a.py": "from p.b import x", "b.py": "from p.a import y"},
    "within a function": {"a.py": "import p.b", "b.py": "def f():\n    from p.a import x"},
    "relative": {"a.py": "from .b import x", "b.py": "from . import a"},
    "subpackage": {"a.py": "from .q import b", "q/b.py": "from ..a import x"},
    "package": {"__init__.py": "from p.a import x", "a.py": "from p import x"},
    "three": {"a.py": "import p.b", "b.py": "import p.c", "c.py": "import p.a"},
}


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_a_circle_is_found(files, tmp_path):
    for name, text in {"__init__.py": "", "q/__init__.py": "", **files}.items():
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = circle(graph(tmp_path / "p"))
    assert len(found) >= 3 and found[0] == found[-1]
