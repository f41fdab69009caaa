# SPDX-License-Identifier: Apache-2.0
"""tools/line_coverage.py on reports as gcov writes them."""

import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from line_coverage import merge, reports, table


def report(folder, **files):
    return {
        "current_working_directory": str(folder / "build"),
        "files": [
            {
                "file": f"../{name}.cpp",
                "lines": [{"line_number": n, "count": c} for n, c in lines],
            }
            for name, lines in files.items()
        ],
    }


def test_lines_of_several_functions_and_objects_add_up(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.cpp").write_text("f(x) {\n  g();\n  h();\n});\n")
    several = [
        report(tmp_path, a=[(1, 0), (1, 2), (2, 0), (4, 0)], b=[(1, 0)]),
        report(tmp_path, a=[(2, 0), (3, 1)]),
    ]
    counts = merge(several, [tmp_path])
    a, b = (str(tmp_path / f"{name}.cpp") for name in "ab")
    assert counts == {a: {1: 2, 2: 0, 3: 1}, b: {1: 0}}  # the brackets of line 4 do not count
    assert merge(several, [tmp_path / "other"]) == {}


def test_table():
    rows, complete = table({"b.cpp": {1: 1}, "a.cpp": {4: 0, 5: 3, 9: 0}})
    assert rows == ["   1 of    3 lines  a.cpp  not: 4, 9", "   1 of    1 lines  b.cpp"]
    assert not complete
    assert table({"a.cpp": {1: 2}})[1]
    assert not table({})[1]  # nothing was counted


@pytest.mark.skipif(not shutil.which("gcov") or not shutil.which("g++"), reason="no gcov")
def test_a_line_that_is_not_executed(tmp_path):
    source = tmp_path / "x.cpp"
    source.write_text("int main(int n, char**) {\n  if (n > 1)\n    return 1;\n  return 0;\n}\n")
    subprocess.run(["g++", "--coverage", "-O0", "x.cpp", "-o", "x"], cwd=tmp_path, check=True)
    subprocess.run(["./x"], cwd=tmp_path, check=True)
    rows, complete = table(merge(reports(tmp_path), [tmp_path]))
    assert not complete and len(rows) == 1 and rows[0].endswith("x.cpp  not: 3")
    subprocess.run(["./x", "y"], cwd=tmp_path, check=False)
    assert table(merge(reports(tmp_path), [tmp_path]))[1]
