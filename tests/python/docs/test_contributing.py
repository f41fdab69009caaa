# SPDX-License-Identifier: Apache-2.0
"""CONTRIBUTING.md and docs/architecture.md agree with the tree: files, functions and commands."""

import re
from pathlib import Path

import pytest

import retnet
from support.paths import ROOT

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
OPERATORS = [name for name in retnet.ops.__all__ if name not in ("RetentionPlan", "retention_plan")]
# The listed files that not every operator has.
OPTIONAL = ("csrc/ops/composite/", "csrc/ops/cpu/", "csrc/ops/cuda/", "tests/kernels/")
# Files that name two operators that have nothing in common, but need no change for a new one. The
# first call both, the others test a tool or the package with an operator as an example.
NAME_TWO = {
    "csrc/ops/composite/multi_scale_retention_step.cpp",
    "csrc/nn/multi_scale_retention.cpp",
    "csrc/nn/multi_scale_retention.h",
    "python/retnet/nn/multi_scale_retention.py",
    "tests/python/support/checks/multi_scale_retention_step.py",
    "tests/python/docs/test_contributing.py",
    "tests/python/package/test_install.py",
    "tests/python/tools/test_kernel_report.py",
}
COMMANDS_NOT_IN_CI = {"bench", "gpu-wheels", "matrix", "mutate", "results", "test-op"}


def table(text: str, heading: str) -> list[list[str]]:
    """Returns the cells of the tables between a heading and the next one of its level."""
    level = re.match("#+", heading)[0]
    section = re.split(rf"^{level} ", text.partition(f"\n{heading}\n")[2], flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (.*) \|$", section, flags=re.MULTILINE)
    return [row.split(" | ") for row in rows]


def listed_files() -> list[str]:
    cells = [row[0] for row in table(CONTRIBUTING, "## Add an operator")]
    return [name for cell in cells for name in re.findall("`([^`]+)`", cell)]


def names_two_operators(path: Path) -> bool:
    """Returns whether a file names an operator on tokens and one on heads, in any spelling."""
    text = path.read_text(errors="ignore").lower().replace("_", "")
    return "gatedgroupnorm" in text and "rotary" in text


def test_listed_files_exist():
    files = listed_files()
    assert len(files) > 15
    for name in files:
        paths = [ROOT / name.replace("NAME", operator) for operator in OPERATORS]
        if name.endswith("/..."):
            assert (ROOT / name).parent.is_dir(), name
        elif name.startswith(OPTIONAL):
            assert any(path.is_file() for path in paths), name
        else:
            missing = [str(path) for path in paths if not path.is_file()]
            assert not missing, missing


def test_every_file_of_an_operator_is_listed():
    patterns = {Path(name).parent for name in listed_files() if "NAME" in name}
    for operator in OPERATORS:
        for folder in ("csrc/ops", "tests/python/ops", "tests/kernels/cuda"):
            for path in (ROOT / folder).rglob("*"):
                if re.fullmatch(rf"(test_)?{operator}(_emulated)?\.(h|cpp|py)", path.name):
                    assert path.parent.relative_to(ROOT) in patterns, path


def test_every_file_that_names_the_operators_is_listed():
    listed = {name.replace("NAME", op) for name in listed_files() for op in OPERATORS}
    folders = ("csrc", "kernels", "tests", "python", "tools", "docs", "benchmarks", "examples")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    paths += [path for path in ROOT.iterdir() if path.name != "CONTRIBUTING.md"]
    sources = (".h", ".cuh", ".cpp", ".cu", ".cmake", ".txt", ".py", ".md", ".sh", "Makefile")
    found = {
        str(path.relative_to(ROOT))
        for path in paths
        if path.name.endswith(sources) and path.is_file() and names_two_operators(path)
        # Setuptools lists all files there.
        if path.parent.suffix != ".egg-info"
    }
    assert len(found - NAME_TWO) >= 20
    assert found - NAME_TWO <= listed, sorted(found - NAME_TWO - listed)
    assert found >= NAME_TWO, sorted(NAME_TWO - found)


@pytest.mark.parametrize("page", [CONTRIBUTING, ARCHITECTURE], ids=["contributing", "architecture"])
def test_paths_exist(page):
    for name in re.findall(
        r"`((?:csrc|kernels|python|tests|tools|docs|benchmarks)/[\w./]+)`", page
    ):
        if "NAME" not in name and not name.endswith("..."):
            assert (ROOT / name).exists(), name


def test_the_life_of_q_names_functions():
    rows = table(ARCHITECTURE, "## The life of q")
    named = [(row[1].strip("`"), re.findall(r"`(\w+)`", row[2])) for row in rows if "`" in row[1]]
    assert len(named) >= 18
    for file, functions in named:
        text = (ROOT / file).read_text()
        for function in functions:
            assert re.search(rf"\b{function}\b", text), (file, function)


def test_commands_are_targets_and_run_by_ci():
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci/run").read_text()
    commands = set(re.findall(r"(?:^|`)make ([a-z-]+)", CONTRIBUTING, flags=re.MULTILINE))
    assert commands >= {"setup", "lint", "test", "test-op"}
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command
    run_by_ci = set(re.findall(r"\bmake ([a-z][a-z-]*)", ci))
    run_by_test = set(re.search("^test: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    assert commands - run_by_ci - run_by_test <= COMMANDS_NOT_IN_CI
