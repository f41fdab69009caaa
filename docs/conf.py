# SPDX-License-Identifier: Apache-2.0
"""Configures the documentation that Sphinx builds: `make docs`.

The C++ reference follows the lists of public headers in csrc/, and the Python reference must hold
every public module, so neither can fall behind. A symbol without a comment or docstring is a
warning, and warnings are errors.
"""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging

import retnet

DOCS = Path(__file__).parent
ROOT = DOCS.parent
XML = ROOT / "build/doxygen/xml"
log = logging.getLogger(__name__)

project = "RetNet"
author = copyright = "the RetNet for LibTorch authors"
version = release = retnet.__version__
extensions = ["breathe", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"RetNet {release}"
html_copy_source = False
html_math_renderer = "mathml"  # browsers show it as it is, without a network
highlight_language = "text"  # for blocks that name no language: equations
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "ignore-module-all": True,  # which ruff sorts
}
autodoc_inherit_docstrings = False  # the docstring of nn.Module.forward describes nothing here
autodoc_typehints_format = "short"
napoleon_custom_sections = [("Attributes", "params_style")]  # otherwise they are called variables
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
add_module_names = False
# `x` is a link if x is a name of this project, and otherwise code.
default_role = "py:obj"

breathe_projects = {"retnet": str(XML)}
breathe_default_project = "retnet"
breathe_default_members = ("members",)

# Names that other projects document. The build needs no network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|collections|pathlib|typing|argparse)\..*|Tensor|Path|Sequence|Mapping"),
    ("cpp:identifier", r"(at|c10|std|torch)(::.*)?|u?int\d+_t|size_t"),
    ("cpp:identifier", r"retnet(::[a-z]+)?"),  # namespaces, which have no entry of their own
]

# The implementations of the operators and modules share these. They are not exported.
INTERNAL = re.compile(r"check_\w+|is_step|RetentionPlanTuple")
# The demonstration and `python -m retnet` are programs.
NO_REFERENCE = re.compile(r"retnet\.(\w+\.)?(demo|__main__|_\w+)(\.|$)|retnet\.nn\.")


def public_headers() -> list[Path]:
    """Returns the headers that CMake installs, in the order of its lists."""
    found: list[Path] = []
    for lists in sorted((ROOT / "csrc").rglob("CMakeLists.txt")):
        for names in re.findall(r"set\(RETNET_\w*HEADERS\s([^)]*)\)", lists.read_text()):
            found += [lists.parent / name for name in names.split()]
    if not found:
        raise ExtensionError("csrc/CMakeLists.txt: must list the public headers, found none")
    return found


def run_doxygen(app: Sphinx) -> None:
    """Reads the public headers into XML. Its warnings become those of Sphinx."""
    XML.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        "INPUT": " ".join(f'"{header}"' for header in public_headers()),
        "INPUT_FILTER": f'"{sys.executable} {ROOT / "tools/doxygen_filter.py"}"',
        "STRIP_FROM_PATH": f'"{ROOT / "csrc"}"',
        "OUTPUT_DIRECTORY": f'"{XML.parent}"',
    }
    text = (DOCS / "Doxyfile").read_text() + "".join(f"{k} = {v}\n" for k, v in settings.items())
    done = subprocess.run(["doxygen", "-"], input=text, text=True, capture_output=True)
    for line in done.stderr.splitlines():
        log.warning("doxygen: %s", line)
    if done.returncode:
        raise ExtensionError(f"doxygen ended with {done.returncode}")


def place(element: ET.Element) -> tuple[str, int]:
    """Returns the header and line of a symbol."""
    location = element.find("location")
    assert location is not None
    return location.get("file", ""), int(location.get("line", 0))


def cpp_reference() -> str:
    """Returns Markdown with a section for each namespace, and in it one for each header."""
    text = ""
    for namespace in (ET.parse(path).getroot()[0] for path in sorted(XML.glob("namespace*.xml"))):
        name = namespace.findtext("compoundname", "")
        # The place of each symbol, and the kind and name for its directive.
        symbols: list[tuple[tuple[str, int], str, str]] = []
        for inner in namespace.findall("innerclass"):
            compound = ET.parse(XML / f"{inner.get('refid')}.xml").getroot()[0]
            symbols.append((place(compound), compound.get("kind", ""), inner.text or ""))
        for member in namespace.iter("memberdef"):
            symbol = member.findtext("name", "")
            if not INTERNAL.fullmatch(symbol):
                symbols.append((place(member), member.get("kind", ""), f"{name}::{symbol}"))
        if symbols:
            text += f"## {name}\n\n"
        before = ""
        for (header, _), kind, symbol in sorted(symbols):
            if header != before:
                text += f"### {header}\n\n```cpp\n#include <retnet/{header}>\n```\n\n"
            before = header
            text += f"```{{doxygen{kind}}} {symbol}\n```\n\n"
    return text


def fill_in(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the C++ reference where its page asks for it."""
    source[0] = source[0].replace("<!-- every public header -->", cpp_reference())


def demand_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Warns of methods without a docstring, which autodoc would leave out."""
    if inspect.isclass(obj) and obj.__module__.startswith("retnet."):
        for member, value in vars(obj).items():
            value = getattr(value, "__func__", value)  # the function of a classmethod
            is_method = inspect.isfunction(value) or isinstance(value, property)
            if is_method and not member.startswith("_") and not value.__doc__:
                log.warning("%s.%s has no docstring", name, member)


def skip(
    app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: object
) -> bool | None:
    """Leaves out the fields of named tuples. Their class describes them under Attributes."""
    is_field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
    return True if is_field else None


def clean_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, arguments: str, result: str
) -> tuple[str, str] | None:
    """Rewrites the signatures of dataclasses with a default_factory as valid Python."""
    if arguments and "<factory>" in arguments:
        return arguments.replace("<factory>", "..."), result
    return None


def plain_where_unknown(
    app: Sphinx, env: BuildEnvironment, node: Any, contnode: nodes.Element
) -> nodes.Element | None:
    """Allows code in single backticks without a target, unless it claims to be a name of this
    project.
    """
    if node.get("reftype") == "obj" and not node["reftarget"].startswith("retnet."):
        return contnode
    return None


def demand_modules(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of public modules that no page shows, and of names in their __all__ that no page
    shows.
    """
    shown = env.domaindata["py"]["objects"]
    for _, name, _ in pkgutil.walk_packages(retnet.__path__, "retnet."):
        if NO_REFERENCE.match(name):
            continue
        module = importlib.import_module(name)
        missing = [] if name in shown else [name]
        for symbol in module.__all__:
            home = getattr(getattr(module, symbol), "__module__", name)  # the defining module
            if not {f"{name}.{symbol}", f"{home}.{symbol}"} & shown.keys():
                missing.append(f"{name}.{symbol}")
        for target in missing:
            log.warning("%s is public, but no page shows it, or it has no docstring", target)


def write_math(writer: Any, node: nodes.math) -> None:
    """Writes an inline formula."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def write_math_block(writer: Any, node: nodes.math_block) -> None:
    """Writes a formula as a block."""
    writer.body.append(f"<p>{tex2mathml(node.astext(), as_block=True)}</p>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connects the functions to Sphinx."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math_block, None))
    app.connect("builder-inited", run_doxygen)
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", demand_docstring)
    app.connect("autodoc-process-signature", clean_signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("missing-reference", plain_where_unknown)
    app.connect("env-check-consistency", demand_modules)
