# SPDX-License-Identifier: Apache-2.0
"""Disassembles compiled CUDA kernels and sorts their instructions by class and by loop."""

import os
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")

# The class of an instruction is the first pattern that its name without suffixes matches.
CLASSES = {
    "HMMA": "HMMA",
    "LDSM": "LDSM",
    "LDGSTS": "LDGSTS",
    "LDS/STS": "LDS|STS",
    "LDG/STG": "LDG|STG|LD|ST",
    "local": "LDL|STL",
    "MUFU": "MUFU",
    "float": r"U?F(FMA|MUL|ADD|SEL|SETP|MNMX)\d?|H(FMA|MUL|ADD|MNMX)2",
    "F2FP": "F2FP",
    "integer": r"U?(IMAD|V?I?ADD\w*|LOP3|U?LEA|SHF|V?I?MNMX\w*|ISETP|SEL|PRMT|MOV|CS2R)",
    "branch": "BRA|BSSY|BSYNC|WARPSYNC|CALL|RET|EXIT",
}
# NOP and instructions that never run (@!PT). ptxas inserts them because the hardware needs them.
PADDING = "pad"


class Instruction(NamedTuple):
    """One instruction of SASS."""

    address: int
    never: bool  # whether it is predicated with !PT
    name: str  # name without suffixes
    target: int | None  # target of a branch
    guard: str = ""  # predicate, or nothing
    suffixes: tuple[str, ...] = ()
    operands: tuple[str, ...] = ()
    control: int = 0  # bits 105 and up of the instruction, which hold the schedule

    @property
    def text(self) -> str:
        """Returns the instruction as the disassembler writes it."""
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{'.'.join((self.name, *self.suffixes))} {', '.join(self.operands)}".strip()


ROW = re.compile(
    r"code for sm_(?P<architecture>\w+)|Function : (?P<function>\w+)"
    r"|^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?\w+)\s+)?"
    r"(?P<name>[A-Z]\w*)(?P<suffixes>[\w.]*)(?P<operands>[^;\n]*);"
    # The two words of the instruction, of which the second ends with the schedule.
    r"(?:\s*/\* 0x[0-9a-f]{16} \*/\s*/\* 0x(?P<word>[0-9a-f]{16}) \*/)?",
    re.MULTILINE,
)


def parse_sass(text: str) -> dict[tuple[str, str], list[Instruction]]:
    """Returns the instructions of each (architecture, mangled name) that cuobjdump -sass prints."""
    functions: dict[tuple[str, str], list[Instruction]] = {}
    architecture, body = "", []
    for row in ROW.finditer(text):
        if row["architecture"]:
            architecture = row["architecture"]
        elif row["function"]:
            body = functions.setdefault((architecture, row["function"]), [])
        else:
            operands = tuple(x.strip() for x in row["operands"].split(","))
            branch = row["name"] == "BRA"
            target = re.search(r"0x([0-9a-f]+)$", row["operands"].strip()) if branch else None
            body.append(
                Instruction(
                    int(row["address"], 16),
                    row["guard"] == "!PT",
                    row["name"],
                    int(target[1], 16) if target else None,
                    row["guard"] or "",
                    tuple(row["suffixes"].split(".")[1:]),
                    tuple(x for x in operands if x),
                    int(row["word"], 16) >> 41 if row["word"] else 0,
                )
            )
    return functions


def main_loop(instructions: Sequence[Instruction], having: str = "HMMA") -> list[Instruction]:
    """Returns the body of the largest loop with such an instruction, or nothing if there is
    none.
    """
    loops = [
        [i for i in instructions if branch.target <= i.address <= branch.address]
        for branch in instructions
        if branch.target is not None and branch.target < branch.address
    ]
    return max((body for body in loops if any(i.name == having for i in body)), key=len, default=[])


def classify(instruction: Instruction) -> str:
    """Returns the class of an instruction."""
    if instruction.never or instruction.name == "NOP":
        return PADDING
    for name, pattern in CLASSES.items():
        if re.fullmatch(pattern, instruction.name):
            return name
    return "other"


def executed(
    loop: Sequence[Instruction], warps: int, turns: Sequence[int], having: str = "HMMA"
) -> Counter[str]:
    """Returns the instructions by class in one turn of `loop` by all warps.

    Each instruction counts once for each warp. In the inner loops that have an instruction
    `having`, each counts as often as the loop turns. `turns` are the turns by all warps together,
    in the order of the code, with an outer loop before the loops inside it. The result is empty if
    the number of such loops differs.
    """
    ends = {
        branch.target: branch.address  # the last branch to this target
        for branch in loop
        if branch.target is not None and loop[0].address < branch.target <= branch.address
    }
    bodies = [
        {i.address for i in loop if start <= i.address <= end}
        for start, end in sorted(ends.items())
    ]
    inner = [body for body in bodies if any(i.name == having and i.address in body for i in loop)]
    counts: Counter[str] = Counter()
    if len(inner) != len(turns):
        return counts
    for i in loop:
        within = [n for body, n in zip(inner, turns, strict=True) if i.address in body]
        counts[classify(i)] += within[-1] if within else warps
    return counts


Visit = Callable[[str, str, list[Instruction]], Result]  # architecture, mangled name, instructions


def objects(folder: Path, name: str) -> list[Path]:
    """Returns the objects that have a kernel whose name contains `name`."""
    found = [p for p in sorted(folder.rglob("*.o.ptxas")) if name in p.read_text()]
    return [p.with_suffix("") for p in found]


def disassemble(path: Path, *options: str) -> str:
    """Returns what cuobjdump -sass prints for a file."""
    programs = Path(sysconfig.get_path("platlib")) / "nvidia" / "cu13" / "bin"
    search = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"  # cuobjdump runs nvdisasm
    command = ["cuobjdump", "-sass", *options, str(path)]
    environment = {**os.environ, "PATH": search}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def visit(path: Path, function: Visit[Result]) -> list[Result]:
    """Returns what `function` makes of each kernel in an object."""
    functions = parse_sass(disassemble(path))
    return [function(*key, body) for key, body in functions.items()]


def survey(folder: Path, name: str, function: Visit[Result]) -> list[Result]:
    """Returns what `function` makes of each kernel in the objects that have one with `name`.

    There is a process for each processor.
    """
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(partial(visit, function=function), objects(folder, name))
        return [result for found in results for result in found]
