# SPDX-License-Identifier: Apache-2.0
"""Checks that the lanes of a warp are together where an instruction needs all of them.

ldmatrix, mma and barriers of a cluster (`.aligned` in PTX) are undefined if some lanes are
elsewhere. (A barrier of the block counts threads, since Volta.) Lanes part where a branch depends
on what differs between lanes. They are together again behind a BSYNC of the region that was opened
with BSSY, or behind a WARPSYNC. What differs between lanes follows from the number of the thread,
from loads whose address differs, and from other lanes (SHFL). A shift by 5 bits to the right leaves
the number of the warp, in which all lanes agree.
"""

import re
from collections.abc import Iterator, Sequence

from sass import Instruction

ALIGNED = {"HMMA", "LDSM", "UCGABAR_ARV", "UCGABAR_WAIT"}
NO_RESULT = {"BAR", "BRA", "BSSY", "BSYNC", "CALL", "CCTL", "DEPBAR", "EXIT", "LDGDEPBAR", "LDGSTS"}
NO_RESULT |= {"MEMBAR", "NOP", "RET", "ST", "STG", "STL", "STS", "WARPSYNC", "YIELD"}
REGISTER = re.compile(r"(?<![\w.])(U?)([RP])(\d+)(?:\.(64))?")
PREDICATE = re.compile(r"!?U?P(\d|T)")
# In a set of bits, predicates lie behind the registers, and behind both what was written under a
# predicate.
SHIFT, APART = 256, 264


def bits(text: str, count: int = 1) -> int:
    """Returns the set of registers and predicates in an operand, each with those that follow it."""
    found = 0
    for uniform, kind, number, wide in REGISTER.findall(text):
        if not uniform:
            at = int(number) + (SHIFT if kind == "P" else 0)
            found |= (1 << (2 if wide else count)) - 1 << at if kind == "R" else 1 << at
    return found


def width(instruction: Instruction) -> int:
    """Returns the number of registers of the result."""
    name, suffixes = instruction.name, instruction.suffixes
    if name in ("HMMA", "LDSM") or "128" in suffixes:
        return 4
    wide = {"64", "WIDE", "F64", "S64", "U64"} & set(suffixes)
    return 2 if wide or name[0] == "D" or name == "CS2R" else 1


