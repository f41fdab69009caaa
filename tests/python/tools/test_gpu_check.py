# SPDX-License-Identifier: Apache-2.0
"""tools/gpu_check.sh is rehearsed without a GPU: stand-ins replace Python and the programs that
need one. A part that fails, hangs or is interrupted costs no result of another part.
"""

import ast
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from support.file_order import FIRST, sort_by_file
from support.paths import ROOT

SCRIPT = ROOT / "tools/gpu_check.sh"
TESTS = ROOT / "tests/python"
ARCHIVE = "gpu-check-nvidia-fake-100.tar.gz"
STAGES = {
    "test": ("build", "pytest", "large", "memcheck", "racecheck"),
    "bench": ("build", "bench"),
    "all": ("build", "pytest", "large", "memcheck", "racecheck", "bench"),
}

# The output of each stand-in. FAULT names a part and its fault.
PYTHON = r"""#!/usr/bin/env bash
case "$*" in
  *get_device_name*) echo "NVIDIA Fake 100"; exit ;;
  *get_device_capability*) echo 9.0; exit ;;
  *"import xdist"*) exit "${NO_XDIST:-0}" ;;
  *setup.py*) part=build ;;
  *"not large_memory"*) part=pytest ;;
  *large_memory*) part=large ;;
  *gpu_sanitize.py*) part=$TOOL ;;
  *benchmarks/ops.py*) part=bench ;;
  *) exit ;;
esac
echo "begins: $* $RETNET_CMAKE_ARGS"
touch "$STARTED/$part"
case "$FAULT" in
  "$part fails") exit 3 ;;
  "$part hangs") exec sleep 30 ;;
  "$part ignores SIGINT") trap "" INT; sleep 30 & sleep 30; sleep 30 ;;
  "$part leaves a process") setsid sleep 90 & echo $! >"$STARTED/stray" ;;
esac
echo "ends, ERROR SUMMARY: 0 errors"
"""
SANITIZER = r"""#!/usr/bin/env bash
TOOL=$2 exec "${@:5}"
"""
# A second takes a fifth of a second.
TIMEOUT = r"""#!/usr/bin/env bash
echo "limit: $3"
exec /usr/bin/timeout "$1" --kill-after=0.3 "${LIMIT:-$3}" "${@:4}"
"""


