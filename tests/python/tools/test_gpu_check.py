# SPDX-License-Identifier: Apache-2.0
"""tools/gpu_check.sh is rehearsed without a GPU: stand-ins replace nvidia-smi, nvcc, Python and the
programs that need a GPU.

A part that fails, hangs or is interrupted costs no result of another part.
"""

import ast
import os
import re
import shutil
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

TESTS = ROOT / "tests/python"
ARCHIVE = "gpu-check-nvidia-fake-100.tar.gz"
COUNTERS = ("ncu-chunkwise_forward", "ncu-chunkwise_backward", "ncu-decode_step")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SMOKE = ("smoke_build", "smoke", *COUNTERS, *SANITIZERS)
STAGES = {
    "test": (*SMOKE, "build", "pytest", "large"),
    "bench": ("build", "bench"),
    "all": (*SMOKE, "build", "pytest", "large", "bench"),
}
OK = "exit status 0"

# The output of each stand-in. FAULT names a part and its fault.
PLAY = r"""
play() {
  local part=$1
  shift
  echo "begins: $* $RETNET_CMAKE_ARGS"
  touch "$STARTED/$part"
  case "$FAULT" in
    "$part fails") exit 3 ;;
    "$part finds") echo "==== ERROR SUMMARY: 1 error"; exit 9 ;;
    "$part hangs") exec sleep 30 ;;
    "$part finds and hangs") echo "========= $FINDING"; exec sleep 30 ;;
    "$part ignores SIGINT") trap "" INT; sleep 30 & sleep 30; sleep 30 ;;
    "$part leaves a process") setsid sleep 90 & echo $! >"$STARTED/stray" ;;
    "$part takes a second") sleep 1 ;;
  esac
  echo "ends, ERROR SUMMARY: 0 errors"
}
"""
STAND_INS = {
    "nvidia-smi": """
case "$*" in
  *--query-gpu*) [[ -n $NO_QUERY ]] && exit 6; echo "NVIDIA Fake 100, 9.0" ;;
  *) echo "GPU 0: NVIDIA Fake 100" ;;
esac
""",
    "nproc": """echo "${CORES:-16}" """,
    # The last call links the program.
    "nvcc": """
case "$*" in
  *"-o build/gpu/kernel_smoke")
    play smoke_build "$@"
    cp "$(dirname "$0")/kernel_smoke" build/gpu/kernel_smoke ;;
  *" -o "*) echo "compiles $*"; touch "${@: -1}" ;;
esac
""",
    "kernel_smoke": """play "${PART:-smoke}" "$@" """,
    "compute-sanitizer": """PART=$2 exec "${@:5}" """,
    "ncu": """PART=ncu-${@: -1} exec "${@:9}" """,
    "python": """
case "$*" in
  *is_available*) exit "${NO_TORCH:-0}" ;;
  *get_device_name*) echo "NVIDIA Fake 100"; exit ;;
  *get_device_capability*) echo 9.0; exit ;;
  *"import xdist"*) exit "${NO_XDIST:-0}" ;;
  *setup.py*) part=build ;;
  *"not large_memory"*) part=pytest ;;
  *large_memory*) part=large ;;
  *benchmarks/ops.py*) part=bench ;;
  *) exit ;;
esac
play "$part" "$@"
""",
    # Writes the limit down. LIMIT replaces it.
    "timeout": """
echo "limit: $3"
exec /usr/bin/timeout "$1" --kill-after=0.3 "${LIMIT:-$3}" "${@:4}"
""",
}


