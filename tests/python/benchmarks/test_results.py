# SPDX-License-Identifier: Apache-2.0
"""Pages and plots follow from the summaries, and the check fails if they do not."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import plots
import report
import summary

CPU = "cpu-amd-epyc"
SUMMARIES = sorted(ROOT.glob("benchmarks/results/*/summary.json"))
SECTION = {"command", "machine", "rows", "not_run"}
# Matches a figure of speed or memory. Shapes, versions and formulas are not figures.
FIGURE = re.compile(
    r"\d(,\d{3})*(\.\d+)?(\s*(%|ms|us|ns|GB/s|[TG]FLOP/s|tokens/s|[MG]iB)(\W|$)"
    r"|\s+(to \d[\d.]* )?times (as fast|faster|slower)|\s?x (as )?(fast|slow))"
)


@pytest.fixture
def tree(tmp_path) -> Path:
    """Returns a copy of the pages and the results, up to date."""
    for path in [*report.pages(ROOT), *SUMMARIES, *ROOT.glob("benchmarks/results/*/*.png")]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    assert report.main(["--check"], tmp_path) == 0
    return tmp_path


def change_median(tree: Path, section: str, **fields) -> None:
    """Makes a row of the CPU summary three times as slow."""
    path = tree / "benchmarks/results" / CPU / "summary.json"
    content = json.loads(path.read_text())
    rows = content["sections"][section]["rows"]
    row = next(r for r in rows if all(r[key] == value for key, value in fields.items()))
    row["median_ms"] *= 3
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.parent.name)
def test_summary(path):
    text = path.read_text()
    assert len(text.splitlines()) <= summary.MOST_LINES
    content = json.loads(text)
    assert content["format"] == 1 and content["device"]
    assert content["sections"] and content["sections"].keys() <= set(summary.SECTIONS)
    for name, section in content["sections"].items():
        assert section.keys() >= SECTION and section["rows"]
        assert section["command"].startswith(f"python benchmarks/{name}.py")
        assert "--out" not in section["command"] and "/tmp" not in text
        machine = section["machine"]
        assert machine["device"] == content["device"] and machine["torch"] and machine["commit"]
        for row in section["rows"]:
            assert set(summary.KEYS) <= row.keys()
            assert 0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] and row["rounds"] >= 1
            assert text.count(json.dumps(row)) >= 1  # on one line
        for row in section["not_run"]:
            assert row.keys() == {"contender", "status", "reason", "cases"}


def test_a_section_replaces_its_own_and_no_other(tmp_path):
    def write(name, median):
        row = {"work": "w", "contender": "c", "rounds": 1, "empty": None, "none": {}}
        row |= {f"{key}_ms": median for key in ("median", "q1", "q3")}
        machine = {"device": "D"}
        command = [f"{name}.py", "--quick", "--out", str(tmp_path), "--rounds", "2"]
        skipped = {"contender": "x", "status": "not run", "reason": "tired"}
        results = [{"status": "ok"}, skipped, skipped]
        content = {"command": command, "machine": machine, "results": results}
        summary.write(tmp_path, name, content, [row], more=1)
        return content

    write("twins", 1.0)
    write("ops", 2.0)
    content = write("twins", 3.0)
    assert json.loads((tmp_path / "raw/twins.json").read_text()) == content
    found = summary.load(tmp_path)
    assert list(found["sections"]) == ["ops", "twins"]  # in the order of SECTIONS
    medians = {name: x["rows"][0]["median_ms"] for name, x in found["sections"].items()}
    assert medians == {"ops": 2.0, "twins": 3.0}
    twins = found["sections"]["twins"]
    assert twins["command"] == "python benchmarks/twins.py --quick --rounds 2"
    assert twins["rows"][0].keys() == set(summary.KEYS) and twins["more"] == 1
    assert twins["not_run"] == [
        {"contender": "x", "status": "not run", "reason": "tired", "cases": 2}
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "summary.json"]


def test_the_pages_are_what_the_summaries_give():
    assert report.main(["--check"]) == 0


def test_ci_checks_the_pages():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "benchmarks/report.py --check" in recipe[1]
    assert "part make lint" in (ROOT / ".ci/run").read_text()


def test_a_stale_page_fails_the_check(tree, capsys):
    page = tree / "docs/benchmarks.md"
    text = page.read_text()
    page.write_text(text.replace("92.58", "91.58", 1))
    assert report.main(["--check"], tree) == 1
    assert "docs/benchmarks.md is not what the summaries give" in capsys.readouterr().out
    assert "91.58" in page.read_text()  # nothing was written
    assert report.main([], tree) == 0
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("section", "row", "stale"),
    [
        (
            "ops",
            {"work": "forward+backward", "contender": "retnet chunkwise", "dtype": "bfloat16"},
            {"README.md", "docs/benchmarks.md", "docs/kernels/cpu.md", "ops.png"},
        ),
        (
            "model",
            {"work": "decode step", "contender": "retnet", "length": 8192},
            {"README.md", "docs/benchmarks.md", "docs/kernels/cpu.md", "model.png"},
        ),
        ("linear", {"contender": "linear"}, {"docs/benchmarks.md", "docs/kernels/cpu.md"}),
        ("twins", {"contender": "retnet.cpp"}, {"docs/benchmarks.md"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_new_result_makes_what_quotes_it_stale(section, row, stale, tree, capsys):
    change_median(tree, section, **row)
    assert report.main(["--check"], tree) == 1
    named = {line.split(" is not ")[0] for line in capsys.readouterr().out.splitlines()}
    assert {x.removeprefix(f"benchmarks/results/{CPU}/") for x in named} == stale
    assert report.main([], tree) == 0 and report.main(["--check"], tree) == 0


def test_a_plot_that_is_missing_is_drawn(tree, capsys):
    path = tree / f"benchmarks/results/{CPU}/model.png"
    path.unlink()
    assert report.main(["--check"], tree) == 1 and not path.exists()
    assert report.main([], tree) == 0
    assert 10_000 < path.stat().st_size < 200_000
    assert path.read_bytes()[16:20] == (1200).to_bytes(4, "big")  # 1.5 times a README's width


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: no-such -->\n<!-- end -->\n", "unknown results: no-such (known: headline"),
        ("<!-- results: headline mars -->\n<!-- end -->\n", "no results of mars (cpu-amd-epyc"),
        ("<!-- results: headline -->\n", "must be lines in pairs"),
        ("see <!-- results: headline -->\n<!-- end -->\n", "must be lines in pairs"),
        (
            "<!-- results: headline -->\n<!-- results: headline -->\n<!-- end -->\n",
            "must be lines in pairs",
        ),
    ],
    ids=["name", "device", "no end", "in a line", "no end before the next"],
)
@pytest.mark.parametrize("arguments", [["--check"], []], ids=["check", "write"])
def test_a_wrong_marker_fails(text, message, arguments, tree, capsys):
    page = tree / "docs/new.md"
    page.write_text(text)
    assert report.main(arguments, tree) == 1
    assert f"docs/new.md: {message}" in capsys.readouterr().err.replace(
        "<!-- results: NAME --> and <!-- end --> ", ""
    )
    assert page.read_text() == text


def test_a_case_that_was_not_measured_fails_where_it_is_quoted(tree, capsys):
    path = tree / f"benchmarks/results/{CPU}/summary.json"
    content = json.loads(path.read_text())
    content["sections"]["ops"]["rows"] = content["sections"]["ops"]["rows"][:1]
    path.write_text(json.dumps(content))
    assert report.main([], tree) == 1
    assert f"{CPU}/summary.json: ops has no row with" in capsys.readouterr().err


def test_a_summary_that_is_too_long_fails(tree, capsys):
    path = tree / f"benchmarks/results/{CPU}/summary.json"
    path.write_text(path.read_text() + "\n" * summary.MOST_LINES)
    assert report.main(["--check"], tree) == 1
    assert f"of {summary.MOST_LINES}" in capsys.readouterr().err


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.parent.name)
def test_plots(path):
    """A plot has few panels, and each measured project has a bar of its own colour."""
    content = summary.load(path.parent)
    for name, panels_of in plots.PLOTS.items():
        if name not in content["sections"]:
            continue
        rows = content["sections"][name]["rows"]
        panels = panels_of(rows)
        assert 1 <= len(panels) <= 4
        drawn = {project for p in panels for group in p.groups.values() for project in group}
        assert drawn <= plots.PROJECTS.keys()
        assert drawn == {plots.project(row["contender"]) for row in rows}
        assert all("retnet" in group for p in panels for group in p.groups.values())


def test_no_figure_is_typed_by_hand():
    """Pages that quote results have no figure outside the markers. FIGURE matches figures that they
    once had.
    """
    for typed in ("takes 99 ms", "2.25 times as fast", "1.09 to 1.13 times as fast", "470 GFLOP/s",
                  "96 MiB,", "46 GB/s", "12% forward"):  # fmt: skip
        assert FIGURE.search(typed), typed
    quoting = [page for page in report.pages(ROOT) if report.MARKED.search(page.read_text())]
    assert {"README.md", "benchmarks.md", "cpu.md"} <= {page.name for page in quoting}
    for page in [*quoting, ROOT / "benchmarks/README.md"]:
        text = report.MARKED.sub("", page.read_text())
        found = [line for line in text.splitlines() if FIGURE.search(line)]
        assert not found, (page, found)
