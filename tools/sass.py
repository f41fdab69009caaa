# SPDX-License-Identifier: Apache-2.0
"""Disassembles compiled CUDA kernels and sorts their instructions by class and by loop."""

import os
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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
    """One line of SASS."""

    address: int
    never: bool  # whether it is predicated with !PT
    name: str  # name without suffixes
    target: int | None  # target of a branch


def parse_sass(text: str) -> dict[tuple[str, str], list[Instruction]]:
    """Returns the instructions of each (architecture, mangled name) that cuobjdump -sass prints."""
    functions: dict[tuple[str, str], list[Instruction]] = {}
    line = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?\w+)\s+)?([A-Z][\w.]*)([^;]*);")
    architecture, body = "", []
    for row in text.splitlines():
        if found := line.match(row):
            name = found[3].split(".")[0]
            target = re.search(r"0x([0-9a-f]+)\s*$", found[4]) if name == "BRA" else None
            body.append(
                Instruction(
                    int(found[1], 16),
                    found[2] == "!PT",
                    name,
                    int(target[1], 16) if target else None,
                )
            )
        elif found := re.match(r"\s*code for sm_(\w+)", row):
            architecture = found[1]
        elif found := re.match(r"\s*Function : (\w+)", row):
            body = functions.setdefault((architecture, found[1]), [])
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


def disassemble(folder: Path, name: str) -> Iterator[tuple[str, str, list[Instruction]]]:
    """Yields the architecture, mangled name and instructions of the kernels whose names contain
    `name`.
    """
    programs = Path(sysconfig.get_path("platlib")) / "nvidia" / "cu13" / "bin"
    path = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"  # cuobjdump runs nvdisasm

    def sass_of(ptxas: Path) -> str:
        return subprocess.run(
            ["cuobjdump", "-sass", str(ptxas.with_suffix(""))],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    objects = [p for p in sorted(folder.rglob("*.o.ptxas")) if name in p.read_text()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # nvdisasm uses one thread
        for sass in pool.map(sass_of, objects):
            for (architecture, mangled), body in parse_sass(sass).items():
                yield architecture, mangled, body
