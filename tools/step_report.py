# SPDX-License-Identifier: Apache-2.0
"""The part of kernel_report.py about the decode step. It prints tables and checks these gates:

bytes      Those of device memory per batch entry and head differ from the header by at most 2%.
barriers   The number in a block is that in the header.
wavefronts There are no bank conflicts.
model      The share of memory bandwidth that the model reaches is at least the goal, at the worst
           of the batch sizes for which the goal holds.
apart, fences  The code of each kernel passes the gates of barrier_gates.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from barrier_gates import check_apart, check_fences, fences
from gates import Failure
from sass import Instruction, survey
from sass_flow import Flow

Fail = Callable[[str, str, float, str], None]  # gate, where, value, limit
Table = Callable[[str, str, list[list[object]]], None]  # title, header, rows

TIMES = ("memory_us", "latency_us", "around_us", "tail_us", "total_us")


def check_counts(item: dict[str, Any], fail: Fail) -> None:
    """Checks what the SIMT emulator counted."""
    where = f"decode_step {item['dtype']} of {item['cluster']:g} blocks a head"
    counted, header = item["counted"], item["header"]
    stated = header["memory_bytes"]
    if abs(counted["memory_bytes"] - stated) > 0.02 * stated:
        limit = f"{stated:g} within 2%"
        fail("bytes", f"{where}, device memory", counted["memory_bytes"], limit)
    if counted["barriers"] != header["barriers"]:
        fail("barriers", where, counted["barriers"], f"{header['barriers']:g}")
    if counted["conflicts"]:
        fail("wavefronts", f"{where}, bank conflicts", counted["conflicts"], "0")


def check_goal(goal: dict[str, Any], fail: Fail) -> None:
    """Checks a goal."""
    if goal["share"] < goal["goal"]:
        where = f"decode_step {goal['device']} H={goal['heads']:g} B={goal['batch']:g}"
        where += ", share of bandwidth"
        fail("model", where, goal["share"], f"at least {goal['goal']:g}")


def check_kernel(
    architecture: str, mangled: str, body: Sequence[Instruction], limit: int
) -> list[Failure]:
    """Checks the code of a kernel."""
    where = f"{mangled} sm_{architecture}"
    found = check_fences(where, fences(body), limit)
    return found + check_apart(where, (i.text for i in Flow(body).apart()))


def check_code(folder: Path, limit: int) -> list[Failure]:
    """Checks the code of all kernels in `folder`, with at most `limit` fences in each."""
    found = survey(folder, "decode_step_kernel", partial(check_kernel, limit=limit))
    return [failure for failures in found for failure in failures]


def report(counts: dict[str, Any], fail: Fail, table: Table) -> None:
    """Prints the tables and reports the gates that fail."""
    rows: list[list[object]] = []
    for item in counts["decode_step"]:
        check_counts(item, fail)
        counted, header = item["counted"], item["header"]
        both = [f"{counted[key]:.10g}/{header[key]:.10g}" for key in ("memory_bytes", "barriers")]
        l2_bytes = counted["l2_loaded"] + counted["l2_stored"]
        rows.append([item["dtype"], f"{item['cluster']:g}", *both, f"{l2_bytes:.10g}"])
    title = "decode_step, Dk = 256, Dv = 512, counted / header: bytes per batch entry and head"
    title += ", barriers of a block"
    table(title, "dtype blocks-a-head memory_bytes barriers l2_bytes", rows)

    rows = []
    for goal in counts["decode_step_goals"]:
        check_goal(goal, fail)
        shape = [f"{goal[key]:g}" for key in ("heads", "from", "batch", "cluster")]
        times = [float(goal[key]) for key in TIMES]
        rows.append([goal["device"], goal["dtype"], *shape, *times, goal["share"], goal["goal"]])
    table(
        "model (not measured) of a decode step at the worst batch size from the goal's on, "
        "microseconds; share of memory bandwidth",
        "device dtype H from B blocks-a-head memory latency around tail all share goal",
        rows,
    )
