# SPDX-License-Identifier: Apache-2.0
"""Linear layers of decoding on the CPU, beside torch's: ``python benchmarks/linear.py``.

The shapes of a 1.3B model in bfloat16, for 1, 2 and 4 tokens: retnet.ops.linear_step and F.linear
in turns, over as many weights as no cache holds, beside the bandwidth of reading memory, probed in
the same turns. Writes linear.json.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

import machine
import report
from retnet._memory import keep_memory_mapped
from retnet.ops import linear_step
from timing import Clock, Spread, alternate

SHAPES = [(2048, 2048), (4096, 2048), (2048, 4096), (32000, 2048)]  # out, in
TOKENS = [1, 2, 4]
BYTES = 256 << 20  # of weights that one call reads


def raise_it(name: str, error: Exception) -> None:
    raise error


def measure(shape: tuple[int, int], tokens: int, rounds: int, size: int) -> dict[str, Any]:
    """Times per weight, bandwidths, and how many times as fast as F.linear linear_step is."""
    n_out, n_in = shape
    weights = [
        torch.randn(n_out, n_in, dtype=torch.bfloat16)
        for _ in range(-(-size // (2 * n_out * n_in)))
    ]
    x = torch.randn(tokens, n_in, dtype=torch.bfloat16)
    memory = torch.randn(len(weights) * n_out * n_in // 2)  # as many bytes

    def each(linear: Callable[..., object]) -> Callable[[], object]:
        return lambda: [linear(x, weight) for weight in weights]

    calls: dict[str, Callable[[], object]] = {
        "linear_step": each(linear_step),
        "F.linear": each(F.linear),
        "read": lambda: memory.sum(),
    }
    for call in calls.values():
        call()
    clock = Clock(torch.device("cpu"))
    times = alternate(calls, dict.fromkeys(calls, rounds), clock, raise_it)
    moved = 2 * len(weights) * n_out * n_in
    rates = {name: moved / Spread.of(taken).median for name, taken in times.items()}
    return {
        "shape": shape,
        "tokens": tokens,
        "seconds": {
            name: vars(Spread.of([t / len(weights) for t in taken]))
            for name, taken in times.items()
        },
        "bytes_per_s": rates,
        "share_of_read": rates["linear_step"] / rates["read"],
        "speedup": rates["linear_step"] / rates["F.linear"],
    }


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run at all")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each contender")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results/<device> by default")
    options = parser.parse_args()
    device = torch.device("cpu")
    keep_memory_mapped()
    folder = "quick" if options.quick else machine.folder_name(device)
    out: Path = options.out or Path(__file__).parent / "results" / folder
    facts = machine.describe(device)
    print("   ".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    print(f"{'out x in':>14}{'tokens':>8}{'linear_step GB/s':>18}{'F.linear':>10}{'read':>8}"
          f"{'of read':>9}{'x F.linear':>12}")  # fmt: skip
    results: list[dict[str, Any]] = []
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    content = {"format": 1, "command": command, "machine": facts, "results": results}
    shapes, size = ([(32, 64)], 1 << 16) if options.quick else (SHAPES, BYTES)
    todo = [(shape, tokens) for shape in shapes for tokens in TOKENS]
    for shape, tokens in tqdm(todo, unit="case", disable=None):
        result = measure(shape, tokens, options.rounds, size)
        results.append(result)
        ours, theirs, read = (x / 1e9 for x in result["bytes_per_s"].values())
        tqdm.write(
            f"{f'{shape[0]} x {shape[1]}':>14}{tokens:8}{ours:18.1f}{theirs:10.1f}{read:8.1f}"
            f"{result['share_of_read']:9.1%}{result['speedup']:12.2f}"
        )
        report.write_json(out / "linear.json", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
