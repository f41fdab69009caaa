# SPDX-License-Identifier: Apache-2.0
"""Simulates how a multiprocessor schedules the instructions that warps execute.

Each instruction carries the schedule of the compiler in its control word: the cycles until the next
instruction of the warp may issue, the scoreboard that it holds until its result (write) or its
operands (read) are done with, and the scoreboards that it waits for. On top of that the simulation
has what the compiler cannot know: four schedulers of one instruction a cycle, the oldest warp
first; pipes that warps share; shared memory, 128 bytes a cycle; the port to L2; barriers.

Not in it: misses of the instruction cache, conflicts of register banks and of banks of shared
memory (the emulator finds none), other multiprocessors (the port has an equal share of L2).
"""

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from latencies import INTERVALS, LATENCIES, PORT, QUEUE
from sass import Instruction

SCHEDULERS = 4
PIPES = {
    "tensor": "HMMA|IMMA",
    "fp32": r"F(ADD|MUL|FMA)|H(ADD|MUL|FMA)2",
    "multiply": "IMAD",
    "special": "MUFU|FRND|FCHK",
    "fp64": r"D\w+",
    "convert": "F2FP|F2F|F2I|I2F|I2FP",
    "integer": r"LOP3|I?ADD3?|VIADD|LEA|SHF|ISETP|FSETP|F?SEL|PRMT|IABS|PLOP3|P2R|R2P|MOV|CS2R"
    r"|V?IMNMX|VIADDMNMX|FMNMX|HMNMX2|POPC|FLO",
    "memory": r"LDS|STS|LDSM|LDGSTS|LDG|STG|LD|ST|LDL|STL|SHFL|ATOM\w*|RED",
}
WAITS = ("BAR", "UCGABAR_WAIT")


class Cost(NamedTuple):
    """What the simulation needs to know about an instruction."""

    stall: int
    write: int  # scoreboard of the result, 7 for none
    read: int  # scoreboard of the operands, 7 for none
    wait: tuple[int, ...]
    pipe: str
    interval: float
    kind: str  # name of its latency
    wavefronts: int  # wavefronts of shared memory
    bytes: int  # bytes through the port to L2
    name: str
    threshold: int  # groups of copies that may be under way at a DEPBAR, else -1


