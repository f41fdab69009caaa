# SPDX-License-Identifier: Apache-2.0
"""Follows the first lane of each warp through a kernel and lists the instructions it executes."""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sass import Instruction
from sass_translate import is_predicate, predicate, translate

LEAVES = ("BRA", "EXIT", "CALL", "RET")
LIMIT = 2_000_000  # most instructions of a warp
WORDS = 1 << 12  # size of the constant bank
REAL = struct.Struct("<f")
WORD = struct.Struct("<I")


def real(word: int) -> float:
    """Returns the fp32 number that a word holds."""
    return REAL.unpack(WORD.pack(word))[0]


def fp32(number: float) -> int:
    """Returns the word that holds a number, rounded to fp32."""
    try:
        return WORD.unpack(REAL.pack(number))[0]
    except OverflowError:
        return 0x7F800000 if number > 0 else 0xFF800000


def integer(number: float, low: int, high: int) -> int:
    """Returns a number without its fraction, limited to a range."""
    if number != number:
        return 0
    return max(low, min(high, int(max(min(number, 1e30), -1e30))))


def permute(a: int, selector: int, b: int) -> int:
    """Returns four of eight bytes, or copies of their signs."""
    both, result = a | b << 32, 0
    for n in range(4):
        nibble = selector >> 4 * n & 15
        byte = both >> 8 * (nibble & 7) & 255
        result |= ((255 if byte >> 7 else 0) if nibble & 8 else byte) << 8 * n
    return result


def guarded(function: Callable[[float], float], otherwise: float) -> Callable[[float], float]:
    """Returns a function that has a value everywhere."""

    def value(x: float) -> float:
        try:
            return function(x)
        except (ValueError, ZeroDivisionError, OverflowError):
            return otherwise

    return value


NAMES: dict[str, Any] = {
    **{"M": 0xFFFFFFFF, "B": 0x80000000, "inf": math.inf, "nan": math.nan},
    **{"real": real, "fp32": fp32, "integer": integer, "permute": permute},
    "rcp": guarded(lambda x: 1 / x, math.inf),
    "rsq": guarded(lambda x: 1 / math.sqrt(x), math.inf),
    "sqrt": guarded(math.sqrt, math.nan),
    "ex2": guarded(lambda x: 2.0**x, math.inf),
    "lg2": guarded(math.log2, -math.inf),
    "sin": guarded(math.sin, 0),
    "cos": guarded(math.cos, 0),
}


class Program:
    """A kernel. Each of its basic blocks is a function in Python."""

    def __init__(self, body: Sequence[Instruction]) -> None:
        self.body = body
        self.at = {i.address: n for n, i in enumerate(body)}
        starts = {0}
        for n, i in enumerate(body):
            if i.name in LEAVES:
                starts.add(n + 1)
                if i.name != "EXIT" and i.name != "RET" and "DIV" not in i.suffixes:
                    starts.add(self.target(i))
        self.ends = sorted(x for x in starts if x < len(body))
        self.ends.append(len(body))
        self.blocks: dict[int, Callable[..., int]] = {}

    def target(self, i: Instruction) -> int:
        """Returns where a branch or a call leads."""
        return self.at[int(i.operands[-1], 16)]

    def leave(self, n: int) -> str:
        """Returns the statement that returns the number of the next instruction, or -1."""
        i = self.body[n]
        conditions = [predicate(x) for x in (i.guard, *i.operands[:-1]) if x and is_predicate(x)]
        if i.name == "EXIT":
            conditions = [predicate(x) for x in (i.guard, *i.operands) if x]
            goal = "-1"
        elif i.name == "RET":
            goal = "K.pop()"
        elif "DIV" in i.suffixes:
            return f"return {n + 1}"
        else:
            goal = str(self.target(i))
        if i.name == "CALL":
            goal = f"(K.append({n + 1}) or {goal})"
        condition = " and ".join(conditions)
        return f"return {goal} if {condition} else {n + 1}" if condition else f"return {goal}"

    def block(self, start: int) -> Callable[..., int]:
        """Returns the function of the basic block that starts at an instruction."""
        end = next(x for x in self.ends if x > start)
        lines, first = [], start
        for n in range(start, end):
            i = self.body[n]
            if i.name in LEAVES:
                continue
            statements = [] if i.never else translate(i)
            if i.never or i.guard:
                if first < n:
                    lines.append(f"T.extend(range({first}, {n}))")
                first = n + 1
                if i.never:
                    lines.append(f"T.append({~n})")
                else:
                    lines += [f"if {predicate(i.guard)}:", f" T.append({n})"]
                    lines += [f" {x}" for x in statements]
                    lines.append(f"else: T.append({~n})")
            else:
                lines += statements
        if first < end:
            lines.append(f"T.extend(range({first}, {end}))")
        leaves = self.body[end - 1].name in LEAVES
        lines.append(self.leave(end - 1) if leaves else f"return {end}")
        names = dict(NAMES)
        exec("def block(R, U, P, Q, C, X, T, K):\n " + "\n ".join(lines), names)
        return names["block"]

    def run(self, constants: Sequence[int], special: Mapping[str, int]) -> list[int]:
        """Returns the instructions that a warp executes, inverted (~n) where one is turned off."""
        trace: list[int] = []
        calls: list[int] = []
        state = ([0] * 256, [0] * 64, [False] * 8, [False] * 8, constants, special, trace, calls)
        n = 0
        while n >= 0:
            if n not in self.blocks:
                self.blocks[n] = self.block(n)
            n = self.blocks[n](*state)
            if len(trace) > LIMIT:
                raise RuntimeError(f"more than {LIMIT} instructions of a warp")
        return trace


# Where the constant bank has the arguments of a kernel.
ARGUMENTS = {"8": 0x160, "9": 0x210, "10": 0x380, "12": 0x380}


def constant_bank(
    architecture: str, threads: int, blocks: int, arguments: bytes, clusters: bool = False
) -> list[int]:
    """Returns the words of the constant bank of a launch, up to sm_90.

    `clusters` says whether its blocks are in clusters.
    """
    major = "".join(c for c in architecture if c.isdigit())[:-1]
    bank = bytearray(4 * WORDS)
    struct.pack_into("<6I", bank, 0, threads, 1, 1, blocks, 1, 1)
    struct.pack_into("<I", bank, 0x140, clusters)
    bank[ARGUMENTS[major] : ARGUMENTS[major] + len(arguments)] = arguments
    return list(struct.unpack(f"<{WORDS}I", bank))


def traces(program: Program, constants: Sequence[int], threads: int, block: int) -> list[list[int]]:
    """Returns what each warp of a block executes."""
    special = {"SR_CTAID.X": block, "SR_NTID.X": threads}
    return [
        program.run(constants, {**special, "SR_TID.X": first, "SR_VIRTUALID": 0})
        for first in range(0, threads, 32)
    ]