def split(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Returns the operands that an instruction writes, and those that it reads."""
    name, operands = instruction.name, instruction.operands
    if name in NO_RESULT:
        return [], list(operands)
    if name == "R2P":
        return [f"P{i}" for i in range(7)], list(operands[1:])
    if name == "P2R":
        return list(operands[:1]), [*operands[1:], *(f"P{i}" for i in range(7))]
    at = 0
    while at < len(operands) and PREDICATE.fullmatch(operands[at]):
        at += 1
    if "SETP" in name or name in ("PLOP3", "FCHK"):
        at = min(at, 2) if name != "FCHK" else 1
    else:
        at += 1
        while at < len(operands) and re.fullmatch(r"P(\d|T)", operands[at]):  # carries
            at += 1
    return list(operands[:at]), list(operands[at:])


class Flow:
    """Holds the instructions of a kernel and finds those that may follow each."""

    def __init__(self, body: Sequence[Instruction]) -> None:
        self.body = body
        self.at = {instruction.address: n for n, instruction in enumerate(body)}
        self.returns = [n + 1 for n, i in enumerate(body) if i.name == "CALL"]

    def next(self, n: int, into_calls: bool) -> list[int]:
        """Returns the instructions that may follow, into what is called or behind it."""
        i = self.body[n]
        found = []
        if i.name == "BRA" and i.target is not None and not i.never:
            found.append(self.at[i.target])
            if not i.guard and "DIV" not in i.suffixes and len(i.operands) == 1:
                return found
        elif i.name == "CALL" and into_calls:
            return [self.at[int(i.operands[-1], 16)]]
        elif i.name == "RET":
            return self.returns if into_calls else []
        elif i.name == "EXIT" and not i.guard and len(i.operands) == 0:
            return []
        return [*found, n + 1] if n + 1 < len(self.body) else found

    def differing(self) -> list[int]:
        """Returns the set of registers that may differ between lanes before each instruction."""
        effects = self.effects()
        before = [-1] * len(self.body)  # -1: not reached
        before[0] = 0
        pending = [0]
        while pending:
            n = pending.pop()
            read, written, replaced, source = effects[n]
            state = before[n]
            if written:
                differs = source or read & state
                state &= ~replaced
                if differs:
                    state |= written
            for follower in self.next(n, True):
                known = before[follower]
                if known < 0 or known | state != known:
                    before[follower] = state if known < 0 else known | state
                    pending.append(follower)
        return [max(state, 0) for state in before]

    def effects(self) -> list[tuple[int, int, int, bool]]:
        """Returns what each instruction reads, writes and replaces, and whether its result differs.

        What is written under a predicate is kept apart too, and is read under the same one. So it
        does not matter there what the register held before.
        """
        found = []
        targets = {i.target for i in self.body} | {self.body[n].address for n in self.returns}
        apart: dict[str, int] = {}  # by predicate, the registers that were written under it
        for i in self.body:
            if i.address in targets:
                apart = {}
            operands, read_operands = split(i)
            written = read = 0
            for operand in operands:
                written |= bits(operand, width(i))
            for n, operand in enumerate(read_operands):
                addend = (
                    "WIDE" in i.suffixes and n == 2
                )  # of 64 bits, as what `D` instructions read
                count = 4 if i.name == "HMMA" else 2 if addend or i.name[0] == "D" else 1
                read |= bits(operand, count)
            own = apart.get(i.guard, 0) & read
            reads = read & ~own | own << APART | bits(i.guard)
            apart = {
                guard: registers & ~written
                for guard, registers in apart.items()
                if not bits(guard) & written
            }
            replaced = written
            if i.guard:
                replaced = written << APART
                apart[i.guard] = apart.get(i.guard, 0) | written
            source = i.name in ("SHFL", "VOTE") or (
                i.name == "S2R" and any(re.match("SR_(TID|LANE|.*MASK)", x) for x in read_operands)
            )
            if i.name == "SHF" and i.operands[1:3] == ("RZ", "0x5"):
                reads = bits(i.guard)  # the number of the warp
            found.append((reads, written | replaced, replaced, source))
        return found

    def apart(self) -> Iterator[Instruction]:
        """Yields the aligned instructions that some lanes of a warp may reach or run alone."""
        differing = self.differing()
        # Regions that are open, and those of them (-1: none) in which lanes have parted.
        start: tuple[int, tuple[str, ...], frozenset[int]] = (0, (), frozenset())
        seen, pending, wrong = {start}, [start], set()
        while pending:
            n, regions, parted = pending.pop()
            i = self.body[n]
            differs = bool(bits(i.guard) & differing[n])
            if i.name in ALIGNED and (parted or differs):
                wrong.add(n)
            if i.name == "BSSY":
                if i.operands[0] in regions:  # never closed: nothing brings its lanes together
                    depth = regions.index(i.operands[0])
                    regions = regions[:depth]
                    parted = frozenset(d if d < depth else -1 for d in parted)
                regions = (*regions, i.operands[0])
            elif i.name == "BSYNC":
                while regions:
                    *rest, last = regions
                    regions = tuple(rest)
                    if last == i.operands[0]:
                        break
                parted = frozenset(depth for depth in parted if depth < len(regions))
            elif i.name == "WARPSYNC":
                parted = frozenset()
            elif i.name == "BRA" and differs and "DIV" not in i.suffixes:
                parted |= {len(regions) - 1}
            for follower in self.next(n, False):
                state = (follower, regions, parted)
                if state not in seen:
                    seen.add(state)
                    pending.append(state)
        return (self.body[n] for n in sorted(wrong))
