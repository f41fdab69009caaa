# SPDX-License-Identifier: Apache-2.0
"""Deletes each barrier and wait of the CUDA kernels in turn and checks that a test then fails.

mutate.py [--only TEXT] [--jobs N]

The tool works in a copy of the tree in build/mutate. It deletes, one at a time, each statement that
calls a primitive that orders threads or copies (`statements`). It then builds and runs the tests of
that kernel in the SIMT emulator until one fails. A result is reused while the files that it depends
on are the same (build/mutate/results.json), so a run that was stopped continues. The exit status is
1 if no test fails for a deletion, or if a test cannot be built. The tool needs g++ on x86-64, as
the SIMT emulator does.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "mutate"
TREE, BUILD, RESULTS = WORK / "tree", WORK / "build", WORK / "results.json"
COPIED = ("CMakeLists.txt", "cmake", "csrc", "kernels", "tests")
# One of these is in the body of each primitive that makes threads, or later accesses, wait.
ORDERS = re.compile(r"__sync|__threadfence|\b(bar|barrier|mbarrier)\.|commit|wait|fence")
LIMIT_S = 3600  # limit of a test, because the emulator detects a deadlock but not an endless loop


class Site(NamedTuple):
    """A statement to delete."""

    file: str  # path from the root
    line: int
    start: int
    end: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.text}"


def primitives(sources: dict[str, str]) -> dict[str, str]:
    """Returns the names of the primitives that order, each with the file that defines it."""
    definition = re.compile(r"RETNET_DEVICE void (\w+)\([^)]*\)\s*\{(.*?)\n?\}", re.S)
    return {
        found[1]: file
        for file, text in sources.items()
        if file.startswith("kernels/cuda/prim/")
        for found in definition.finditer(text)
        if ORDERS.search(found[2])
    }


def statements(sources: dict[str, str]) -> list[Site]:
    """Finds the calls of those primitives, and raw __sync..., outside the files that define
    them.
    """
    names = primitives(sources)
    call = re.compile(rf"(?:prim::)?\b(?:{'|'.join(names)}|__sync\w+)\b(?:<[^;()]*>)?\([^;]*?\);")
    sites = []
    for file, text in sources.items():
        if file in names.values():
            continue
        code = re.sub(
            r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S
        )
        for found in call.finditer(code):
            line = text.count("\n", 0, found.start()) + 1
            sites.append(Site(file, line, *found.span(), " ".join(found[0].split())))
    return sites


def kernel_sources(root: Path) -> dict[str, str]:
    """Returns the text of every file of device code."""
    folder = root / "kernels/cuda"
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".cuh", ".cu", ".h"))
    return {str(file.relative_to(root)): file.read_text() for file in files}


def copy_tree() -> None:
    """Brings the copy up to date. Files that have not changed stay untouched, and so do their
    objects.
    """
    wanted = set()
    for name in COPIED:
        top = ROOT / name
        for new in [top] if top.is_file() else top.rglob("*"):
            if new.is_file() and "__pycache__" not in new.parts:
                wanted.add(new.relative_to(ROOT))
    for old in TREE.rglob("*"):
        if old.is_file() and old.relative_to(TREE) not in wanted:
            old.unlink()
    for file in sorted(wanted):
        target = TREE / file
        content = (ROOT / file).read_bytes()
        if file == Path("tests/simt/CMakeLists.txt"):  # halves the compile time
            content = content.replace(b"-O2 -g1", b"-O1 -g1")
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Returns the result of a command."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def require(result: subprocess.CompletedProcess[str]) -> str:
    """Returns the output of a command. Exits with an error if it failed."""
    if result.returncode:
        sys.exit(f"mutate: {' '.join(result.args)}\n{(result.stdout + result.stderr)[-4000:]}")
    return result.stdout


def families(files: Iterable[str]) -> set[str]:
    """Returns the folders of kernels that contain some of the files."""
    parts = [Path(f).parts for f in files if f.startswith("kernels/cuda/")]
    return {p[2] for p in parts if len(p) > 3} - {"prim"}


class Tests:
    """The tests in the SIMT emulator, built in the copy, and the files that they depend on."""

    def __init__(self, jobs: int):
        self.build_command = ["cmake", "--build", str(BUILD), "-j", str(jobs), "--target"]
        options = [
            "-DRETNET_TESTS=ON",
            "-DCMAKE_CXX_FLAGS=-w",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        require(run(["cmake", "-S", str(TREE), "-B", str(BUILD), "-G", "Ninja", *options]))
        require(run([*self.build_command, *self._emulator_tests()]))
        self.commands = {name: test["command"] for name, test in self._emulator_tests().items()}
        self.objects = self._objects()

    def _emulator_tests(self) -> dict[str, Any]:
        """Returns what CTest knows of them, by name, which is also the name of the target.

        Before they are built they have no command.
        """
        listed = require(run(["ctest", "--test-dir", str(BUILD), "--show-only=json-v1"]))
        label = {"name": "LABELS", "value": ["emulator"]}
        tests = json.loads(listed)["tests"]
        return {test["name"]: test for test in tests if label in test.get("properties", [])}

    def _objects(self) -> dict[str, set[str]]:
        """Returns the files of the tree from which each object of those tests was made."""
        objects: dict[str, set[str]] = {}
        name = ""
        for line in require(run(["ninja", "-C", str(BUILD), "-t", "deps"])).splitlines():
            if not line.startswith(" "):
                name = line.split(":")[0]
            elif line.strip() and "tests/" in name:
                path = Path(line.strip())
                path = (path if path.is_absolute() else BUILD / path).resolve()
                if path.is_relative_to(TREE):
                    objects.setdefault(name, set()).add(str(path.relative_to(TREE)))
        return objects

    def covering(self, file: str) -> tuple[list[str], set[str]]:
        """Returns the tests of the kernels that a file is part of, and all files that they depend
        on.

        Every test links every kernel. The tests of a kernel are those that include a file in its
        folder.
        """

        kernels = [files for files in self.objects.values() if file in files]
        wanted = set().union(*map(families, kernels)) if kernels else set()
        files, tests = set().union(*kernels), []
        for test in self.commands:
            own = [f for name, f in self.objects.items() if f"/{test}.dir/" in name]
            if wanted & families(set().union(*own)):
                tests.append(test)
                files |= set().union(*own)
        return tests, files

    def files_of(self, test: str) -> set[str]:
        """Returns all files from which a test and the kernels of its folders are made."""
        own = set().union(*(f for name, f in self.objects.items() if f"/{test}.dir/" in name))
        return own.union(*(f for f in self.objects.values() if families(f) & families(own)))

    def build(self, tests: list[str]) -> str | None:
        """Builds tests. Returns the error of the compiler if it cannot."""
        result = run([*self.build_command, *tests])
        return (result.stdout + result.stderr)[-2000:] if result.returncode else None

    def failure(self, tests: list[str]) -> tuple[str, str] | None:
        """Runs tests in parallel. Returns the first that fails, with its output, or one that does
        not end.
        """
        with TemporaryDirectory() as folder:
            logs = {test: Path(folder) / test for test in tests}
            running = {}
            for test, log in logs.items():
                with log.open("w") as output:
                    running[test] = subprocess.Popen(
                        [*self.commands[test], "--abort"], stdout=output, stderr=subprocess.STDOUT
                    )
            end = time.monotonic() + LIMIT_S
            try:
                while running and time.monotonic() < end:
                    for test, process in list(running.items()):
                        if process.poll() is not None:
                            del running[test]
                            if process.returncode:
                                return test, logs[test].read_text()[-2000:]
                    time.sleep(0.2)
                return (next(iter(running)), "does not end") if running else None
            finally:
                for process in running.values():
                    process.kill()
                    process.wait()


def digest(files: Iterable[str]) -> str:
    """Returns a digest of the names and contents of files in the tree."""
    sha = hashlib.sha256()
    for file in sorted(files):
        sha.update(file.encode() + b"\0" + (TREE / file).read_bytes() + b"\0")
    return sha.hexdigest()[:16]


def mutate(site: Site, tests: list[str], emulator: Tests) -> dict[str, Any]:
    """Deletes a statement and returns which test fails."""
    target = TREE / site.file
    text = target.read_text()
    target.write_text(f"{text[: site.start]}(void)0;{text[site.end :]}")
    start = time.monotonic()
    try:
        if problem := emulator.build(tests):
            return {"status": "does not build", "detail": problem}
        if failure := emulator.failure(tests):
            seconds, (test, detail) = round(time.monotonic() - start, 1), failure
            return {"status": "found", "test": test, "seconds": seconds, "detail": detail}
        return {"status": "SURVIVES", "tests": tests}
    finally:
        target.write_text(text)


def key_of(site: Site, emulator: Tests) -> str:
    """Returns a key for a deletion in the present files."""
    return f"{site} @{site.start} {digest(emulator.covering(site.file)[1])}"


def pending(
    sites: list[Site], known: dict[str, Any], emulator: Tests
) -> Iterator[tuple[Site, str, list[str]]]:
    """Yields the sites without a result for the present files, with their keys and tests."""
    for site in sites:
        key = key_of(site, emulator)
        if key not in known:
            yield site, key, emulator.covering(site.file)[0]


def describe(result: dict[str, Any]) -> str:
    """Formats the result of a deletion in one line."""
    by = f"  by {result['test']} in {result['seconds']} s" if "test" in result else ""
    return f"{result['status']:9} {result['site']}{by}"


def main() -> int:
    """Runs the program. Returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="delete only statements whose file or text contains this",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="parallel compilations (default: 2)"
    )
    options = parser.parse_args()
    if not shutil.which("ninja"):
        sys.exit("mutate: needs ninja")
    copy_tree()
    sites = [s for s in statements(kernel_sources(TREE)) if options.only in str(s)]
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    print(f"{len(sites)} barriers and waits; building the tests of the SIMT emulator", flush=True)
    emulator = Tests(options.jobs)

    bar = tqdm(list(pending(sites, known, emulator)), unit="deletion", disable=None)
    for site, key, tests in bar:
        bar.set_postfix_str(f"{site.file}:{site.line}")
        known[key] = {"site": str(site), **mutate(site, tests, emulator)}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
        tqdm.write(describe(known[key]))
    results = {site: known[key_of(site, emulator)] for site in sites}

    # A failed test counts only if it passes without a deletion.
    for test in sorted({result["test"] for result in results.values() if "test" in result}):
        key = f"{test} {digest(emulator.files_of(test))}"
        if key not in known:
            print(f"{test} without a deletion", flush=True)
            if problem := emulator.build([test]) or emulator.failure([test]):
                sys.exit(f"mutate: {test} fails without a deletion\n{problem}")
            known[key] = {"status": "passes"}
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")

    for result in results.values():
        print(describe(result))
    missed = sum(result["status"] != "found" for result in results.values())
    print(f"{len(sites)} deletions, {missed} without a test that fails")
    return 1 if missed or not sites else 0


if __name__ == "__main__":
    sys.exit(main())
