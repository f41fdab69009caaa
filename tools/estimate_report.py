# SPDX-License-Identifier: Apache-2.0
"""The part of kernel_report.py that estimates how long kernels take on an H100.

The model of the other parts is a bound: the busiest resource, as if it were never idle. The
estimate is the greatest of

  simulation  of the compiled instructions on one multiprocessor (schedule.py), with the arguments
              and the grid of a real launch
  L2          the bytes through L2 at its bandwidth
  memory      the bytes of device memory at what a stream reaches of its bandwidth

For each launch that kernel_launches.cpp describes, it prints `estimate NAME ns=X bound=Y goal=Z`.
Times are in nanoseconds per token and head, or per batch entry and head for the decode step. The
lines below show what warps wait for. It checks these gates:

  estimate   The estimate is at most the goal. Goals lie just above what the kernels give today.
  executed   The warps execute per chunk as much as kernel_counts counts in the SIMT emulator.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ptxas_report
from gates import Failure
from latencies import STREAM
from mma_report import FAMILIES, kernel_of
from sass import Instruction, disassemble, objects, parse_sass
from sass_execute import Program, constant_bank, traces
from schedule import Cost, Result, cost, simulate

DEVICE = "H100"
# An estimate must not exceed so many nanoseconds.
GOALS = {
    **{"chunkwise_forward": 2.2, "chunkwise_grad_v": 2.2},
    **{"chunkwise_grad_q": 2.7, "chunkwise_grad_k": 2.7},
    **{"chunkwise_forward_128": 1.5, "chunkwise_forward_64": 1.03},
    **{"chunkwise_forward_64x64": 0.93, "chunkwise_forward_fp16": 2.25, "chunkwise_fused": 2.2},
    **{"chunkwise_local_states": 1.15, "segment_scan": 0.18, "grad_log_decay": 4.75},
    **{"decode_step_1": 1360, "decode_step_16": 490},
    **{"norm_forward": 1.05, "norm_backward": 1.75, "column_sum": 0.0065},
    **{"rotary_interleaved": 0.7, "rotary_half": 0.7},
}
# Others have published these kernels and their TFLOP/s on an H100, which is the last number. The
# number before it is what this simulation gave for them on 2026-11-30 (docs/kernels/estimate.md).
# Their source is not in this repository, so the comparison is recorded and not repeated.
VALIDATION = (
    ("FlashAttention-2 forward, head size 128", 342, 370),
    ("FlashAttention-2 forward, head size 256", 270, 324),
)

# A multiprocessor has so many. A block needs some more bytes of shared memory than it asks for.
REGISTERS, SHARED, THREADS, BLOCKS = 65536, 233472, 2048, 32
RESERVED = 1024
# The instructions that are counted. Those that use shared memory count by wavefronts.
EXECUTED = {"HMMA": "mma", "BAR": "barriers", "LDSM": "ldmatrix", "LDGSTS": "cp_async"}
EXECUTED |= {"STS": "stores", "LDS": "loads"}


class Total(NamedTuple):
    """Cycles of a multiprocessor for a launch, of its resources, and of waiting warps."""

    cycles: float
    busy: dict[str, float]
    stalls: dict[str, float]


class Estimate(NamedTuple):
    """What is printed for a launch."""

    name: str
    times: dict[str, float]  # nanoseconds by what the estimate is the greatest of
    bounds: dict[str, float]  # nanoseconds of each resource alone
    stalls: dict[str, float]  # shares of the time of warps
    failures: list[Failure]

    @property
    def ns(self) -> float:
        """Returns the estimate."""
        return max(self.times.values())


def occupancy(threads: int, registers: int, shared_bytes: int) -> int:
    """Returns how many blocks a multiprocessor holds at a time."""
    of_warp = math.ceil(registers * 32 / 256) * 256
    return min(
        REGISTERS // (of_warp * (threads // 32)),
        SHARED // (shared_bytes + RESERVED),
        THREADS // threads,
        BLOCKS,
    )


def total_of(result: Result) -> Total:
    """Returns the figures of a simulation from which others are computed."""
    busy = {**result.busy, "issue": result.issued / 4}
    return Total(result.cycles, busy, dict(result.stalls))


def extend(short: Total, long: Total, factor: float) -> Total:
    """Returns `short` plus `factor` times its difference from `long`."""

    def along(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
        return {k: a.get(k, 0) + factor * (b.get(k, 0) - a.get(k, 0)) for k in {**a, **b}}

    cycles = short.cycles + factor * (long.cycles - short.cycles)
    return Total(cycles, along(short.busy, long.busy), along(short.stalls, long.stalls))


def scale(total: Total, factor: float) -> Total:
    """Returns `factor` times a total."""
    zero = Total(0, {}, {})
    return extend(zero, total, factor)


def weigh(costs: Sequence[Cost], executed: Counter[int]) -> Counter[str]:
    """Counts instructions by name. Those that use shared memory count by wavefronts."""
    counts: Counter[str] = Counter()
    for n, count in executed.items():
        counts[costs[n].name] += count * max(1, costs[n].wavefronts)
    return counts


def simulate_launch(
    body: Sequence[Instruction], launch: dict[str, Any], device: dict[str, Any], resident: int
) -> tuple[Total, list[Counter[str]]]:
    """Simulates a launch. Returns also what a block executes in each run."""
    program, threads = Program(body), int(launch["threads"])
    costs = [cost(i, 4 / device["mma_per_cycle"]) for i in body]
    active = min(launch["blocks"], device["multiprocessors"])
    port = 1000 * device["l2_tbps"] / active / device["clock_ghz"]
    blocks = math.ceil(launch["blocks"] / device["multiprocessors"])
    followed = []
    for run in launch["runs"]:
        arguments = bytes.fromhex(run["bytes"])
        bank = constant_bank(
            device["architecture"],
            threads,
            int(launch["blocks"]),
            arguments,
            launch.get("cluster", 1) > 1,
        )
        followed.append(traces(program, bank, threads, 0))
    executed = [
        Counter(n for trace in warps for n in trace if n >= 0 and body[n].name in EXECUTED)
        for warps in followed
    ]
    weighed = [weigh(costs, numbers) for numbers in executed]
    resident = min(resident, blocks)
    if len(followed) == 1:
        counts = [min(blocks, 2 * resident), min(blocks, 4 * resident)]
        short, long = (total_of(simulate(costs, followed[0], resident, n, port)) for n in counts)
        factor = (blocks - counts[0]) / max(1, counts[1] - counts[0])
        return extend(short, long, factor), weighed
    short, long = (total_of(simulate(costs, x, resident, resident, port)) for x in followed)
    first, second = (run["length"] for run in launch["runs"])
    whole = extend(short, long, (launch["length"] - first) / (second - first))
    return scale(whole, math.ceil(blocks / resident)), weighed


def check_executed(
    launch: dict[str, Any], executed: Sequence[Counter[str]], counted: dict[str, float]
) -> list[Failure]:
    """Checks what the simulated warps execute per chunk."""
    runs = launch["runs"]
    chunks = (runs[1]["length"] - runs[0]["length"]) / launch["chunk"]
    failures = []
    for name, key in EXECUTED.items():
        value = (executed[1][name] - executed[0][name]) / chunks
        if key == "barriers":
            value /= launch["threads"] / 32
        if value != counted[key]:
            where = f"{launch['name']}, {key} per chunk"
            failures.append(Failure("executed", where, value, f"{counted[key]:g}"))
    return failures


def estimate(
    launch: dict[str, Any],
    folder: Path,
    device: dict[str, Any],
    items: Sequence[dict[str, Any]],
    goals: Mapping[str, float],
) -> Estimate:
    """Estimates the time of a launch."""
    name, kernel, architecture = launch["name"], launch["kernel"], device["architecture"]
    entries = [e for e in ptxas_report.read(folder) if kernel in e["name"]]
    own = [e for e in entries if e["arch"] == architecture]
    paths = objects(folder, kernel)
    if len(own) != 1 or len(paths) != 1:
        failure = Failure("estimate", f"{name}, compiled kernels", len(own), "1")
        return Estimate(name, {"simulation": math.inf}, {"none": math.inf}, {}, [failure])
    functions = parse_sass(disassemble(paths[0], "-arch", f"sm_{architecture}"))
    body = functions[architecture, own[0]["name"]]
    shared_bytes = int(launch["shared_bytes"]) + int(own[0]["shared"] or 0)
    resident = occupancy(int(launch["threads"]), int(own[0]["registers"]), shared_bytes)
    total, executed = simulate_launch(body, launch, device, resident)
    failures = []
    instance = kernel_of(own[0]["name"], architecture)
    if instance and launch.get("chunk"):
        item = next(x for x in items if (x["family"], x["dtype"], x["tile"]) == instance[:3])
        failures += check_executed(launch, executed, item["counted"])
    ns = 1 / device["clock_ghz"] / launch["units"]  # nanoseconds of a cycle, per unit
    l2 = launch["l2_bytes"] / device["l2_tbps"] / 1000
    memory = launch["memory_bytes"] / device["memory_tbps"] / 1000
    times = {"simulation": total.cycles * ns, "L2": l2, "memory": memory / STREAM.value}
    bounds = {key: value * ns for key, value in total.busy.items() if key != "L2"}
    bounds |= {"L2": l2, "memory": memory}
    sum_of_stalls = sum(total.stalls.values())
    warps = sum_of_stalls + 4 * total.busy["issue"]
    stalls = {"issued": 4 * total.busy["issue"] / warps}
    stalls |= {key: value / warps for key, value in total.stalls.items()}
    found = Estimate(name, times, bounds, stalls, failures)
    goal = goals.get(name, 0)
    if found.ns > goal:
        failures.append(Failure("estimate", f"{name}, ns", found.ns, f"{goal:g}"))
    return found


def lines(found: Estimate, goal: float) -> list[str]:
    """Returns what is printed for an estimate."""
    limit = max(found.bounds, key=lambda key: found.bounds[key])
    source = max(found.times, key=lambda key: found.times[key])
    first = f"estimate {found.name} ns={found.ns:.4g} bound={found.bounds[limit]:.4g} goal={goal:g}"
    times = ", ".join(f"{key} {value:.4g}" for key, value in found.times.items())
    waits = sorted(found.stalls.items(), key=lambda pair: -pair[1])
    shares = ", ".join(f"{key} {value:.0%}" for key, value in waits[:7] if value >= 0.005)
    return [first, f"  by {source} ({times}); bound by {limit}", f"  warps: {shares}"]


def validation() -> list[str]:
    """Returns what is printed about the validation."""
    return [
        f"validation {kernel}: recorded {own} TFLOP/s, published {other} ({own / other:.0%})"
        for kernel, own, other in VALIDATION
    ] or ["not validated"]


def report(folder: Path, counts: dict[str, Any]) -> list[Failure]:
    """Prints the estimates. Returns the gates that fail."""
    device = next(x for x in counts["devices"] if x["device"] == DEVICE)
    items = [item for family in FAMILIES for item in counts[family]]
    work = partial(estimate, folder=folder, device=device, items=items, goals=GOALS)
    print(f"estimates (simulated), {DEVICE}, ns; shares of the time of warps")
    print("\n".join(validation()))
    failures = []
    with ProcessPoolExecutor() as pool:
        for found in pool.map(work, counts["launches"]):
            print("\n".join(lines(found, GOALS.get(found.name, 0))))
            failures += found.failures
    print()
    return failures
