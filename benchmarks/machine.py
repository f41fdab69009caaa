# SPDX-License-Identifier: Apache-2.0
"""The machine that runs the benchmarks: its name, its software, and the ceilings of its
rooflines.
"""

import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import retnet
from timing import Clock, Spread

CPU_FLAGS = ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16"]
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def device_name(device: torch.device) -> str:
    """Returns the name that its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {_cpuinfo('model name') or platform.machine()}"


def dtypes(device: torch.device, quick: bool) -> list[torch.dtype]:
    """Returns the dtypes worth measuring. A CPU without bfloat16 instructions emulates it, 100
    times slower.
    """
    if quick:
        return [torch.float32, torch.bfloat16]
    if device.type == "cuda":
        return [torch.bfloat16]
    has_bfloat16 = {"avx512_bf16", "amx_bf16"} & set((_cpuinfo("flags") or "").split())
    return [torch.float32, torch.bfloat16] if has_bfloat16 else [torch.float32]


def folder_name(device: torch.device) -> str:
    """Returns the name of the device as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def results_folder(device: torch.device, quick: bool) -> Path:
    """Returns the folder for the results of a device. Results of toy sizes are not kept."""
    root = Path(__file__).parents[1]
    return root / "build/quick" if quick else root / "benchmarks/results" / folder_name(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Returns what a reader needs in order to judge or repeat the figures."""
    flags = (_cpuinfo("flags") or "").split()
    facts: dict[str, Any] = {
        "device": device_name(device),
        "type": device.type,
        "torch": torch.__version__,
        "retnet": retnet.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "cpu": _cpuinfo("model name"),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "malloc": {name: os.environ.get(name) for name in MALLOC},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        }
    return facts


def ceilings(
    device: torch.device, dtype: torch.dtype, clock: Clock, quick: bool
) -> dict[str, float]:
    """Measures the ceilings: a large copy in bytes/s (read + written), and a square matrix product
    in FLOP/s.

    On a CPU it also measures reading and changing in place (read + written) in bytes/s, and
    multiply-adds between registers in FLOP/s. Each uses all threads.
    """
    cuda = device.type == "cuda"
    elements, n = (2 << 20, 256) if quick else ((1 << 29, 8192) if cuda else (1 << 26, 1024))

    def best(call: Callable[[], object]) -> float:
        call()
        return Spread.of([clock(call) for _ in range(5)]).minimum

    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    copy = 8 * elements / best(lambda: target.copy_(source))
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    found = {"copy_bytes_per_s": copy, "matmul_flop_per_s": 2 * n**3 / best(lambda: a @ b)}
    if not cuda:
        steps = 1 << 12 if quick else 1 << 23  # 30 ms: threads wake within a part of it
        peak = torch.ops.retnet._multiply_adds
        found |= {
            "read_bytes_per_s": 4 * elements / best(lambda: source.sum()),
            "update_bytes_per_s": 8 * elements / best(lambda: target.neg_()),
            "fma_flop_per_s": peak(dtype, steps) / best(lambda: peak(dtype, steps)),
        }
    return found


def _instruction_set() -> str:
    """Returns the instruction set of retnet's CPU kernels on this machine."""
    x, log_decay = torch.zeros(1, 1, 1, 1), torch.zeros(1)
    return retnet.ops.retention_plan(x, x, x, log_decay).implementation.removeprefix("cpu_")


def _cpuinfo(key: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else None


def _commit() -> str | None:
    """Returns the commit, with "-dirty" if a file differs from it, except results that were written
    before.
    """
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        commit, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout
            for command in (
                ["describe", "--always"],
                ["status", "--porcelain", "--", ".", ":!benchmarks/results"],
            )
        )
        return commit.strip() + ("-dirty" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None
