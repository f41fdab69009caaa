# SPDX-License-Identifier: Apache-2.0
"""What the kernels cost, without a GPU, and gates on it.

kernel_report.py KERNELS COUNTS

KERNELS is the folder that `make kernels` builds in: objects, and ptxas's output beside them. COUNTS
holds the JSON that tests/kernels/kernel_counts.cpp prints: what the emulator counts, what the
kernels' headers state, and the goals. Prints a table for each kernel family and the model's time
beside each goal. Exit status 1, and a line for each gate that fails, where

  bytes      differ from the header's by more than 2%
  mma        per chunk differ from the header's by more than 5%
  wavefronts of shared memory per chunk exceed the header's, or there are bank conflicts
  barriers   per chunk differ from the header's
  spills     there are any
  loop       the main loop's code has fewer mma than a warp executes per chunk: not the whole chunk
  others     per mma, instructions of the main loop exceed the header's limit; not counting ptxas's
             padding, which takes its time in the model
  model      nanoseconds per token and head exceed the goal; of the gated group norm, a row's
             instructions or its bytes in flight do not keep up with the device memory

and what step_report.py has of the step of decoding.

Instructions are those of the main loop's code, not those executed: what a branch leaves out counts.
"""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
import ptxas_report

import step_report
from sass import CLASSES, PADDING, classify, disassemble, main_loop

DTYPES = ("fp32", "fp16", "bf16")
COUNTS = (
    *("mma", "wavefronts", "ldmatrix", "cp_async", "stores", "loads"),
    *("barriers", "l2_bytes", "memory_bytes"),
)


class Kernel(NamedTuple):
    """An instantiation of the chunkwise kernel for one architecture."""

    dtype: str
    tile: int
    architecture: str

    def order(self) -> tuple[int, int, str]:
        """Sorts kernels in tables."""
        return architecture_order(self.architecture), self.tile, self.dtype

    def __str__(self) -> str:
        return f"chunkwise {self.dtype} tile {self.tile} sm_{self.architecture}"


class NormKernel(NamedTuple):
    """An instantiation of the gated group norm for one architecture."""

    direction: str
    dtype: str
    vector: int
    threads: int
    architecture: str


class Failure(NamedTuple):
    """A gate that does not hold."""

    gate: str
    where: str
    value: float
    limit: str

    def __str__(self) -> str:
        return f"FAIL {self.gate}: {self.where}: {self.value:.6g}, limit {self.limit}"


def chunkwise_kernel(mangled: str, architecture: str) -> Kernel | None:
    """The instantiation that a mangled name is of."""
    found = re.search(r"\d+chunkwise_kernelILN\w*?5DTypeE(\d)ELi(\d+)E", mangled)
    return Kernel(DTYPES[int(found[1])], int(found[2]), architecture) if found else None


def loop_counts(folder: Path) -> dict[Kernel, Counter[str]]:
    """Instructions by class in the main loops of the chunkwise kernels under `folder`."""
    return {
        kernel: Counter(map(classify, main_loop(body)))
        for architecture, mangled, body in disassemble(folder, "chunkwise_kernel")
        if (kernel := chunkwise_kernel(mangled, architecture))
    }


def norm_counts(folder: Path) -> dict[NormKernel, Counter[str]]:
    """Instructions by class for a row of the gated group norm: of the loop over rows if any."""
    counts = {}
    for architecture, mangled, body in disassemble(folder, "gated_group_norm"):
        found = re.search(r"norm_(back)?\w*kernelILN\w*?5DTypeE(\d)ELi(\d+)ELi(\d+)E", mangled)
        if found:
            kernel = NormKernel(
                "backward" if found[1] else "forward",
                DTYPES[int(found[2])],
                int(found[3]),
                int(found[4]),
                architecture,
            )
            counts[kernel] = Counter(map(classify, main_loop(body, "LDG") or body))
    return counts


def others_per_mma(counts: Counter[str]) -> float:
    """Instructions beside the mma and padding, to an mma."""
    return (counts.total() - counts["HMMA"] - counts[PADDING]) / counts["HMMA"]


def near(gate: str, where: str, value: float, stated: float, share: float) -> list[Failure]:
    """The gate that a value is what a header states, but for a share of it."""
    if abs(value - stated) <= share * stated:
        return []
    return [Failure(gate, where, value, f"{stated:g}" + (f" within {share:.0%}" if share else ""))]