class Rehearsal:
    """Holds a folder with the scripts and the stand-ins, and what a run of them leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.started = folder, folder / "out", folder / "started"
        for name in ("tools", "bin", "out", "started"):
            (folder / name).mkdir()
        files = {x: (ROOT / x).read_text() for x in ("tools/gpu_check.sh", "tools/kernel_smoke.sh")}
        for name, text in STAND_INS.items():
            files[f"bin/{name}"] = "#!/usr/bin/env bash\n" + PLAY + text
        for name, text in files.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def start(self, stage: str, **variables: str) -> subprocess.Popen:
        gone = ("RETNET_CMAKE_ARGS", "FAULT", "LIMIT", "NVCC", "JOBS", "PART")
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
        # It does not wait for a process that is left over.
        output = process.communicate(timeout=60)[0]
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


@pytest.mark.parametrize("cores", [16, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_every_part_runs(stage, cores, rehearsal):
    status, output = rehearsal.run(stage, CORES=str(cores))
    assert status == 0, output
    results, parts = rehearsal.results(), rehearsal.parts()
    assert parts == {**dict.fromkeys(STAGES[stage], OK), "gpu-check": "passed"}
    for name in STAGES[stage]:
        assert results[f"{name}.log"] in output  # the output is seen as it comes
        assert "ends, ERROR SUMMARY: 0 errors\n" in results[f"{name}.log"]
    assert re.search(r"compiled for \d+ s\n$", results["build.log"])
    assert [x.name for x in rehearsal.out.iterdir()] == [ARCHIVE]


@pytest.mark.parametrize("cores", [16, 4])
def test_the_library_compiles_beside_the_tools_if_there_are_cores(cores, rehearsal):
    rehearsal.run("test", CORES=str(cores), FAULT="build takes a second")
    times = {x.name: x.stat().st_mtime for x in rehearsal.started.iterdir()}
    assert times["smoke_build"] < times["smoke"] < min(times["build"], times["memcheck"])
    assert (times["build"] < times["synccheck"]) == (cores == 16)
    assert max(times.values()) == times["large"]


STOPPED = r"exit status 124 \(time limit \d+ s\)"
KILLED = r"exit status 137 \(time limit \d+ s\)"


def unavailable(part: str) -> bool:
    """Returns whether the part runs a tool that does not work on every machine."""
    return part in (*COUNTERS, *SANITIZERS)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        *((f"{part} fails", "exit status 3") for part in STAGES["all"] if part != "build"),
        *((f"{part} hangs", STOPPED) for part in STAGES["all"] if part != "build"),
        *((f"{part} finds", "exit status 9") for part in SANITIZERS),
        ("smoke ignores SIGINT", KILLED),
        ("memcheck ignores SIGINT", KILLED),
        ("pytest ignores SIGINT", KILLED),
        ("smoke leaves a process", OK),
        ("pytest leaves a process", OK),
    ],
)
def test_a_part_takes_no_other_along(fault, expected, rehearsal):
    part, stray = fault.split()[0], rehearsal.started / "stray"
    limit = {"LIMIT": "3"} if expected in (STOPPED, KILLED) else {}
    stage = "bench" if part == "bench" else "test"
    status, output = rehearsal.run(stage, FAULT=fault, **limit)
    if stray.exists():
        os.kill(int(stray.read_text()), signal.SIGKILL)
    results, parts = rehearsal.results(), rehearsal.parts()
    assert re.fullmatch(expected, parts[part]), output
    # A tool that ends without its summary does not work on this machine. This is not a failure.
    tool = unavailable(part) and expected != "exit status 9"
    assert (f"unavailable: {part}: " in results["parts.txt"]) == (tool and expected != OK)
    passes = expected == OK or tool
    assert status == (0 if passes else 1), output
    assert parts["gpu-check"] == ("passed" if passes else f"failed: {part}")
    assert "begins: " in results[f"{part}.log"]
    # Without the program, the parts that run it are missing.
    missing = {*SMOKE} if part == "smoke_build" else set()
    for name in set(STAGES[stage]) - {part} - missing:
        assert parts[name] == OK, output
        assert "ends, ERROR SUMMARY: 0 errors\n" in results[f"{name}.log"]
    assert parts.keys() & missing <= {part}


@pytest.mark.parametrize(
    ("part", "finding"),
    [
        ("memcheck", "Invalid __global__ write of size 4 bytes"),
        ("memcheck", "Misaligned __shared__ read of size 16 bytes"),
        (
            "racecheck",
            "Error: Race reported between Write access at 0x7f00 and Read access at 0x80",
        ),
        ("initcheck", "Uninitialized __global__ memory read of size 4 bytes"),
        ("synccheck", "Barrier error detected. Divergent thread(s) in block."),
    ],
)
def test_a_tool_that_finds_an_error_and_runs_out_of_time_fails(part, finding, rehearsal):
    status, output = rehearsal.run(
        "test", FAULT=f"{part} finds and hangs", FINDING=finding, LIMIT="3"
    )
    assert status == 1, output
    assert re.fullmatch(STOPPED, rehearsal.parts()[part])
    assert rehearsal.parts()["gpu-check"] == f"failed: {part}"
    assert "unavailable" not in output


@pytest.mark.parametrize(("fault", "expected"), [("fails", "exit status 3"), ("hangs", STOPPED)])
def test_without_a_build_only_what_needs_none_runs(fault, expected, rehearsal):
    limit = {"LIMIT": "3"} if fault == "hangs" else {}
    status, output = rehearsal.run("test", FAULT=f"build {fault}", **limit)
    assert status == 1, output
    parts = rehearsal.parts()
    assert re.fullmatch(expected, parts.pop("build"))
    assert parts == {**dict.fromkeys(SMOKE, OK), "gpu-check": "failed: build"}
    assert "begins: " in rehearsal.results()["build.log"]


def test_without_torch_only_what_needs_none_runs(rehearsal):
    status, output = rehearsal.run(
        "test", NO_TORCH="1", PATH=f"{rehearsal.folder}/bin:/usr/bin:/bin"
    )
    assert status == 1, output
    parts = rehearsal.parts()
    assert parts.pop("build").startswith("not run: no Python with a torch that sees the GPU")
    assert parts == {**dict.fromkeys(SMOKE, OK), "gpu-check": "failed: build"}


def test_a_driver_that_tells_no_capability(rehearsal):
    """Torch tells it."""
    status, output = rehearsal.run("test", NO_QUERY="1")
    assert status == 0, output
    assert "arch=compute_90a,code=sm_90a" in rehearsal.results()["smoke_build.log"]


@pytest.mark.parametrize("tool", ["ncu", "compute-sanitizer"])
def test_a_tool_that_is_not_installed(tool, rehearsal):
    folders = ["/usr/bin", "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"]
    installed = [*Path("/opt/nvidia").glob(f"nsight-compute/*/{tool}")]
    if installed or shutil.which(tool, path=":".join(folders)):
        pytest.skip(f"has {tool}")
    (rehearsal.folder / "bin" / tool).unlink()
    status, output = rehearsal.run("test", PATH=f"{rehearsal.folder}/bin:/usr/bin:/bin")
    assert status == 0, output
    of_tool = COUNTERS if tool == "ncu" else SANITIZERS
    for part in of_tool:
        assert f"unavailable: {part}: {tool} is not installed" in output
    assert rehearsal.parts().keys() >= set(STAGES["test"]) - set(of_tool)


@pytest.mark.parametrize("part", ["smoke", "pytest"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_interrupted(name, part, rehearsal):
    """The tar has the parts that have ended, and what the current one has printed."""
    process = rehearsal.start("test", FAULT=f"{part} hangs", LIMIT="20")
    while not (rehearsal.started / part).exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    begin = time.monotonic()
    process.send_signal(signal.Signals[name])
    process.wait(timeout=30)
    assert time.monotonic() - begin < 15  # not at the limit of the part
    results, parts = rehearsal.results(), rehearsal.parts()
    before = STAGES["test"][: STAGES["test"].index(part)]
    for ended in before:
        assert parts.pop(ended) == OK
        assert "ends, ERROR SUMMARY: 0 errors\n" in results[f"{ended}.log"]
    if name == "SIGKILL":
        assert process.returncode == -9 and not parts
    else:
        assert process.returncode == 128 + signal.Signals[name]
        assert parts == {part: "interrupted"}
        assert "begins: " in results[f"{part}.log"]
        process.communicate(timeout=15)  # no child holds the output open
    assert [x.name for x in rehearsal.out.iterdir()] == [ARCHIVE]


def test_interrupted_while_two_parts_run(rehearsal):
    """A tool and the build run at the same time. Both end, and both are named."""
    process = rehearsal.start("test", FAULT="synccheck hangs", LIMIT="20")
    while not (rehearsal.started / "synccheck").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    parts = rehearsal.parts()
    assert (parts["synccheck"], parts["build"]) == ("interrupted", "interrupted")
    assert "begins: " in rehearsal.results()["build.log"]


def test_bench_adds_to_the_results_of_the_test_before(rehearsal):
    rehearsal.run("test", FAULT="large fails")
    rehearsal.run("bench")
    assert {"smoke.log", "pytest.log", "large.log", "bench.log"} <= rehearsal.results().keys()
    assert rehearsal.parts()["large"] == "exit status 3"
    rehearsal.run("test")
    assert "bench.log" not in rehearsal.results()


@pytest.mark.parametrize("spent", [0, 100, 250, 450, 560])
def test_a_stage_keeps_to_its_time(spent, rehearsal):
    """No part gets more time than is left, whatever the parts before it took. A part for which no
    time is left is named. The shell counts its seconds from SECONDS.
    """
    _, output = rehearsal.run("test", SECONDS=str(spent))
    parts, results = rehearsal.parts(), rehearsal.results()
    limits = {}
    for name in parts.keys() & set(STAGES["test"]):
        if parts[name] == "not run: no time left":
            continue
        limits[name] = int(re.search(r"limit: (\d+)", results[f"{name}.log"])[1])
        assert 5 <= limits[name] <= 570 - spent, output
    tools = {**dict.fromkeys(COUNTERS, 30), **dict.fromkeys(SANITIZERS, 40)}
    expected = {
        0: {"smoke_build": 120, "smoke": 90, **tools, "build": 300, "pytest": 270, "large": 60},
        100: {"smoke_build": 50, "smoke": 80, **tools, "build": 300, "pytest": 270, "large": 60},
        250: {"build": 260, "pytest": 250, "large": 60},
        450: {"build": 60, "pytest": 50, "large": 60},
        560: {},
    }[spent]
    assert limits.keys() == expected.keys(), output
    assert all(expected[name] - 15 <= limit <= expected[name] for name, limit in limits.items())


@pytest.mark.parametrize("xdist", [True, False], ids=["xdist", "no xdist"])
def test_how_the_parts_are_called(xdist, rehearsal):
    rehearsal.run("test", NO_XDIST="0" if xdist else "1", RETNET_CMAKE_ARGS="-DOURS=1")
    results = rehearsal.results()
    assert "-gencode=arch=compute_90a,code=sm_90a" in results["smoke_build.log"]
    for name in SANITIZERS:
        assert "begins: --short --no-time --sanitizer " in results[f"{name}.log"]
    for name in COUNTERS:
        kernel = name.removeprefix("ncu-")
        assert f"begins: --no-check --kernel {kernel} " in results[f"{name}.log"]
    assert "-DRETNET_CUDA=ON -DRETNET_WERROR=OFF -DOURS=1" in results["build.log"]
    assert "-m cuda and not large_memory " in results["pytest.log"]
    workers = r" -n \d+ --dist loadfile --no-loadscope-reorder "
    assert bool(re.search(workers, results["pytest.log"])) == xdist
    assert "-m cuda and large_memory " in results["large.log"]
    assert " -n " not in results["large.log"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu():
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / "tools/gpu_check.sh")], env=environment, capture_output=True, text=True
    )
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