def cost(i: Instruction, tensor: float) -> Cost:
    """Returns the cost of an instruction. An mma takes `tensor` cycles."""
    control, name = i.control, i.name
    pipe = "" if i.never else next((p for p, x in PIPES.items() if re.fullmatch(x, name)), "")
    width = next((int(x) for x in i.suffixes if x in ("64", "128")), 32)
    width = {"U8": 8, "S8": 8, "U16": 16, "S16": 16}.get(i.suffixes[0] if i.suffixes else "", width)
    width = next(({"U16": 16, "U8": 8}[x] for x in i.suffixes if x in ("U16", "U8")), width)
    wavefronts = 0
    if pipe == "memory":
        wavefronts = max(1, width // 32)
        if name == "LDSM":
            wavefronts = int(i.suffixes[-1])
    is_global = name in ("LDG", "STG", "LDGSTS", "LD", "ST") and not i.never
    kind = {
        **dict.fromkeys(("LDS", "LDSM"), "shared"),
        **dict.fromkeys(("LDG", "LD", "LDGSTS"), "global"),
        **dict.fromkeys(("LDL", "STL"), "local"),
        **dict.fromkeys(("LDC", "S2R", "S2UR", "ULDC", "R2UR"), "constant"),
        **dict.fromkeys(("SHFL",), "shuffle"),
        **dict.fromkeys(("MEMBAR", "ERRBAR", "CCTL"), "fence"),
    }.get(name, "fp64" if pipe == "fp64" else "special")
    threshold = -1
    if name == "DEPBAR":
        threshold = int(i.operands[1], 16) if len(i.operands) > 1 else 0
    waits = tuple(n for n in range(6) if control >> 11 + n & 1)
    if name == "DEPBAR":
        waits += (int(i.operands[0][2:]),)
    interval = tensor if pipe == "tensor" else INTERVALS[pipe].value if pipe else 0
    if pipe == "convert" and {"F64", "S64", "U64"} & set(i.suffixes):
        interval = INTERVALS["special"].value
    return Cost(
        max(1, control & 15),
        control >> 5 & 7,
        control >> 8 & 7,
        waits,
        pipe,
        interval,
        kind,
        wavefronts,
        4 * width if is_global else 0,
        name,
        threshold,
    )


class Result(NamedTuple):
    """The result of a simulation."""

    cycles: float
    issued: int
    busy: dict[str, float]  # cycles by pipe in the busiest quarter, of shared memory, of the port
    stalls: Counter[str]  # cycles of warps, by what they wait for


class Warp:
    """The state of a warp."""

    __slots__ = ("at", "boards", "copies", "cta", "number", "scheduler", "time", "trace")

    def __init__(
        self, number: int, scheduler: int, cta: int, trace: Sequence[int], time: float
    ) -> None:
        self.number, self.scheduler, self.cta, self.trace = number, scheduler, cta, trace
        self.at, self.time = 0, time
        self.boards: list[list[tuple[float, str]]] = [[] for _ in range(6)]
        self.copies = 0.0  # time at which all copies that were started are done


def simulate(
    costs: Sequence[Cost], traces: Sequence[Sequence[int]], resident: int, ctas: int, port: float
) -> Result:
    """Runs `ctas` blocks of warps with these traces, `resident` at a time.

    `port` is the number of bytes a cycle to and from L2. A trace has numbers of instructions,
    inverted (~n) where a predicate turns one off.
    """
    latency = {name: figure.value for name, figure in LATENCIES.items()}
    queue, port = QUEUE.value, min(port, PORT.value)
    pipes: list[dict[str, float]] = [dict.fromkeys(PIPES, 0.0) for _ in range(SCHEDULERS)]
    busy: list[dict[str, float]] = [dict.fromkeys(PIPES, 0.0) for _ in range(SCHEDULERS)]
    free = [0.0] * SCHEDULERS
    shared = link = shared_busy = link_busy = end = 0.0
    stalls: Counter[str] = Counter()
    heap: list[tuple[float, int]] = []
    warps: dict[int, Warp] = {}
    live: dict[int, int] = {}
    waiting: dict[tuple[int, str], list[Warp]] = {}
    started = issued = 0

    def start(time: float) -> None:
        nonlocal started
        for n, trace in enumerate(traces):
            number = started * len(traces) + n
            warp = Warp(number, number % SCHEDULERS, started, trace, time)
            warps[number] = warp
            heapq.heappush(heap, (time, number))
        live[started] = len(traces)
        started += 1

    def release(cta: int, time: float) -> None:
        for key in [key for key in waiting if key[0] == cta]:
            if len(waiting[key]) == live[cta]:
                delay = latency["cluster" if key[1].startswith("U") else "barrier"]
                for warp in waiting.pop(key):
                    stalls["barrier"] += int(time + delay - warp.time)
                    warp.time = time + delay
                    heapq.heappush(heap, (warp.time, warp.number))

    for _ in range(min(resident, ctas)):
        start(0.0)
    while heap:
        time, number = heapq.heappop(heap)
        warp = warps[number]
        n = warp.trace[warp.at]
        off = n < 0
        c = costs[~n if off else n]
        scheduler = warp.scheduler
        ready, reason = warp.time, "dependency"
        for board in c.wait:
            entries = warp.boards[board]
            if entries:
                last = len(entries) - max(c.threshold, 0)
                for done, kind in entries[: max(last, 0)] if c.threshold >= 0 else entries:
                    if done > ready:
                        ready, reason = done, kind
                if c.threshold < 0 and ready <= time:
                    entries.clear()
        if free[scheduler] > ready:
            ready, reason = free[scheduler], "issue"
        if c.pipe and not off:
            at = pipes[scheduler][c.pipe]
            if at > ready:
                ready, reason = at, c.pipe
            if c.wavefronts and shared - queue > ready:
                ready, reason = shared - queue, "shared memory"
        if ready > time:
            stalls[reason] += int(ready - time)
            heapq.heappush(heap, (ready, number))
            continue
        # The instruction issues.
        issued += 1
        free[scheduler] = time + 1
        warp.time = time + c.stall
        if c.name == "MEMBAR":
            warp.time = max(time, link) + latency["fence"]
            stalls["fence"] += int(warp.time - time)
        warp.at += 1
        if not off:
            done = time + latency[c.kind]
            if c.pipe:
                pipes[scheduler][c.pipe] = time + c.interval
                busy[scheduler][c.pipe] += c.interval
            if c.wavefronts:
                shared = max(shared, time) + c.wavefronts
                shared_busy += c.wavefronts
                done = shared + latency[c.kind]
            if c.bytes:
                link = max(link, time) + c.bytes / port
                link_busy += c.bytes / port
                done = max(done, link + latency["global"])
            if c.name == "LDGSTS":
                warp.copies = max(warp.copies, done)
            elif c.name == "LDGDEPBAR":
                done = warp.copies
            if c.write < 6:
                kind = "copies" if c.name == "LDGDEPBAR" else f"{c.kind} result"
                warp.boards[c.write].append((done, kind))
            if c.read < 6:
                held = max(shared if c.wavefronts else time, time) + latency["operands"]
                warp.boards[c.read].append((held, "operands"))
            if c.name in WAITS:
                key = (warp.cta, c.name)
                waiting.setdefault(key, []).append(warp)
        if warp.at == len(warp.trace):
            end = max(end, warp.time)
            cta = warp.cta
            live[cta] -= 1
            del warps[number]
            if not live[cta]:
                if started < ctas:
                    start(warp.time)
            else:
                release(cta, warp.time)
        elif c.name in WAITS and not off:
            release(warp.cta, time)
        else:
            heapq.heappush(heap, (warp.time, number))
    most = {name: max(quarter[name] for quarter in busy) for name in PIPES}
    return Result(end, issued, {**most, "shared memory": shared_busy, "L2": link_busy}, stalls)