def check_counts(item: dict[str, Any]) -> list[Failure]:
    """The gates of what the emulator counted of a chunkwise kernel, for any architecture."""
    where = f"chunkwise {item['dtype']} tile {item['tile']}"
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


def check_norm(item: dict[str, Any]) -> list[Failure]:
    """The gates of the gated group norm's bytes: what it asks for, what device memory moves."""
    where = f"gated_group_norm {item['direction']} {item['dtype']} V={item['value_dim']}, per row"
    counted, header = item["counted"], item["header"]
    return [
        failure
        for key in ("loaded", "stored", "memory_bytes")
        for failure in near("bytes", f"{where}, {key}", counted[key], header[key], 0.02)
    ]


def norm_model(
    item: dict[str, Any], device: dict[str, Any], code: Counter[str]
) -> dict[str, float]:
    """Cycles of a multiprocessor per row, by each resource alone; bytes in flight, and needed."""
    clock = device["multiprocessors"] * device["clock_ghz"]
    warps = item["threads"] / 32
    return {
        "memory": item["header"]["memory_bytes"] * clock / device["memory_tbps"] / 1000,
        "issue": (code.total() - code[PADDING]) * warps / device["issue_per_cycle"],
        "MUFU": code["MUFU"] * warps * 2,  # 16 lanes a cycle
        "in_flight": item["rows"] * item["header"]["loaded"],
        # Little's law.
        "needed": device["memory_tbps"]
        * 1000
        * device["memory_latency_ns"]
        / device["multiprocessors"],
    }


def check_norm_model(where: str, times: dict[str, float]) -> list[Failure]:
    """The gate that memory bounds the gated group norm."""
    failures = [
        Failure("model", f"{where}, cycles per row by {key}", times[key], f"{times['memory']:.4g}")
        for key in ("issue", "MUFU")
        if times[key] > times["memory"]
    ]
    if times["in_flight"] < times["needed"]:
        limit = f"at least {times['needed']:.0f}"
        failures.append(Failure("model", f"{where}, bytes in flight", times["in_flight"], limit))
    return failures


def check_rotary(item: dict[str, Any]) -> list[Failure]:
    """The gate of the rotary kernel's bytes."""
    where = f"rotary {item['style']} {item['dtype']}, per token and head, device memory"
    counted, header = (item[key]["memory_bytes"] for key in ("counted", "header"))
    return near("bytes", where, counted, header, 0.02)


def check_registers(entries: Iterable[re.Match[str]], names: dict[str, str]) -> list[Failure]:
    """The gate of ptxas's spills."""
    return [
        Failure("spills", f"{names[m['name']]} sm_{m['arch']}, bytes", ptxas_report.spills(m), "0")
        for m in entries
        if ptxas_report.spills(m)
    ]


def check_loop(kernel: Kernel, loop: Counter[str], item: dict[str, Any]) -> list[Failure]:
    """The gates of a kernel's main loop."""
    failures = []
    executed = item["counted"]["mma"] / item["warps"]
    if loop["HMMA"] < executed:
        where = f"{kernel}, mma in the code of the loop"
        failures.append(Failure("loop", where, loop["HMMA"], f"at least {executed:g}"))
    if loop["local"]:
        failures.append(Failure("spills", f"{kernel}, in the main loop", loop["local"], "0"))
    limit = item["header"]["others_per_mma"]
    if loop["HMMA"] and others_per_mma(loop) > limit:
        failures.append(
            Failure("others", f"{kernel}, per mma", others_per_mma(loop), f"{limit:.3g}")
        )
    return failures


def model(goal: dict[str, Any], item: dict[str, Any], loop: Counter[str]) -> dict[str, float]:
    """Nanoseconds per token and head, by each resource as if it were alone."""
    turns = math.ceil(goal["blocks"] / goal["multiprocessors"])
    chunks = math.ceil(goal["tokens"] / item["chunk"])
    # of one cycle a chunk
    ns = turns * chunks / goal["clock_ghz"] / (goal["heads"] * goal["tokens"])
    instructions = loop.total() * item["warps"]
    return {
        "tensor": ns * item["counted"]["mma"] / goal["mma_per_cycle"],
        "shared": ns * item["counted"]["wavefronts"] / goal["wavefronts_per_cycle"],
        "issue": ns * instructions / goal["issue_per_cycle"],
        "L2": goal["l2_bytes"] / goal["l2_tbps"] / 1000,
        "memory": goal["memory_bytes"] / goal["memory_tbps"] / 1000,
    }


