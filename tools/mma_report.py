# SPDX-License-Identifier: Apache-2.0
"""The part of kernel_report.py about the kernels that use tensor cores and walk a sequence in
chunks: retention (chunkwise) and the gradient of log_decay (grad_log_decay).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ptxas_report
from barrier_gates import Interval, check_apart, check_intervals, intervals, stated_intervals
from gates import DTYPES, Failure, architecture_order, near, print_table
from sass import CLASSES, PADDING, Instruction, executed, main_loop, survey
from sass_flow import Flow

FAMILIES = ("chunkwise", "grad_log_decay")
COUNTS = (
    *("mma", "wavefronts", "ldmatrix", "cp_async", "stores", "loads"),
    *("barriers", "l2_bytes", "memory_bytes"),
)


class Kernel(NamedTuple):
    """An instantiation of a kernel for one architecture."""

    family: str
    dtype: str
    tile: int
    architecture: str

    def order(self) -> tuple[str, int, int, str]:
        """Returns the key that sorts kernels in tables."""
        return self.family, architecture_order(self.architecture), self.tile, self.dtype

    def __str__(self) -> str:
        return f"{self.family} {self.dtype} tile {self.tile} sm_{self.architecture}"


class Code(NamedTuple):
    """What the gates need to know about the code of a kernel."""

    loop: Counter[str]  # of a block and chunk: instructions of the main loop, by class
    intervals: list[Interval]
    apart: list[str]  # instructions that lanes may reach alone


Items = dict[tuple[str, str, int], dict[str, Any]]  # family, dtype, tile
Codes = dict[Kernel, Code]


def kernel_of(mangled: str, architecture: str) -> Kernel | None:
    """Returns the instantiation that a mangled name belongs to."""
    families = "|".join(FAMILIES)
    found = re.search(rf"\d({families})_kernelILN\w*?5DTypeE(\d)ELi(\d+)E", mangled)
    return Kernel(found[1], DTYPES[int(found[2])], int(found[3]), architecture) if found else None


def code_of(
    architecture: str, mangled: str, body: Sequence[Instruction], items: Items
) -> tuple[Kernel, Code] | None:
    """Returns the instantiation that a name belongs to, and its code."""
    kernel = kernel_of(mangled, architecture)
    if kernel is None:
        return None
    loop, item = main_loop(body), items[kernel[:3]]
    counts = executed(loop, item["warps"], item["turns"])
    return kernel, Code(counts, intervals(loop), [i.text for i in Flow(body).apart()])


def codes(folder: Path, items: Items) -> Codes:
    """Returns the code of the kernels in `folder`."""
    found = (survey(folder, f"{x}_kernel", partial(code_of, items=items)) for x in FAMILIES)
    return dict(pair for pairs in found for pair in pairs if pair is not None)


def others_per_mma(counts: Counter[str]) -> float:
    """Returns the number of instructions per mma, except the mma and the padding."""
    return (counts.total() - counts["HMMA"] - counts[PADDING]) / counts["HMMA"]


def check_counts(item: dict[str, Any]) -> list[Failure]:
    """Checks what the SIMT emulator counted for a kernel, for any architecture."""
    where = f"{item['family']} {item['dtype']} tile {item['tile']}"
    token, chunk = f"{where}, per token and head", f"{where}, per chunk"
    counted, header = item["counted"], item["header"]
    l2_bytes = counted["l2_loaded"] + counted["l2_stored"]
    memory_bytes = counted["memory_bytes"]
    failures = [
        *near("bytes", f"{token}, L2", l2_bytes, header["l2_bytes"], 0.02),
        *near("bytes", f"{token}, device memory", memory_bytes, header["memory_bytes"], 0.02),
        *near("mma", chunk, counted["mma"], header["mma"], 0.05),
        *near("barriers", chunk, counted["barriers"], header["barriers"], 0),
    ]
    wavefronts, limit = counted["wavefronts"], header["wavefronts"]
    if wavefronts > limit:
        failures.append(Failure("wavefronts", chunk, wavefronts, f"{limit:g}"))
    if conflicts := wavefronts - counted["minimum"]:
        failures.append(Failure("wavefronts", f"{chunk}, bank conflicts", conflicts, "0"))
    return failures


def check_code(kernel: Kernel, code: Code, item: dict[str, Any]) -> list[Failure]:
    """Checks the code of a kernel."""
    loop = code.loop
    failures = check_intervals(str(kernel), code.intervals, stated_intervals(item))
    failures += check_apart(str(kernel), code.apart)
    mma = item["counted"]["mma"]
    where = f"{kernel}, mma in the code of the loop"
    if item["turns"]:
        failures += near("loop", where, loop["HMMA"], mma, 0)
    elif loop["HMMA"] < mma:
        failures.append(Failure("loop", where, loop["HMMA"], f"at least {mma:g}"))
    if loop["local"]:
        failures.append(Failure("spills", f"{kernel}, in the main loop", loop["local"], "0"))
    limit = item["header"]["others_per_mma"]
    if loop["HMMA"] and others_per_mma(loop) > limit:
        failures.append(
            Failure("others", f"{kernel}, per mma", others_per_mma(loop), f"{limit:.3g}")
        )
    return failures


def model(goal: dict[str, Any], item: dict[str, Any], loop: Counter[str]) -> dict[str, float]:
    """Returns nanoseconds per token and head by each resource, as if it were alone."""
    turns = math.ceil(goal["blocks"] / goal["multiprocessors"])
    chunks = math.ceil(goal["tokens"] / item["chunk"])
    # if a chunk took one cycle
    ns = turns * chunks / goal["clock_ghz"] / (goal["heads"] * goal["tokens"])
    return {
        "tensor": ns * item["counted"]["mma"] / goal["mma_per_cycle"],
        "shared": ns * item["counted"]["wavefronts"] / goal["wavefronts_per_cycle"],
        "issue": ns * loop.total() / goal["issue_per_cycle"],
        "L2": goal["l2_bytes"] / goal["l2_tbps"] / 1000,
        "memory": goal["memory_bytes"] / goal["memory_tbps"] / 1000,
    }


def check_model(goal: dict[str, Any], times: dict[str, float]) -> list[Failure]:
    """Checks a goal."""
    resource = max(times, key=lambda name: times[name])
    if times[resource] <= goal["ns"]:
        return []
    where = " ".join(str(goal[key]) for key in ("family", "device", "dtype"))
    where = f"{where} Dk={goal['head_dim_qk']:g} Dv={goal['head_dim_v']:g}, ns by {resource}"
    return [Failure("model", where, times[resource], f"{goal['ns']:g}")]


def print_counts(family: str, items: Iterable[dict[str, Any]]) -> None:
    """Prints what the SIMT emulator counted for a family."""
    rows = []
    for item in items:
        counted, header = dict(item["counted"]), item["header"]
        counted["l2_bytes"] = counted["l2_loaded"] + counted["l2_stored"]
        cells = [f"{counted[key]:g}/{header[key]:g}" for key in COUNTS]
        conflicts = counted["wavefronts"] - counted["minimum"]
        rows.append([f"{item['tile']} {item['shape']}", item["dtype"], *cells, f"{conflicts:g}"])
    print_table(
        f"{family}, counted / header: per block and full chunk; bytes per token and head",
        f"tile dtype {' '.join(COUNTS)} conflicts",
        rows,
    )


def print_intervals(family: str, found: Codes, items: Items) -> None:
    """Prints what the main loops have between their barriers, and for which architectures."""
    kernels: dict[tuple[str, str], set[str]] = {}
    for kernel, code in found.items():
        if kernel.family == family:
            text = " | ".join(",".join(map(str, interval.values())) for interval in code.intervals)
            name = f"{kernel.tile} {items[kernel[:3]]['shape']}"
            kernels.setdefault((name, text.replace(" ", "")), set()).add(kernel.architecture)
    print_table(
        f"{family}, between the barriers of the main loop: ldmatrix, cp.async, stores, mma",
        "tile intervals architectures",
        [
            [name, text, ",".join(sorted(a, key=architecture_order))]
            for (name, text), a in kernels.items()
        ],
    )


def print_loops(
    family: str,
    loops: Mapping[Kernel, Counter[str]],
    items: Items,
    entries: Sequence[re.Match[str]],
) -> None:
    """Prints the instructions in the main loops of a family."""
    compiled = {kernel_of(entry["name"], entry["arch"]): entry for entry in entries}
    classes = [*CLASSES, PADDING, "other"]
    rows = []
    for kernel, loop in loops.items():
        if kernel.family != family:
            continue
        item, entry = items[family, kernel.dtype, kernel.tile], compiled[kernel]
        rows.append(
            [
                f"sm_{kernel.architecture}",
                f"{kernel.tile} {item['shape']}",
                kernel.dtype,
                entry["registers"],
                ptxas_report.spills(entry),
                *(f"{loop[name] / item['warps']:.4g}" for name in classes),
                f"{loop.total() / item['warps']:.4g}",
                others_per_mma(loop) if loop["HMMA"] else "-",
                item["header"]["others_per_mma"],
            ]
        )
    print_table(
        f"{family}, instructions in the code of the main loop (of a warp and chunk; the mean of"
        " warps)",
        f"arch tile dtype registers spills {' '.join(classes)} all others/mma limit",
        rows,
    )


def report(folder: Path, entries: Sequence[re.Match[str]], counts: dict[str, Any]) -> list[Failure]:
    """Prints the tables. Returns the gates that fail."""
    items: Items = {
        (family, item["dtype"], item["tile"]): item
        for family in FAMILIES
        for item in counts[family]
    }
    failures = [failure for item in items.values() for failure in check_counts(item)]
    # The empty kernels of sm_75 are left out, and so are tiles that do not fit into the shared
    # memory of an architecture.
    limits = counts["shared_limits"]
    found = {
        kernel: code
        for kernel, code in sorted(codes(folder, items).items(), key=lambda pair: pair[0].order())
        if items[kernel[:3]]["shared_bytes"] <= limits.get(kernel.architecture, math.inf)
        and architecture_order(kernel.architecture) >= counts["min_capability"]
    }
    loops = {kernel: code.loop for kernel, code in found.items()}
    for kernel, code in found.items():
        failures += check_code(kernel, code, items[kernel[:3]])
    for family in FAMILIES:
        print_counts(family, counts[family])
        print_intervals(family, found, items)
        print_loops(family, loops, items, entries)

    rows = []
    columns = ("family", "device", "dtype", "head_dim_qk", "head_dim_v", "heads", "tokens", "tile")
    for goal in counts["goals"]:
        kernel = Kernel(*(goal[key] for key in Kernel._fields))
        if kernel not in loops:
            failures.append(Failure("model", f"{kernel}, compiled kernels", 0, "at least 1"))
            continue
        times = model(goal, items[kernel[:3]], loops[kernel])
        failures += check_model(goal, times)
        cells = [goal[key] for key in columns]
        rows.append([*cells, *times.values(), max(times.values()), goal["ns"]])
    print_table(
        "model (not measured), ns per token and head: each resource alone, the slowest, the goal",
        "kernel device dtype Dk Dv B*H T tile tensor shared issue L2 memory model goal",
        rows,
    )
    return failures
