# SPDX-License-Identifier: Apache-2.0
"""Gates on what a compiler may not do at a barrier. The parts of kernel_report.py use them.

interval   between two barriers of the main loop the code has as many ldmatrix, cp.async, stores
           into shared memory and mma as the cost_model.h of the kernel states: nothing has moved
apart      no lane is alone where an instruction needs its whole warp (sass_flow.py)
fences     the decode step has at most as many fences of the whole device, and invalidations of a
           cache, as its cost_model.h states: the barriers of a cluster come with them
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gates import Failure
from sass import Instruction

# Instructions that are counted, by their names in cost_model.h.
COUNTED = {"LDSM": "ldmatrix", "LDGSTS": "cp_async", "STS": "stores", "HMMA": "mma"}

Interval = dict[str, int]


def intervals(loop: Sequence[Instruction]) -> list[Interval]:
    """What is counted between the barriers of a loop, in the order of the code.

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
    """The gate of the intervals of a main loop."""
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
    """The gate of the instructions that lanes may reach alone."""
    found = list(apart)
    text = f"{where}, instructions that lanes may reach alone ({', '.join(found[:3])})"
    return [Failure("apart", text, len(found), "0")] if found else []


def fences(body: Iterable[Instruction]) -> dict[str, int]:
    """Fences of the device (MEMBAR.*.GPU), and invalidations of a cache (CCTL.IVALL)."""
    counts: Counter[str] = Counter()
    for i in body:
        if i.name == "MEMBAR" and {"GPU", "SYS"} & set(i.suffixes):
            counts["MEMBAR"] += 1
        elif i.name == "CCTL" and "IVALL" in i.suffixes:
            counts["CCTL"] += 1
    return dict(counts)


def check_fences(where: str, found: dict[str, int], limit: int) -> list[Failure]:
    """The gate of the fences."""
    return [
        Failure("fences", f"{where}, {name}", count, f"{limit}")
        for name, count in found.items()
        if count > limit
    ]


def stated_intervals(item: dict[str, Any]) -> list[Interval]:
    """What the header of a kernel states, as kernel_counts.cpp prints it."""
    return [
        {name: int(interval[name]) for name in COUNTED.values()} for interval in item["intervals"]
    ]