def check_model(goal: dict[str, Any], times: dict[str, float]) -> list[Failure]:
    """The gate of a goal."""
    resource = max(times, key=lambda name: times[name])
    if times[resource] <= goal["ns"]:
        return []
    where = f"{goal['device']} {goal['dtype']} I={goal['inner']:g} O={goal['outer']:g}"
    limit = f"{goal['ns']:g}"
    return [Failure("model", f"{where}, ns by {resource}", times[resource], limit)]


def print_table(title: str, header: str, rows: Iterable[Sequence[object]]) -> None:
    """Print aligned columns: the first to the left, others to the right."""
    cells = [header.split()]
    for row in rows:
        cells.append([f"{x:.4g}" if isinstance(x, float) else str(x) for x in row])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(title)
    for first, *rest in cells:
        others = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        print("  ".join([f"{first:{widths[0]}}", *others]))
    print()


def architecture_order(architecture: str) -> int:
    """Sorts architectures by number."""
    return int(re.sub(r"\D", "", architecture))


def print_counts(items: Iterable[dict[str, Any]]) -> None:
    """Print what the emulator counted of the chunkwise kernels."""
    rows = []
    for item in items:
        counted, header = dict(item["counted"]), item["header"]
        counted["l2_bytes"] = counted["l2_loaded"] + counted["l2_stored"]
        cells = [f"{counted[key]:g}/{header[key]:g}" for key in COUNTS]
        conflicts = counted["wavefronts"] - counted["minimum"]
        rows.append([f"{item['tile']} {item['shape']}", item["dtype"], *cells, f"{conflicts:g}"])
    print_table(
        "chunkwise, counted / header: per block and full chunk; bytes per token and head",
        f"tile dtype {' '.join(COUNTS)} conflicts",
        rows,
    )


def print_loops(
    loops: dict[Kernel, Counter[str]],
    items: dict[tuple[str, int], dict[str, Any]],
    entries: Iterable[re.Match[str]],
) -> None:
    """Print the instructions of the chunkwise kernels' main loops."""
    compiled = {chunkwise_kernel(entry["name"], entry["arch"]): entry for entry in entries}
    classes = [*CLASSES, PADDING, "other"]
    rows = []
    for kernel, loop in loops.items():
        item, entry = items[kernel.dtype, kernel.tile], compiled[kernel]
        rows.append(
            [
                f"sm_{kernel.architecture}",
                f"{kernel.tile} {item['shape']}",
                kernel.dtype,
                entry["registers"],
                ptxas_report.spills(entry),
                *(loop[name] for name in classes),
                loop.total(),
                others_per_mma(loop) if loop["HMMA"] else "-",
                item["header"]["others_per_mma"],
            ]
        )
    print_table(
        "chunkwise, instructions in the code of the main loop (static, of a warp)",
        f"arch tile dtype registers spills {' '.join(classes)} all others/mma limit",
        rows,
    )


def print_registers(family: str, entries: Sequence[re.Match[str]], names: dict[str, str]) -> None:
    """Print the registers of the kernels whose names start with `family`."""
    architectures = sorted({entry["arch"] for entry in entries}, key=architecture_order)
    rows = []
    for name in sorted({n for n in names.values() if n.startswith(family)}):
        found = {m["arch"]: m for m in entries if names[m["name"]] == name}
        shared = max(int(m["shared"] or 0) for m in found.values())
        spilled = sum(map(ptxas_report.spills, found.values()))
        registers = (found[a]["registers"] if a in found else "-" for a in architectures)
        rows.append([name, shared, spilled, *registers])
    columns = " ".join(f"sm_{a}" for a in architectures)
    print_table(f"{family}, registers", f"kernel shared-bytes spills {columns}", rows)


def print_norm(items: Iterable[dict[str, Any]]) -> None:
    """Print the bytes of the gated group norm kernels."""
    keys = ("loaded", "stored", "memory_bytes")
    print_table(
        "gated_group_norm, counted / header: bytes per row",
        f"direction dtype V {' '.join(keys)}",
        [
            [item["direction"], item["dtype"], item["value_dim"], *cells]
            for item in items
            for cells in [[f"{item['counted'][k]:g}/{item['header'][k]:g}" for k in keys]]
        ],
    )