class Rehearsal:
    """Holds a folder with the script and the stand-ins, and what a run of it leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.started = folder, folder / "out", folder / "started"
        for name in ("tools", "bin", "out", "started"):
            (folder / name).mkdir()
        (folder / "tools/gpu_check.sh").write_text(SCRIPT.read_text())
        stand_ins = {"python": PYTHON, "compute-sanitizer": SANITIZER, "timeout": TIMEOUT}
        for name, text in stand_ins.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def start(self, stage: str, **variables: str) -> subprocess.Popen:
        gone = ("RETNET_CMAKE_ARGS", "FAULT", "LIMIT")
        kept = {name: x for name, x in os.environ.items() if name not in gone}
        env = {**kept, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "OUT": str(self.out)}
        env |= {"PYTHON": str(self.folder / "bin/python"), "STARTED": str(self.started)}
        command = ["bash", str(self.folder / "tools/gpu_check.sh"), stage]
        return subprocess.Popen(
            command,
            env=env | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, stage: str, **variables: str) -> tuple[int, str]:
        process = self.start(stage, **variables)
        output = process.communicate(timeout=60)[
            0
        ]  # it does not wait for a process that is left over
        return process.returncode, output

    def results(self) -> dict[str, str]:
        """Returns the text of each file in the tar that was copied out."""
        with tarfile.open(self.out / ARCHIVE) as tar:
            files = [x for x in tar.getmembers() if x.isfile()]
            return {Path(x.name).name: tar.extractfile(x).read().decode() for x in files}

    def parts(self) -> dict[str, str]:
        """Returns what parts.txt says of each part."""
        lines = self.results()["parts.txt"].splitlines()
        return dict(re.split(r" +(?:\d+ s +)?", line, maxsplit=1) for line in lines)


@pytest.fixture
def rehearsal(tmp_path: Path) -> Rehearsal:
    return Rehearsal(tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_every_part_runs(stage, rehearsal):
    status, output = rehearsal.run(stage)
    assert status == 0, output
    results, parts = rehearsal.results(), rehearsal.parts()
    assert parts == {**dict.fromkeys(STAGES[stage], "exit status 0"), "gpu-check": "passed"}
    for name in STAGES[stage]:
        assert results[f"{name}.log"] in output  # the output is seen as it comes
        assert results[f"{name}.log"].endswith("ends, ERROR SUMMARY: 0 errors\n")
    assert [x.name for x in rehearsal.out.iterdir()] == [ARCHIVE]


STOPPED = r"exit status 124 \(time limit \d+ s\)"
KILLED = r"exit status 137 \(time limit \d+ s\)"


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("pytest fails", "exit status 3"),
        ("pytest hangs", STOPPED),
        ("pytest ignores SIGINT", KILLED),
        ("pytest leaves a process", "exit status 0"),
        ("large hangs", STOPPED),
        ("memcheck hangs", STOPPED),
        ("racecheck fails", "exit status 3"),
        ("bench hangs", STOPPED),
    ],
)
def test_a_part_takes_no_other_along(fault, expected, rehearsal):
    part, stray = fault.split()[0], rehearsal.started / "stray"
    limit = {"LIMIT": "0.7"} if expected != "exit status 0" else {}
    status, output = rehearsal.run("all", FAULT=fault, **limit)
    if stray.exists():
        os.kill(int(stray.read_text()), signal.SIGKILL)
    results, parts = rehearsal.results(), rehearsal.parts()
    assert re.fullmatch(expected, parts[part]), output
    # A sanitizer that ends without its summary does not work on this machine. This is not a
    # failure.
    passes = expected == "exit status 0" or part in ("memcheck", "racecheck")
    assert status == (0 if passes else 1), output
    assert parts["gpu-check"] == ("passed" if passes else f"failed: {part}")
    assert "begins: " in results[f"{part}.log"]
    for name in set(STAGES["all"]) - {part}:
        assert parts[name] == "exit status 0", output
        assert results[f"{name}.log"].endswith("ends, ERROR SUMMARY: 0 errors\n")


def test_without_a_build_nothing_else_runs(rehearsal):
    status, output = rehearsal.run("all", FAULT="build fails")
    assert status == 1, output
    assert rehearsal.parts() == {"build": "exit status 3", "gpu-check": "failed: build"}
    assert "begins: " in rehearsal.results()["build.log"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_interrupted(name, rehearsal):
    """The tar has the parts that have ended, and what the current one has printed."""
    process = rehearsal.start("test", FAULT="pytest hangs", LIMIT="20")
    while not (rehearsal.started / "pytest").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    begin = time.monotonic()
    process.send_signal(signal.Signals[name])
    process.wait(timeout=30)
    assert time.monotonic() - begin < 15  # not at the limit of the part
    results, parts = rehearsal.results(), rehearsal.parts()
    assert parts.pop("build") == "exit status 0"
    assert results["build.log"].endswith("ends, ERROR SUMMARY: 0 errors\n")
    if name == "SIGKILL":
        assert process.returncode == -9 and not parts
    else:
        assert process.returncode == 128 + signal.Signals[name]
        assert parts == {"pytest": "interrupted"}
        assert "begins: " in results["pytest.log"]
        process.communicate(timeout=15)  # no child holds the output open
    assert [x.name for x in rehearsal.out.iterdir()] == [ARCHIVE]


def test_bench_adds_to_the_results_of_the_test_before(rehearsal):
    rehearsal.run("test", FAULT="large fails")
    rehearsal.run("bench")
    assert {"pytest.log", "large.log", "bench.log"} <= rehearsal.results().keys()
    assert rehearsal.parts()["large"] == "exit status 3"
    rehearsal.run("test")
    assert "bench.log" not in rehearsal.results()


@pytest.mark.parametrize("spent", [0, 250, 450, 560])
def test_a_stage_keeps_to_its_time(spent, rehearsal):
    """No part gets more time than is left, whatever the parts before it took. A part for which no
    time is left is named. The shell counts its seconds from SECONDS.
    """
    _, output = rehearsal.run("test", SECONDS=str(spent))
    parts, results = rehearsal.parts(), rehearsal.results()
    limits = {}
    for name in parts.keys() - {"gpu-check"}:
        if parts[name] == "not run: no time left":
            continue
        limits[name] = int(re.search(r"limit: (\d+)", results[f"{name}.log"])[1])
        assert 5 <= limits[name] <= 570 - spent, output
    expected = {
        0: {"build": 300, "pytest": 270, "large": 60, "memcheck": 50, "racecheck": 50},
        250: {"build": 260, "pytest": 160, "large": 60, "memcheck": 50, "racecheck": 50},
        450: {"build": 60, "large": 20, "memcheck": 50, "racecheck": 50},
        560: {},
    }[spent]
    assert limits.keys() == expected.keys()
    assert all(expected[name] - 9 <= limit <= expected[name] for name, limit in limits.items())


@pytest.mark.parametrize("xdist", [True, False], ids=["xdist", "no xdist"])
def test_how_the_parts_are_called(xdist, rehearsal):
    rehearsal.run("test", NO_XDIST="0" if xdist else "1", RETNET_CMAKE_ARGS="-DOURS=1")
    results = rehearsal.results()
    assert "-DRETNET_CUDA=ON -DRETNET_WERROR=OFF -DOURS=1" in results["build.log"]
    assert "-m cuda and not large_memory " in results["pytest.log"]
    workers = r" -n \d+ --dist loadfile --no-loadscope-reorder "
    assert bool(re.search(workers, results["pytest.log"])) == xdist
    assert "-m cuda and large_memory " in results["large.log"]
    assert " -n " not in results["large.log"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu():
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "skipped: no GPU"), done.stderr


def test_the_order_of_the_files():
    assert {path.name for path in TESTS.rglob("test_*.py")} >= set(FIRST)
    names = ["test_cli.py", "test_gpu.py", "test_ab.py", "test_retention.py", "test_install.py"]
    items = [SimpleNamespace(path=TESTS / name) for name in names]
    sort_by_file(items)
    ordered = [item.path.name for item in items]
    assert ordered == [
        *("test_install.py", "test_retention.py", "test_gpu.py"),
        *("test_cli.py", "test_ab.py"),
    ]


def test_what_needs_much_memory_is_marked(request):
    """The test inspects a run that has collected test_gpu.py."""
    large = [item for item in request.session.items if "2_31" in item.name]
    if not large:
        pytest.skip("test_gpu.py is not collected")
    assert len(large) == 5
    assert all(item.get_closest_marker("large_memory") for item in large)


def test_where_launches_are_counted_memory_is_not_poisoned():
    """Poisoning a tensor would launch a kernel (conftest.poisoned_memory)."""
    counting = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or "gpu" not in {
                x.arg for x in node.args.args
            }:
                continue
            if "profile(" in ast.unparse(node):
                marks = [ast.unparse(x) for x in node.decorator_list]
                counting[node.name] = "pytest.mark.not_poisoned" in marks
    assert "test_rotary_is_one_launch" in counting
    assert all(counting.values()), counting
