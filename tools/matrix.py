# SPDX-License-Identifier: Apache-2.0
"""Builds the library and tests operators, modules and C++ with each version of torch and Python.

Each pair has its own environment, build tree and logs in a folder. Environment and build are
removed when it has passed. A pair that passed with the same sources is not run again, so that an
interrupted run continues where it was. Only installed interpreters are used: ``python3.X`` in PATH
and those of pyenv. ``--record`` writes the results to docs/compatibility.json and the table to
docs/compatibility.md. RETNET_CMAKE_ARGS is added to the configuration.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# These tests below tests/python need only torch and the packages below.
TESTS = [
    "ops/test_*.py",
    "nn/test_*.py",
    "generation/test_*.py",
    "checkpoint/test_checkpoint.py",
    "cpp/test_*.py",
    "package/test_torch_version.py",
]
# These do not depend on torch.
LEFT_OUT = ["ops/test_other_architectures.py"]
TEST_PACKAGES = ["pytest>=8", "pytest-xdist>=3.7", "hypothesis>=6.100"]
# A result depends on these.
SOURCES = [
    "CMakeLists.txt",
    "setup.py",
    "pyproject.toml",
    "cmake",
    "csrc",
    "kernels",
    "python",
    "tests",
]
BEGIN, END = "<!-- begin: make matrix -->", "<!-- end: make matrix -->"
MEANINGS = {
    "passed": "passed",
    "failed": "**failed**",
    "no interpreter": "no interpreter was at hand",
    "no wheel": "torch publishes none",
    "not run": "not run",
}


def project() -> dict[str, Any]:
    """Returns the content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def torch_minors() -> list[str]:
    """Returns the versions that pyproject.toml allows: 2.11, 2.12, ..."""
    (spec,) = (x for x in project()["project"]["dependencies"] if x.startswith("torch"))
    first, last = re.fullmatch(r"torch>=2\.(\d+),<2\.(\d+)", spec).groups()  # type: ignore[union-attr]
    return [f"2.{minor}" for minor in range(int(first), int(last))]


def python_minors() -> list[str]:
    """Returns the versions that pyproject.toml names: 3.10, 3.11, ..."""
    named = "\n".join(project()["project"]["classifiers"])
    return re.findall(r"^Programming Language :: Python :: (3\.\d+)$", named, flags=re.MULTILINE)


def files(patterns: list[str]) -> set[Path]:
    """Returns the test files that the patterns match."""
    return {path for pattern in patterns for path in (ROOT / "tests/python").glob(pattern)}


def find_python(version: str) -> str | None:
    """Returns the path of an interpreter, which is given as a path or as a version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(version)]
    if "/" not in version:
        candidates += [shutil.which(f"python{version}")]
        candidates += sorted(map(str, pyenv.glob(f"{version}.*/bin/python{version}")), reverse=True)
    for path in filter(None, candidates):
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return os.path.abspath(path)
    return None


def minor_of(python: str) -> str:
    """Returns the version of an interpreter, such as 3.11."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def digest() -> str:
    """Returns a digest of all files on which a result depends."""
    whole = hashlib.sha256()
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in sorted(subprocess.check_output([*listed, *SOURCES], text=True).split()):
        if (ROOT / name).is_file():
            whole.update(name.encode() + (ROOT / name).read_bytes())
    return whole.hexdigest()[:12]


class Failed(Exception):
    """A step of a pair ended with an error."""

    def __init__(self, step: str, log: Path):
        super().__init__(f"{step}, see {log}")
        self.step, self.printed = step, log.read_text(errors="replace")


