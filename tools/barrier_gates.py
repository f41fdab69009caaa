# SPDX-License-Identifier: Apache-2.0
"""Checks what a compiler may not do at a barrier. The parts of kernel_report.py use these gates.

interval   Between two barriers of the main loop, the code has as many ldmatrix, cp.async, stores
           into shared memory and mma as the cost_model.h of the kernel states. So nothing has moved
           across a barrier.
apart      All lanes are together where an instruction needs the whole warp (sass_flow.py).
fences     The decode step has at most as many fences of the whole device, and invalidations of a
           cache, as its cost_model.h states. The barriers of a cluster come with them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gates import Failure
from sass import Instruction

# The instructions that are counted, and what cost_model.h calls them.
COUNTED = {"LDSM": "ldmatrix", "LDGSTS": "cp_async", "STS": "stores", "HMMA": "mma"}

Interval = dict[str, int]


def intervals(loop: Sequence[Instruction]) -> list[Interval]:
    """Returns what is counted between the barriers of a loop, in the order of the code.

    The first interval begins behind the first barrier. The last goes on at the loop's start.
    """
    found: list[Interval] = []
    start: Interval = dict.fromkeys(COUNTED.values(), 0)
    current = start
    for instruction in loop:
        if instruction.name == "BAR":
            current = dict.fromkeys(COUNTED.values(), 0)
            found.append(current)
        elif instruction.name in COUNTED and not instruction.never:
            current[COUNTED[instruction.name]] += 1
    if found:
        for name, count in start.items():
            found[-1][name] += count
    return found


def check_intervals(
    where: str, found: Sequence[Interval], stated: Sequence[Interval]
) -> list[Failure]:
    """Checks the intervals of a main loop."""
    if len(found) != len(stated):
        text = f"{where}, barriers in the code of the loop"
        return [Failure("interval", text, len(found), f"{len(stated)}")]
    return [
        Failure("interval", f"{where}, {name} behind barrier {n + 1}", own[name], f"{header[name]}")
        for n, (own, header) in enumerate(zip(found, stated, strict=True))
        for name in COUNTED.values()
        if own[name] != header[name]
    ]


def check_apart(where: str, apart: Iterable[str]) -> list[Failure]:
    """Checks that lanes reach no such instruction alone."""
    found = list(apart)
    text = f"{where}, instructions that lanes may reach alone ({', '.join(found[:3])})"
    return [Failure("apart", text, len(found), "0")] if found else []


def fences(body: Iterable[Instruction]) -> dict[str, int]:
    """Counts fences of the device (MEMBAR.*.GPU) and invalidations of a cache (CCTL.IVALL)."""
    counts: Counter[str] = Counter()
    for i in body:
        if i.name == "MEMBAR" and {"GPU", "SYS"} & set(i.suffixes):
            counts["MEMBAR"] += 1
        elif i.name == "CCTL" and "IVALL" in i.suffixes:
            counts["CCTL"] += 1
    return dict(counts)


def check_fences(where: str, found: dict[str, int], limit: int) -> list[Failure]:
    """Checks the number of fences."""
    return [
        Failure("fences", f"{where}, {name}", count, f"{limit}")
        for name, count in found.items()
        if count > limit
    ]


def stated_intervals(item: dict[str, Any]) -> list[Interval]:
    """Returns what the header of a kernel states, as kernel_counts.cpp prints it."""
    return [
        {name: int(interval[name]) for name in COUNTED.values()} for interval in item["intervals"]
    ]
