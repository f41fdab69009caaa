# SPDX-License-Identifier: Apache-2.0
"""The sdist, the wheel and the CMake package hold what they should. An application finds, links and
runs the library, with or without a CUDA toolkit.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import retnet
from support.cases.train import TEXT, make_byte_model
from support.paths import BUILD, ROOT

CMAKE = str(Path(sys.executable).with_name("cmake"))
TORCH = Path(torch.__file__).parent
NINJA = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={Path(sys.executable).with_name('ninja')}"]
JSON = Path("/usr/include/nlohmann/json.hpp").exists()


def run(*command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=env, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def without_cuda_toolkit() -> dict[str, str]:
    """Returns the environment without nvcc and without variables that point to a toolkit."""
    folders = [x for x in os.environ["PATH"].split(":") if not (Path(x) / "nvcc").exists()]
    gone = ("CUDA", "NVCC", "TORCH_CUDA", "LIBRARY_PATH", "LD_LIBRARY_PATH", "CPATH")
    kept = {name: x for name, x in os.environ.items() if not name.startswith(gone)}
    return {**kept, "PATH": ":".join(folders)}


def build(source: str, prefix: Path, folder: Path, env: dict[str, str]) -> None:
    """Builds a separate project against the installed package."""
    run(CMAKE, "-S", str(ROOT / source), "-B", str(folder), *NINJA,
        f"-DCMAKE_PREFIX_PATH={prefix};{TORCH}", "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS_DEBUG=-O0", env=env)  # fmt: skip
    run(CMAKE, "--build", str(folder), env=env)


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder for the installed package and the applications. Each test that installs
    there configures, links and runs them. The object files stay, because their headers are the
    same.
    """
    return tmp_path_factory.mktemp("apps")


def install_and_run_apps(tree: str, folder: Path, scratch: Path, env: dict[str, str]) -> None:
    prefix = folder / "prefix"
    shutil.rmtree(prefix / "lib", ignore_errors=True)
    run(CMAKE, "--install", tree, "--prefix", str(prefix), env=env)
    build("tests/install", prefix, folder / "app", env)
    # The sum over tokens of (1 + 2 + 3) * 2 in each of two columns; a text of 128 + 16 tokens;
    # 8 + 4 tokens read.
    printed = run(str(folder / "app/app"), env=env).split()
    assert printed == [retnet.__version__, "24", "144", "12"]
    assert run(str(folder / "app/readme"), env=env) == "144 tokens\n"
    if not list((prefix / "lib").glob("libretnet_io.so")):
        assert not JSON, "RetNet::io was not built"
        return
    for name in ("cpp_generate", "cpp_train"):
        build(f"examples/{name}", prefix, folder / name, env)
    check_examples(
        folder / "cpp_generate/cpp_generate", folder / "cpp_train/cpp_train", scratch, env
    )


