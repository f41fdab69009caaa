# SPDX-License-Identifier: Apache-2.0
"""The documentation works: the Python code of README, docs/ and docstrings runs, and
test_install.py builds the C++ code. test_kernel_pages.py tests docs/kernels.
"""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import retnet
from support.paths import ROOT

PAGES = [
    ROOT / "README.md",
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if page.parent.name != "kernels"),
]
INSTALL = ROOT / "tests/install"
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(retnet.__path__, "retnet.")
    if not re.search(r"\.(demo|_\w+)", name)
]
# Every operator, and what a new user calls first.
NEED_EXAMPLES = [
    *(f"retnet.ops.{name}" for name in retnet.ops.__all__ if name != "RetentionPlan"),
    "retnet.config.RetNetConfig",
    "retnet.nn.RetNetForCausalLM",
    "retnet.generation.generate",
    "retnet.checkpoint.load",
    "retnet.state.RetNetState",
    "retnet.cpp.CppModule",
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def cases(*languages: str) -> list:
    return [
        pytest.param(language, block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for language in languages
        for number, block in enumerate(blocks(page.read_text(), language))
    ]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Runs the examples in an empty folder, because they save files where they run."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("language", "code"), cases("python"))
def test_python(language, code):
    exec(compile(code, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize(("language", "code"), cases("cpp", "cmake"))
def test_cpp_is_what_the_install_test_builds(language, code):
    files = {"cpp": "*.cpp", "cmake": "CMakeLists.txt"}[language]
    assert any(code in file.read_text() for file in INSTALL.glob(files))


def test_cpp_in_headers_is_what_the_install_test_builds():
    shown = []
    for header in ROOT.glob("csrc/**/*.h"):
        comments = re.sub(r"^ */// ?", "", header.read_text(), flags=re.MULTILINE)
        shown += blocks(comments, "cpp")
    assert shown
    source = " ".join((INSTALL / "main.cpp").read_text().split())
    for code in shown:
        assert " ".join(code.split()) in source


def test_nothing_else_stands_in_a_fence_unchecked():
    """sh and toml blocks are commands and settings, which test_cli.py and CI run. text blocks are
    drawings.
    """
    for page in PAGES:
        text = page.read_text()
        languages = re.findall(r"^```(\S+)", text, flags=re.MULTILINE)
        allowed = {"python", "cpp", "cmake", "sh", "text", "toml", "{eval-rst}", "{toctree}"}
        assert set(languages) <= allowed, page
        assert text.count("```") == 2 * len(languages), page


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, globs={}):
        runner.run(test)
    assert runner.failures == 0


@pytest.mark.parametrize("name", NEED_EXAMPLES)
def test_has_an_example(name):
    module, _, symbol = name.rpartition(".")
    documented = getattr(importlib.import_module(module), symbol)
    assert ">>>" in inspect.getdoc(documented)


def test_docstrings_show_code_as_examples_only():
    """A code block of another kind would not be run."""
    for name in MODULES:
        source = inspect.getsource(importlib.import_module(name))
        assert "code-block" not in source and "```" not in source, name
