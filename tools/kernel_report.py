# SPDX-License-Identifier: Apache-2.0
"""Reports what the CUDA kernels cost, without a GPU, and checks it against gates.

kernel_report.py KERNELS COUNTS

KERNELS is the folder in which `make kernels` builds: it has objects and the output of ptxas. COUNTS
is a file with the JSON that tests/kernels/cuda/kernel_counts.cpp prints: what the SIMT emulator
counts, what the cost_model.h of each kernel (the header) states, and the goals. The program prints
a table for each kernel family, and the time of the model next to each goal. These are the gates:

  bytes      They differ from those in the header by at most 2%.
  mma        The number per chunk differs from that in the header by at most 5%.
  wavefronts Those of shared memory per chunk are at most those in the header. There are no bank
             conflicts.
  barriers   The number per chunk is that in the header.
  spills     There are none.
  loop       The code of the main loop has at least the mma that a chunk executes, so it is the
             whole chunk. If it has inner loops with mma, it has exactly as many mma. Each inner
             loop counts as often as it turns.
  interval   Between two barriers of the main loop, the code has what the header states.
  apart      All lanes are together where an instruction needs the whole warp (barrier_gates.py).
  others     The instructions of the main loop per mma are within the limit in the header. The
             padding of ptxas does not count here, but it takes its time in the model.
  model      Nanoseconds per token and head are within the goal. For the gated group norm, the
             instructions and the bytes in flight of a row keep up with the device memory.

step_report.py has those of the decode step, and estimate_report.py those of the simulated time of
every kernel. The program prints a line for each gate that fails. The exit status is then 1.

Instructions are counted in the code of the main loop, not in its execution, so those that a branch
skips count. Inner loops without mma count once, because the model leaves out copies of 8 bytes.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import estimate_report
import mma_report
import ptxas_report
import step_report
from gates import DTYPES, Failure, architecture_order, near, print_table
from sass import PADDING, Instruction, classify, main_loop, survey


class NormKernel(NamedTuple):
    """An instantiation of the gated group norm for one architecture."""

    direction: str
    dtype: str
    vector: int
    threads: int
    architecture: str


def norm_code(
    architecture: str, mangled: str, body: Sequence[Instruction]
) -> tuple[NormKernel, Counter[str]] | None:
    """Returns the instructions by class for a row of the gated group norm. If there is a loop over
    rows, they are those of the loop.
    """
    found = re.search(r"norm_(back)?\w*kernelILN\w*?5DTypeE(\d)ELi(\d+)ELi(\d+)E", mangled)
    if not found:
        return None
    kernel = NormKernel(
        "backward" if found[1] else "forward",
        DTYPES[int(found[2])],
        int(found[3]),
        int(found[4]),
        architecture,
    )
    return kernel, Counter(map(classify, main_loop(body, "LDG") or body))


def norm_counts(folder: Path) -> dict[NormKernel, Counter[str]]:
    """Returns these instructions for each instantiation of the gated group norm."""
    return dict(x for x in survey(folder, "gated_group_norm", norm_code) if x is not None)


def check_norm(item: dict[str, Any]) -> list[Failure]:
    """Checks the bytes of the gated group norm: those asked for and those of device memory."""
    where = f"gated_group_norm {item['direction']} {item['dtype']} Dv={item['head_dim_v']}, per row"
    counted, header = item["counted"], item["header"]
    return [
        failure
        for key in ("loaded", "stored", "memory_bytes")
        for failure in near("bytes", f"{where}, {key}", counted[key], header[key], 0.02)
    ]


def norm_model(
    item: dict[str, Any], device: dict[str, Any], code: Counter[str]
) -> dict[str, float]:
    """Returns the cycles of a multiprocessor per row by each resource alone, and the bytes that are
    and must be in flight.
    """
    clock = device["multiprocessors"] * device["clock_ghz"]
    warps = item["threads"] / 32
    return {
        "memory": item["header"]["memory_bytes"] * clock / device["memory_tbps"] / 1000,
        "issue": (code.total() - code[PADDING]) * warps / device["issue_per_cycle"],
        "MUFU": code["MUFU"] * warps * 2,  # 16 lanes a cycle
        "in_flight": item["rows"] * item["header"]["loaded"],
        # This is Little's law.
        "needed": device["memory_tbps"]
        * 1000
        * device["memory_latency_ns"]
        / device["multiprocessors"],
    }


def check_norm_model(where: str, times: dict[str, float]) -> list[Failure]:
    """Checks that memory bounds the gated group norm."""
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
    """Checks the bytes of the rotary kernel."""
    where = f"rotary {item['style']} {item['dtype']}, per token and head, device memory"
    counted, header = (item[key]["memory_bytes"] for key in ("counted", "header"))
    return near("bytes", where, counted, header, 0.02)


def check_registers(entries: Iterable[re.Match[str]], names: dict[str, str]) -> list[Failure]:
    """Checks the spills that ptxas reports."""
    return [
        Failure("spills", f"{names[m['name']]} sm_{m['arch']}, bytes", ptxas_report.spills(m), "0")
        for m in entries
        if ptxas_report.spills(m)
    ]


def print_registers(family: str, entries: Sequence[re.Match[str]], names: dict[str, str]) -> None:
    """Prints the registers of the kernels whose names start with `family`."""
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
    """Prints the bytes of the gated group norm kernels."""
    keys = ("loaded", "stored", "memory_bytes")
    print_table(
        "gated_group_norm, counted / header: bytes per row",
        f"direction dtype Dv {' '.join(keys)}",
        [
            [item["direction"], item["dtype"], item["head_dim_v"], *cells]
            for item in items
            for cells in [[f"{item['counted'][k]:g}/{item['header'][k]:g}" for k in keys]]
        ],
    )


def print_rotary(items: Iterable[dict[str, Any]]) -> None:
    """Prints the bytes of the rotary kernel."""
    print_table(
        "rotary, counted / header: bytes of device memory per token and head",
        "style dtype Dk bytes",
        [
            [item["style"], item["dtype"], item["head_dim_qk"], "/".join(values)]
            for item in items
            for values in [[f"{item[key]['memory_bytes']:g}" for key in ("counted", "header")]]
        ],
    )


def report_norm(folder: Path, counts: dict[str, Any]) -> list[Failure]:
    """Prints the model of the gated group norm. Returns the gates that fail."""
    failures, rows = [], []
    code = norm_counts(folder)
    for device in counts["devices"]:
        for item in counts["gated_group_norm"]:
            fields = {**item, "architecture": device["architecture"]}
            kernel = NormKernel(**{key: fields[key] for key in NormKernel._fields})
            cells = [device["device"], kernel.direction, kernel.dtype, item["head_dim_v"]]
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
        "device direction dtype Dv memory issue MUFU in-flight needed",
        rows,
    )
    return failures


def report(folder: Path, counts: dict[str, Any]) -> list[Failure]:
    """Prints the tables. Returns the gates that fail."""
    entries = ptxas_report.read(folder)
    names = ptxas_report.demangle(sorted({entry["name"] for entry in entries}))
    failures = mma_report.report(folder, entries, counts)
    failures += [failure for item in counts["gated_group_norm"] for failure in check_norm(item)]
    failures += [failure for item in counts["rotary"] for failure in check_rotary(item)]
    failures += check_registers(entries, names)
    print_registers("gated_group_norm", entries, names)
    print_norm(counts["gated_group_norm"])
    print_registers("rotary", entries, names)
    print_rotary(counts["rotary"])
    failures += report_norm(folder, counts)
    step_report.report(counts, lambda *gate: failures.append(Failure(*gate)), print_table)
    failures += step_report.check_code(folder, counts["decode_step_fences"])
    failures += estimate_report.report(folder, counts)
    return failures


def main(arguments: Sequence[str]) -> int:
    """Runs the program. Returns its exit status."""
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