def check_examples(generate: Path, train: Path, folder: Path, env: dict[str, str]) -> None:
    """A model goes from C++ to Python and back, and generates the same text in both."""
    model, text = folder / "model", folder / "text"
    text.write_bytes(TEXT)

    def write_in_both() -> None:
        asked = ["--max_new_tokens", "40"]
        command = [str(generate), str(model), "The cät"]
        in_cpp = run(*command, *asked, env=env)
        command = [sys.executable, "-m", "retnet", "generate", str(model), "--prompt", "The cät"]
        in_python = run(*command, "--temperature", "0", *asked, env=env)
        # Python leaves out an incomplete character at the end.
        assert in_cpp.rstrip("\n\ufffd") == in_python.rstrip("\n\ufffd")
        assert len(in_cpp.encode()) > 40

    def learn() -> list[float]:
        lines = run(str(train), str(model), str(text), env=env)
        return [float(bits) for bits in re.findall(r"step \d+: ([\d.]+) bits/byte", lines)]

    first, last = learn()  # a new model
    assert first > 7 and last < first - 1
    write_in_both()
    assert learn()[0] < first - 1  # continues with that model
    make_byte_model().save(folder / "other")  # a model that Python wrote
    model = folder / "other"
    write_in_both()
    first, last = learn()
    assert last < first - 0.5
    write_in_both()

    make_byte_model(vocab_size=13).save(folder / "narrow")
    for command, message in (
        ([generate, folder / "none", "x"], "none/config.json: cannot be opened: No such file"),
        ([generate, model, ""], "prompts must have shape [T], T >= 1, got [0]"),
        ([generate, model, "x", "--max_new_tokens", "y"], "max_new_tokens must be a number, got y"),
        ([train, model, folder / "none"], "none: cannot be read"),
        ([train, folder / "narrow", text], "must hold a model of bytes, vocab_size = 256, got 13"),
        (
            [generate, folder / "narrow", "x"],
            "must hold a model of bytes, vocab_size = 256, got 13",
        ),
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert done.stderr.startswith(command[0].name) and done.stderr.count("\n") == 1


def test_installed_from_the_build_tree(apps, tmp_path):
    """The installed library is the one that Python imports, with the CUDA kernels if they were
    built.
    """
    run(CMAKE, "--build", str(BUILD), "--target", "csrc/all")
    install_and_run_apps(str(BUILD), apps, tmp_path, dict(os.environ))


# The files of the repository that the sdist leaves out.
NOT_SHIPPED = (".clang-format", ".gitignore", ".github/", ".pre-commit-config.yaml")
# Files that builds and runs leave in a tree, and that earlier versions of the sdist packed.
LITTER = [
    "benchmarks/results/cpu-test/raw/ops.json",
    "build/csrc/libretnet.so",
    "kernels/cpu/isa/avx2.o",
    "examples/cpp_train/build/cpp_train",
    "python/retnet/_C.cpython-39-x86_64-linux-gnu.so",
    "python/retnet/lib/libretnet.so",
    "tests/python/__pycache__/conftest.cpython-39.pyc",
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a copy of the files that git tracks or would track."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of the repository")
    folder = tmp_path_factory.mktemp("checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    for name in filter(None, run(*command, "--exclude-standard").split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def make_sdist(tree: Path, folder: Path) -> Path:
    """Returns the sdist of a tree, unpacked, as `python -m build --sdist` and pip make it."""
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sdist(checkout, tmp_path_factory.mktemp("sdist"))


def files(tree: Path) -> set[str]:
    """Returns the files of a tree, except those that the writer of the sdist adds."""
    every = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    made = {"PKG-INFO", "setup.cfg"}
    return {x for x in every - made if not x.startswith("python/retnet.egg-info/")}


def test_the_sdist_is_the_repository(checkout, sdist):
    expected = {x for x in files(checkout) if not x.startswith(NOT_SHIPPED)}
    assert expected >= {
        "CMakeLists.txt",
        "LICENSE",
        "csrc/CMakeLists.txt",
        "cmake/RetNetCuda.cmake",
    }
    assert files(sdist) == expected
    assert sdist.name == f"retnet-{retnet.__version__}"
    metadata = (sdist / "PKG-INFO").read_text().splitlines()
    assert f"Version: {retnet.__version__}" in metadata


@pytest.mark.parametrize("source", ["checkout", "sdist"])
def test_what_lies_about_is_not_packed(source, request, sdist, tmp_path):
    """Binaries, build folders and files in the list of an earlier sdist are not packed, also if the
    tree is an unpacked sdist.
    """
    tree = tmp_path / "tree"
    shutil.copytree(request.getfixturevalue(source), tree)
    for name in LITTER:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"\x7fELF")
    sources = tree / "python/retnet.egg-info/SOURCES.txt"
    sources.parent.mkdir(exist_ok=True)
    sources.write_text("\n".join(LITTER))
    assert files(make_sdist(tree, tmp_path)) == files(sdist)


def test_the_sdist_is_built_and_run_without_a_cuda_toolkit(apps, sdist, tmp_path):
    """This builds the library and its applications, and then the wheel. Debug compiles faster."""
    env = without_cuda_toolkit()
    assert shutil.which("nvcc", path=env["PATH"]) is None
    tree = str(tmp_path / "build")
    out = run(CMAKE, "-S", str(sdist), "-B", tree, *NINJA,
              f"-DRETNET_TORCH_DIR={TORCH}", "-DCMAKE_BUILD_TYPE=Debug",
              "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DCMAKE_IGNORE_PATH=/usr/local/cuda/bin",
              env=env)  # fmt: skip
    assert "RetNet: CUDA kernels OFF (no nvcc)" in out
    run(CMAKE, "--build", tree, env=env)
    install_and_run_apps(tree, apps, tmp_path, env)
    check_wheel(sdist, tmp_path, {**env, "RETNET_BUILD_DIR": tree})


def install_without_io(tmp_path: Path, torch_folder: Path = TORCH) -> Path:
    """Installs the CMake package without RetNet::io. The library in it is an empty file."""
    tree, prefix = tmp_path / "build", tmp_path / "prefix"
    out = run(CMAKE, "-S", str(ROOT), "-B", str(tree), *NINJA, f"-DRETNET_TORCH_DIR={torch_folder}",
              "-DRETNET_CUDA=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON",
              "-DCMAKE_SKIP_INSTALL_RPATH=ON")  # fmt: skip
    assert "RetNet: RetNet::io is left out (no nlohmann_json;" in out
    (tree / "csrc/libretnet.so").touch()
    run(CMAKE, "--install", str(tree), "--prefix", str(prefix))
    return prefix


def fake_torch(folder: Path, version: str) -> Path:
    """Makes the files of torch that CMake looks at."""
    major, minor, patch = version.split(".")
    for name in ("lib/libtorch.so", "include/ATen/ATen.h"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    (folder / "include/torch/csrc/api/include").mkdir(parents=True)
    header = folder / "include/torch/headeronly/version.h"
    header.parent.mkdir()
    values = {"MAJOR": major, "MINOR": minor, "PATCH": patch, "ABI_TAG": 0}
    header.write_text("".join(f"#define TORCH_VERSION_{x} {n}\n" for x, n in values.items()))
    return folder


# Two folders call find_package, as in an application with several parts.
APPLICATION = """
cmake_minimum_required(VERSION 3.26)
project(Application LANGUAGES CXX)
add_subdirectory(first)
add_subdirectory(second)
"""
PART = """
find_package(RetNet QUIET)
message(STATUS "found=${RetNet_FOUND} ${RetNet_NOT_FOUND_MESSAGE}")
"""


def test_the_cmake_package_refuses_another_torch(tmp_path):
    prefix = install_without_io(tmp_path, fake_torch(tmp_path / "torch", "2.12.3"))
    (tmp_path / "app").mkdir()
    (tmp_path / "app/CMakeLists.txt").write_text(APPLICATION)
    for part in ("first", "second"):
        (tmp_path / "app" / part).mkdir()
        (tmp_path / "app" / part / "CMakeLists.txt").write_text(PART)

    def configure(source: Path, version: str) -> subprocess.CompletedProcess[str]:
        other = tmp_path / f"torch-{version}"
        if not other.exists():
            fake_torch(other, version)
        command = [CMAKE, "-S", source, "-B", tmp_path / f"{source.name}-{version}", *NINJA,
                   f"-DCMAKE_PREFIX_PATH={prefix};{other}"]  # fmt: skip
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    for version, built in (("2.12.9", True), ("2.13.0", False), ("2.1.2", False)):
        done = configure(tmp_path / "app", version)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"found={int(built)} ") == 2
        message = (
            f"RetNet was built with torch 2.12 and does not work with torch {version}, which was "
            f"found in {tmp_path}/torch-{version}."
        )
        assert (message in done.stdout) == (not built)
        done = configure(ROOT / "tests/install", version)
        assert (done.returncode == 0) == built
        assert (message in " ".join(done.stderr.split())) == (not built)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2.10.0", "torch must be 2.11 to 2.15, got '2.10.0'"),
        ("2.16.0", "torch must be 2.11 to 2.15, got '2.16.0'"),
        ("2.15.3", None),
    ],
)
def test_cmake_tells_which_torch_is_supported(version, message, tmp_path):
    folder = fake_torch(tmp_path / "torch", version)
    command = [CMAKE, "-S", str(ROOT), "-B", str(tmp_path / "build"), *NINJA,
               f"-DRETNET_TORCH_DIR={folder}", "-DRETNET_CUDA=OFF"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == (0 if message is None else 1)
    assert ((message or "torch") in " ".join(done.stderr.split())) == (message is not None)


def test_without_json_the_component_io_is_named_as_missing(tmp_path):
    prefix = install_without_io(tmp_path)
    source = str(ROOT / "examples/cpp_generate")
    command = [CMAKE, "-S", source, "-B", str(tmp_path / "app"), *NINJA,
               f"-DCMAKE_PREFIX_PATH={prefix};{TORCH}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "built without nlohmann_json, so without RetNet::io" in " ".join(done.stderr.split())


def check_wheel(source: Path, folder: Path, env: dict[str, str]) -> None:
    """Checks what `pip install` of a source tree installs: it works outside the tree."""
    pip = [sys.executable, "-m", "pip"]
    options = ["--no-deps", "--no-build-isolation", "-w", str(folder)]
    run(*pip, "wheel", *options, str(source), env=env)
    (wheel,) = folder.glob("retnet-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    binaries = [x for x in names if ".so" in x]
    extension = [x for x in binaries if re.fullmatch(r"retnet/_C\.[\w-]+\.so", x)]
    assert sorted(binaries) == [*extension, "retnet/lib/libretnet.so"] and len(extension) == 1
    assert "retnet/lib/torch_version" in names  # `import retnet` compares this
    assert {"retnet/py.typed", "retnet/_C.pyi", "retnet/nn/linear.py"} <= set(names)
    run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel))
    code = """
import retnet, torch
from retnet.nn import RetNetForCausalLM
model = RetNetForCausalLM(retnet.RetNetConfig.preset("tiny"))
print(retnet.__file__, retnet.__version__, torch.ops.retnet.rotary)
print(*model(torch.zeros(1, 5, dtype=torch.long)).logits.shape)
"""
    env = {**env, "PYTHONPATH": str(folder / "site")}
    printed = run(sys.executable, "-c", code, env=env, cwd=folder).split()
    package = str(folder / "site/retnet/__init__.py")
    assert printed == [package, retnet.__version__, "retnet.rotary", "1", "5", "256"]


def test_wheel(tmp_path):
    check_wheel(ROOT, tmp_path, dict(os.environ))


def test_the_stubs_tell_what_the_extension_has(tmp_path):
    pytest.importorskip("mypy")
    # The type of a class is the metaclass of pybind11, which no stub can name. Its members are
    # compared.
    (tmp_path / "ignored").write_text(r"retnet\._C\.\w+")
    # Only names are compared. Reading the types of torch would take half a minute.
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")
    options = ["--allowlist", tmp_path / "ignored", "--mypy-config-file", tmp_path / "mypy.ini"]
    run(sys.executable, "-m", "mypy.stubtest", "retnet._C", *map(str, options))


@pytest.mark.skipif("TORCH_CUDA_ARCH_LIST" not in os.environ, reason="kernels were not asked for")
def test_the_imported_library_holds_the_kernels():
    """If CI asks for the CUDA kernels, the library that passes the tests without a GPU has them."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("retnet::gated_group_norm", "CUDA")
    assert has_kernel("retnet::retention", "CUDA")


def test_one_version():
    assert f"VERSION {retnet.__version__} " in (ROOT / "CMakeLists.txt").read_text()


def test_the_library_registers_operators_without_python():
    """A program that only calls operators by name needs only torch.ops.load_library."""
    library = Path(retnet.__file__).parent / "lib/libretnet.so"
    code = f"import torch; torch.ops.load_library('{library}'); print(torch.ops.retnet.retention)"
    assert run(sys.executable, "-c", code).strip() == "retnet.retention"


WARNING = "int main() { int unused; }\n"
PROJECT = f"""
cmake_minimum_required(VERSION 3.26)
project(Warned LANGUAGES CXX)
include({ROOT}/cmake/RetNetCuda.cmake)
include({ROOT}/cmake/RetNetWarnings.cmake)
add_library(warned OBJECT warned.cpp)
if(RETNET_CUDA_ENABLED)
  add_library(warned_cuda OBJECT warned.cu)
  target_link_libraries(warned_cuda PRIVATE retnet_warnings)
endif()
target_link_libraries(warned PRIVATE retnet_warnings)
"""
NVCC = pytest.param("cuda", marks=pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc"))


@pytest.mark.parametrize("language", ["cpp", NVCC])
def test_a_warning_is_an_error_where_asked(language, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    (tmp_path / "warned.cpp").write_text(WARNING)
    (tmp_path / "warned.cu").write_text(WARNING)
    cuda = ["-DTORCH_CUDA_ARCH_LIST=8.0", f"-DRETNET_CUDA={'ON' if language == 'cuda' else 'OFF'}"]
    target = "warned_cuda" if language == "cuda" else "warned"
    tree = str(tmp_path / "build")
    for options, status in ([], 0), (["-DRETNET_WERROR=ON"], 1):
        run(CMAKE, "-S", str(tmp_path), "-B", tree, *NINJA, *cuda, *options)
        command = [CMAKE, "--build", tree, "--target", target]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status, options
        assert "unused" in done.stdout


@pytest.mark.parametrize("source", [".", pytest.param("kernels/cuda", marks=NVCC.marks)])
def test_warnings_are_errors_for_every_file_or_for_none(source, tmp_path):
    """This holds for the library, and for the kernels if they are built alone."""
    cuda = ["-DTORCH_CUDA_ARCH_LIST=8.0", f"-DRETNET_CUDA={'OFF' if source == '.' else 'ON'}"]
    options = [*NINJA, *cuda, f"-DRETNET_TORCH_DIR={TORCH}", "-DRETNET_TESTS=OFF",
               "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]  # fmt: skip
    for werror in ("OFF", "ON"):
        run(CMAKE, "-S", str(ROOT / source), "-B", str(tmp_path), *options,
            f"-DRETNET_WERROR={werror}")  # fmt: skip
        entries = json.loads((tmp_path / "compile_commands.json").read_text())
        commands = {x["file"]: x["command"] for x in entries if not x["file"].endswith("link.cpp")}
        assert len(commands) > 5
        for file, command in commands.items():
            assert "-Wall" in command and ("-Werror" in command) == (werror == "ON"), file