class Pair:
    """One version of torch with one of Python."""

    def __init__(self, folder: Path, torch: str, python: str):
        self.folder, self.torch, self.python = folder, torch, python
        self.venv, self.build, self.site = folder / "venv", folder / "build", folder / "site"
        self.bin = self.venv / "bin"

    def step(self, name: str, *command: str | Path, **env: str) -> str:
        """Runs a command with its output in a log, and returns the output."""
        print(f" {name}", end="", flush=True)
        log = self.folder / f"{name.replace(' ', '_')}.log"
        path = f"{self.bin}:{os.environ['PATH']}"
        with log.open("w") as file:
            done = subprocess.run(
                list(map(str, command)),
                cwd=ROOT,
                env={**os.environ, "PATH": path, "RETNET_BUILD_DIR": str(self.build), **env},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise Failed(name, log)
        return log.read_text(errors="replace")

    def install(self) -> None:
        """Makes the environment."""
        wanted = [*project()["build-system"]["requires"], *project()["project"]["dependencies"]]
        version = self.torch if self.torch.count(".") == 2 else f"{self.torch}.*"
        wanted += [*TEST_PACKAGES, f"torch=={version}"]
        self.step("environment", self.python, "-m", "venv", "--clear", self.venv)
        # As in tools/setup.sh, uv is faster, and pip reads its mirrors from its settings.
        python, uv = self.bin / "python", Path(sys.executable).with_name("uv")
        if uv.exists():
            try:
                self.step("install", uv, "pip", "install", "--python", python, *wanted)
                return
            except Failed:
                pass
        self.step("install by pip", python, "-m", "pip", "install", *wanted)

    def check_cuda(self) -> None:
        """Compiles the code that calls the CUDA kernels if there is nvcc. The kernels do not depend
        on torch.
        """
        if not (nvcc := shutil.which("nvcc")):
            return
        unit = self.folder / "cuda.cpp"
        unit.write_text("".join(f'#include "{x}"\n' for x in (ROOT / "csrc").glob("*/cuda/*.cpp")))
        code = "import torch.utils.cpp_extension as e; print(*e.include_paths())"
        found = subprocess.check_output([self.bin / "python", "-c", code], text=True).split()
        system = [*found, str(Path(nvcc).resolve().parents[1] / "include")]
        self.step(
            "CUDA wrappers",
            *("c++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-fopenmp"),
            *("-DAT_PER_OPERATOR_HEADERS", f"-I{ROOT}", f"-I{ROOT}/csrc"),
            *(f"-isystem{folder}" for folder in system),
            unit,
        )

    def test(self) -> dict[str, Any]:
        """Builds and tests. Returns a summary."""
        python, given = self.bin / "python", os.environ.get("RETNET_CMAKE_ARGS", "")
        self.step(
            "build",
            *(python, "setup.py", "--quiet", "build"),
            *("--build-base", self.folder / "setuptools", "--build-lib", self.site),
            RETNET_CMAKE_ARGS=f"-DRETNET_CUDA=OFF -DRETNET_TESTS=ON {given}",
        )
        self.check_cuda()
        cmake, ctest = self.bin / "cmake", self.bin / "ctest"
        self.step("C++ build", cmake, "--build", self.build, "--target", "tests/cpp/all")
        tree = self.build / "tests/cpp"
        self.step("C++ tests", ctest, "--test-dir", tree, "--output-on-failure", "--no-tests=error")
        tests = sorted(files(TESTS) - files(LEFT_OUT))
        printed = self.step(
            "pytest",
            *(python, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"),
            *("-p", "no:cacheprovider", "-v", "-m", "not cuda", "--durations=20"),
            *map(str, tests),
            PYTHONPATH=str(self.site),
        )
        (passed,) = re.findall(r"(\d+) passed", printed.splitlines()[-1])  # the last line
        code = "import platform, torch; print(platform.python_version(), torch.__version__)"
        versions = subprocess.check_output([python, "-c", code], text=True).split()
        return {"python": versions[0], "torch": versions[1], "tests": int(passed)}

    def run(self) -> dict[str, Any]:
        """Runs all steps. Returns the result and prints it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        shutil.rmtree(self.site, ignore_errors=True)  # left by a run that failed
        try:
            self.install()
            result = {"outcome": "passed", **self.test()}
        except Failed as error:
            if "No matching distribution found for torch" in error.printed:
                print(": no wheel")
                return {"outcome": "no wheel"}
            print(f": FAILED: {error}", *error.printed.splitlines()[-40:], sep="\n    ")
            return {"outcome": "failed", "step": error.step}
        for folder in (self.venv, self.build, self.site, self.folder / "setuptools"):
            shutil.rmtree(folder, ignore_errors=True)
        result["seconds"] = round(time.monotonic() - start)
        print(f": {result['tests']} tests passed, torch {result['torch']}, {result['seconds']} s")
        return result


def in_order(torches: list[str], pythons: list[str]) -> list[tuple[str, str]]:
    """Puts the newest and the oldest torch first, then each torch, then each Python, then the
    rest.
    """
    ends = [torches[-1], torches[0]]
    first = "3.11" if "3.11" in pythons else pythons[0]
    pairs = [(torch, first) for torch in [*ends, *torches]]
    pairs += [(torch, python) for torch in [*ends, *torches] for python in pythons]
    return list(dict.fromkeys(pairs))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Formats the results as a Markdown table."""
    pythons = python_minors()
    lines = [
        "| torch | " + " | ".join(f"Python {x}" for x in pythons) + " |",
        "|---" * (len(pythons) + 1) + "|",
    ]
    for torch in torch_minors():
        row = [results.get(f"{torch} {python}", {"outcome": "not run"}) for python in pythons]
        shown = {x["torch"].partition("+")[0] for x in row if "torch" in x}
        cells = [
            f"{x['tests']:,} passed" if x["outcome"] == "passed" else MEANINGS[x["outcome"]]
            for x in row
        ]
        lines.append(f"| {', '.join(sorted(shown)) or torch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(page: str, results: dict[str, dict[str, Any]]) -> str:
    """Returns the page with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}"


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Reads the results in a file, by torch and Python."""
    return json.loads(file.read_text()) if file.exists() else {}


def write(file: Path, results: dict[str, dict[str, Any]]) -> None:
    """Writes one line for each result, in the order of the versions."""
    names = sorted(results, key=lambda name: [int(x) for x in re.findall(r"\d+", name)])
    lines = (f"{json.dumps(name)}: {json.dumps(results[name])}" for name in names)
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def listed(text: str) -> list[str]:
    """Splits a list at commas."""
    return text.split(",")


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--torch",
        type=listed,
        metavar="LIST",
        help="versions of torch, such as 2.11,2.15.0 (default: all that pyproject.toml allows)",
    )
    parser.add_argument(
        "--python",
        type=listed,
        metavar="LIST",
        help="versions or paths of interpreters, such as 3.11,/usr/bin/python3 "
        "(default: all that pyproject.toml names)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build/matrix",
        help="folder for environments, builds and logs (default: %(default)s)",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="run pairs again that passed with the same sources"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write docs/compatibility.json and the table in docs/compatibility.md",
    )
    return parser.parse_args()


def main() -> int:
    """Runs the pairs. Returns 1 if one failed."""
    args = parse()
    state = DOCS / "compatibility.json" if args.record else args.folder.resolve() / "results.json"
    results = {} if args.fresh else read(state)
    sources = digest()
    pairs = in_order(args.torch or torch_minors(), args.python or python_minors())
    failed = False
    for i, (torch, wanted) in enumerate(pairs, 1):
        print(f"[{i}/{len(pairs)}] torch {torch}, Python {wanted}:", end="", flush=True)
        python = find_python(wanted)
        version = minor_of(python) if python else wanted
        key = f"{'.'.join(torch.split('.')[:2])} {version}"
        before = results.get(key, {})
        if before.get("outcome") == "passed" and before.get("sources") == sources:
            print(" passed before")
            continue
        if python is None:
            print(" no interpreter")
            results.setdefault(key, {"outcome": "no interpreter"})
        else:
            folder = args.folder.resolve() / key.replace(" ", "-python")
            results[key] = {**Pair(folder, torch, python).run(), "sources": sources}
            failed |= results[key]["outcome"] == "failed"
        state.parent.mkdir(parents=True, exist_ok=True)
        write(state, results)
        if args.record:
            page = DOCS / "compatibility.md"
            page.write_text(with_table(page.read_text(), results))
    print(table(results))
    return failed


if __name__ == "__main__":
    sys.exit(main())