def print_rotary(items: Iterable[dict[str, Any]]) -> None:
    """Print the bytes of the rotary kernel."""
    print_table(
        "rotary, counted / header: bytes of device memory per token and head",
        "style dtype K bytes",
        [
            [item["style"], item["dtype"], item["key_dim"], "/".join(values)]
            for item in items
            for values in [[f"{item[key]['memory_bytes']:g}" for key in ("counted", "header")]]
        ],
    )


def report_norm(folder: Path, counts: dict[str, Any]) -> list[Failure]:
    """Print the model of the gated group norm; the gates that fail."""
    failures, rows = [], []
    code = norm_counts(folder)
    for device in counts["devices"]:
        for item in counts["gated_group_norm"]:
            fields = {**item, "architecture": device["architecture"]}
            kernel = NormKernel(**{key: fields[key] for key in NormKernel._fields})
            cells = [device["device"], kernel.direction, kernel.dtype, item["value_dim"]]
            where = "gated_group_norm " + " ".join(map(str, cells))
            if kernel not in code:
                failures.append(Failure("model", f"{where}, compiled kernels", 0, "at least 1"))
                continue
            times = norm_model(item, device, code[kernel])
            failures += check_norm_model(where, times)
            kib = [f"{times[key] / 1024:.1f}" for key in ("in_flight", "needed")]
            rows.append([*cells, *(times[key] for key in ("memory", "issue", "MUFU")), *kib])
    print_table(
        "gated_group_norm, model (not measured), of a multiprocessor: cycles per row by each"
        " resource alone; KiB in flight, and what hides the latency",
        "device direction dtype V memory issue MUFU in-flight needed",
        rows,
    )
    return failures


def report(folder: Path, counts: dict[str, Any]) -> list[Failure]:
    """Print the tables; the gates that fail."""
    entries = ptxas_report.read(folder)
    names = ptxas_report.demangle(sorted({entry["name"] for entry in entries}))
    items = {(item["dtype"], item["tile"]): item for item in counts["chunkwise"]}
    failures = [failure for item in items.values() for failure in check_counts(item)]
    failures += [failure for item in counts["gated_group_norm"] for failure in check_norm(item)]
    failures += [failure for item in counts["rotary"] for failure in check_rotary(item)]
    failures += check_registers(entries, names)

    # Not the empty kernels of sm_75, nor tiles that an architecture's shared memory does not hold.
    limits = counts["shared_limits"]
    loops = {
        kernel: loop
        for kernel, loop in sorted(loop_counts(folder).items(), key=lambda pair: pair[0].order())
        if items[kernel.dtype, kernel.tile]["shared_bytes"]
        <= limits.get(kernel.architecture, math.inf)
        and architecture_order(kernel.architecture) >= counts["min_capability"]
    }
    for kernel, loop in loops.items():
        failures += check_loop(kernel, loop, items[kernel.dtype, kernel.tile])
    print_counts(items.values())
    print_loops(loops, items, entries)
    print_registers("log_decay", entries, names)
    print_registers("gated_group_norm", entries, names)
    print_norm(counts["gated_group_norm"])
    print_registers("rotary", entries, names)
    print_rotary(counts["rotary"])
    failures += report_norm(folder, counts)

    rows = []
    for goal in counts["goals"]:
        kernel = Kernel(goal["dtype"], goal["tile"], goal["architecture"])
        shape = [
            goal[key] for key in ("device", "dtype", "inner", "outer", "heads", "tokens", "tile")
        ]
        if kernel not in loops:
            failures.append(Failure("model", f"{kernel}, compiled kernels", 0, "at least 1"))
            continue
        times = model(goal, items[kernel.dtype, kernel.tile], loops[kernel])
        failures += check_model(goal, times)
        rows.append([*shape, *times.values(), max(times.values()), goal["ns"]])
    print_table(
        "model (not measured), ns per token and head: each resource alone, the slowest, the goal",
        "device dtype I O B*H T tile tensor shared issue L2 memory model goal",
        rows,
    )
    step_report.report(counts, lambda *gate: failures.append(Failure(*gate)), print_table)
    return failures


def main(arguments: Sequence[str]) -> int:
    """The program; its exit status."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder, counts = Path(arguments[0]), Path(arguments[1])
    try:
        failures = report(folder, json.loads(counts.read_text()))
    except FileNotFoundError as error:
        if error.filename != "cuobjdump":
            raise
        sys.exit("kernel_report: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    for failure in failures:
        print(failure)
    print(f"{len(failures)} gates fail" if failures else "all gates hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
