# SPDX-License-Identifier: Apache-2.0
"""Rewrites a header of csrc/ for Doxygen, line by line, and prints it. These parts change:

- The lines in tables of arguments start with three spaces. They become \\param, and Doxygen then
  compares their names with the declaration. A paragraph "Returns ..." becomes \\return.
- TORCH_ARG, an option, becomes its setter with the default.
- TORCH_MODULE, the holder of a module, becomes an alias.
- Overrides without a comment are left out, because torch documents them.
"""

import re
import sys
from pathlib import Path

_ARGUMENT = re.compile(r"^( *///)   (\w+(?:, \w+)*)(  +)(\S.*)$")
_COMMENT = re.compile(r"^( *///)( *)(\S.*)?$")
_RETURNS = re.compile(r"^( *///) Returns (\S.*)$")
_CLASS = re.compile(r"^(?:class|struct) (?:RETNET_API )?(\w+)")
_OPTION = re.compile(r"^( *)TORCH_ARG\((.+), (\w+)\)(?: = (.+))?;$")
_MODULE = re.compile(r"^TORCH_MODULE\((\w+)\);$")


def rewrite(text: str) -> str:
    """Returns the header that Doxygen reads, with the same number of lines."""
    lines = []
    owner = previous = ""
    in_table = False
    for line in text.splitlines():
        comment = _COMMENT.match(line)
        if match := _ARGUMENT.match(line):
            start, names, _, description = match.groups()
            line = f"{start} \\param {names.replace(' ', '')} {description}"
            in_table = True
        elif in_table and comment and comment[3] and len(comment[2]) > 3:
            line = f"{comment[1]} {comment[3]}"  # the description goes on
        else:
            in_table = False
            if (match := _RETURNS.match(line)) and previous.endswith("///"):
                line = f"{match[1]} \\return {match[2]}"
            elif match := _CLASS.match(line):
                owner = match[1]
            elif match := _OPTION.match(line):
                indent, kind, name, default = match.groups()
                note = f"  ///< Default: `{default}`." if default else ""
                line = f"{indent}{owner}& {name}(const {kind}& value);{note}"
            elif match := _MODULE.match(line):
                name = match[1]
                line = (
                    f"/** Holds a {name}Impl, which its copies share; call it as a function. */ "
                    f"using {name} = torch::nn::ModuleHolder<{name}Impl>;"
                )
            elif line.endswith(" override;") and not previous.strip().startswith("///"):
                line = ""
        previous = line
        lines.append(line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(rewrite(Path(sys.argv[1]).read_text("utf-8")))
