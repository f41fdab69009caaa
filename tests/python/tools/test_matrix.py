# SPDX-License-Identifier: Apache-2.0
"""tools/matrix.py: the pairs that it runs, the interpreters that it finds, and the table in the
docs.
"""

import sys
from pathlib import Path

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import matrix


def test_the_versions_are_those_of_the_metadata():
    assert matrix.torch_minors() == ["2.11", "2.12", "2.13", "2.14", "2.15"]
    assert matrix.python_minors() == ["3.10", "3.11", "3.12", "3.13", "3.14"]


def test_the_pairs_that_tell_most_come_first():
    pairs = matrix.in_order(["2.11", "2.12", "2.13"], ["3.10", "3.11", "3.12"])
    assert pairs[:3] == [("2.13", "3.11"), ("2.11", "3.11"), ("2.12", "3.11")]
    assert pairs[3:5] == [("2.13", "3.10"), ("2.13", "3.12")]
    assert len(pairs) == len(set(pairs)) == 9


def test_every_pattern_of_tests_finds_one():
    for pattern in [*matrix.TESTS, *matrix.LEFT_OUT]:
        assert matrix.files([pattern]), pattern


def executable(path: Path, status: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_is_one_that_runs(tmp_path, monkeypatch):
    """A pyenv shim in PATH may not work although pyenv has the version."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    executable(tmp_path / "bin/python3.10", 127)
    assert matrix.find_python("3.10") is None
    found = executable(tmp_path / "pyenv/versions/3.10.13/bin/python3.10", 0)
    assert matrix.find_python("3.10") == found
    in_path = executable(tmp_path / "bin/python3.12", 0)
    executable(tmp_path / "pyenv/versions/3.12.1/bin/python3.12", 0)
    assert matrix.find_python("3.12") == in_path
    assert matrix.find_python(in_path) == in_path
    assert matrix.find_python("3.1") is None


RESULTS = {
    "2.12 3.11": {"outcome": "passed", "tests": 1234, "torch": "2.12.1+cpu", "python": "3.11.7"},
    "2.12 3.12": {"outcome": "failed", "step": "build"},
    "2.15 3.10": {"outcome": "no wheel"},
    "2.15 3.14": {"outcome": "no interpreter"},
}


def test_table():
    rows = matrix.table(RESULTS).splitlines()
    assert rows[0].split(" | ") == [
        "| torch",
        *(f"Python 3.{x}" for x in range(10, 14)),
        "Python 3.14 |",
    ]
    assert rows[2] == "| 2.11" + " | not run" * 5 + " |"
    assert rows[3].startswith("| 2.12.1 | not run | 1,234 passed | **failed** | not run |")
    assert rows[6].startswith("| 2.15 | torch publishes none | not run |")
    assert rows[6].endswith("| no interpreter was at hand |")
    page = matrix.with_table(f"a\n{matrix.BEGIN}\nold\n{matrix.END}\nb\n", RESULTS)
    assert page.splitlines() == ["a", matrix.BEGIN, *rows, matrix.END, "b"]
    assert matrix.with_table(page, RESULTS) == page


def test_the_table_in_the_docs_is_that_of_the_results():
    results = matrix.read(ROOT / "docs/compatibility.json")
    page = (ROOT / "docs/compatibility.md").read_text()
    assert page == matrix.with_table(page, results)
    outcomes = {name: result["outcome"] for name, result in results.items()}
    assert "failed" not in outcomes.values()
    newest = matrix.torch_minors()[-1]
    assert any(x == "passed" for name, x in outcomes.items() if name.startswith(f"{newest} "))


class Rehearsal(matrix.Pair):
    """Runs no command, but fails at one step as if that step had printed something."""

    fails_at, prints, ran = "", "", []

    def step(self, name, *command, **env):
        self.ran.append(name)
        if name.startswith(self.fails_at or "nothing"):
            (self.folder / "log").write_text(self.prints)
            raise matrix.Failed(name, self.folder / "log")
        return "== 7 passed in 1 s =="


@pytest.mark.parametrize(
    ("fails_at", "prints", "result"),
    [
        ("install", "No matching distribution found for torch==2.15.*", {"outcome": "no wheel"}),
        ("install", "no network", {"outcome": "failed", "step": "install by pip"}),
        ("C++ tests", "a bug", {"outcome": "failed", "step": "C++ tests"}),
    ],
)
def test_what_is_told_of_a_failure(fails_at, prints, result, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Rehearsal, "fails_at", fails_at)
    monkeypatch.setattr(Rehearsal, "prints", prints)
    monkeypatch.setattr(Rehearsal, "ran", [])
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvcc
    assert Rehearsal(tmp_path / "pair", "2.15", "python3").run() == result
    assert Rehearsal.ran[0] == "environment" and "pytest" not in Rehearsal.ran
    assert (prints in capsys.readouterr().out) == (result["outcome"] == "failed")
