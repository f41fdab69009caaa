# SPDX-License-Identifier: Apache-2.0
"""Linear layers on the CPU against those of torch: ``python benchmarks/linear.py``.

Decoding uses the shapes of a 1.3B model in bfloat16 for 1, 2 and 4 tokens. Each call reads as many
weights as no cache holds, and the rate is compared with the bandwidth of reading memory. Training
uses the shapes of a 100M model in float32 for 8192 tokens (the head: 1024), forward, and with the
gradients of x and weight. retnet.ops.linear and F.linear take turns. The script writes
raw/linear.json and its section of summary.json.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

import machine
import summary
from retnet._memory import keep_memory_mapped
from retnet.ops import linear
from timing import Call, Clock, Spread, alternate

DECODING = [(2048, 2048), (4096, 2048), (2048, 4096), (32000, 2048)]  # out, in
TOKENS = [1, 2, 4]
BYTES = 256 << 20  # bytes of weights that one call reads
TRAINING = [
    (768, 768, 8192),
    (1536, 768, 8192),
    (768, 1536, 8192),
    (32000, 768, 1024),
]  # and tokens


def raise_it(name: str, error: Exception) -> None:
    raise error


def alternating(calls: dict[str, Call], rounds: int) -> dict[str, Spread]:
    for call in calls.values():
        call()
    clock = Clock(torch.device("cpu"))
    times = alternate(calls, dict.fromkeys(calls, rounds), clock, raise_it)
    return {name: Spread.of(taken) for name, taken in times.items()}


@torch.no_grad()
def decoding(shape: tuple[int, int], tokens: int, rounds: int, size: int) -> dict[str, Any]:
    """Returns times for `size` bytes of weights, bandwidths, and the speedup over F.linear."""
    n_out, n_in = shape
    count = -(-size // (2 * n_out * n_in))
    weights = [torch.randn(n_out, n_in, dtype=torch.bfloat16) for _ in range(count)]
    x = torch.randn(tokens, n_in, dtype=torch.bfloat16)
    memory = torch.randn(count * n_out * n_in // 2)  # reads as many bytes

    def each(linear: Callable[..., object]) -> Call:
        return lambda: [linear(x, weight) for weight in weights]

    calls = {"linear": each(linear), "F.linear": each(F.linear), "read": lambda: memory.sum()}
    seconds = alternating(calls, rounds)
    moved = 2 * count * n_out * n_in
    rates = {name: moved / taken.median for name, taken in seconds.items()}
    return {
        "work": "decoding",
        "shape": shape,
        "tokens": tokens,
        "bytes": moved,
        "seconds": {name: vars(taken) for name, taken in seconds.items()},
        "bytes_per_s": rates,
        "share_of_read": rates["linear"] / rates["read"],
        "speedup": rates["linear"] / rates["F.linear"],
    }


def training(shape: tuple[int, int, int], backward: bool, rounds: int) -> dict[str, Any]:
    """Returns times, rates, and the speedup over F.linear."""
    n_out, n_in, tokens = shape
    x = torch.randn(tokens, n_in, requires_grad=backward)
    weight = torch.randn(n_out, n_in, requires_grad=backward)
    grad = torch.randn(tokens, n_out)

    def run(linear: Callable[..., torch.Tensor]) -> Call:
        if backward:
            return lambda: torch.autograd.grad(linear(x, weight), (x, weight), grad)
        return lambda: linear(x, weight)

    seconds = alternating({"linear": run(linear), "F.linear": run(F.linear)}, rounds)
    flop = 2 * n_out * n_in * tokens * (3 if backward else 1)
    rates = {name: flop / taken.median for name, taken in seconds.items()}
    return {
        "work": "forward+backward" if backward else "forward",
        "shape": (n_out, n_in),
        "tokens": tokens,
        "seconds": {name: vars(taken) for name, taken in seconds.items()},
        "flop_per_s": rates,
        "speedup": rates["linear"] / rates["F.linear"],
    }


def rows(results: list[dict[str, Any]]) -> list[summary.Row]:
    """Returns the rows of the summary: retnet's operator, torch's, and reading the same number of
    bytes.
    """
    found = []
    for r in results:
        decodes = r["work"] == "decoding"
        rates = r["bytes_per_s" if decodes else "flop_per_s"]
        for name, spread in r["seconds"].items():
            ours = name == "linear"
            share = r["share_of_read"] if ours and decodes else None
            found.append(
                {
                    "work": r["work"],
                    "out": r["shape"][0],
                    "in": r["shape"][1],
                    "tokens": r["tokens"],
                    "dtype": "bfloat16" if decodes else "float32",
                    "contender": name,
                    **summary.times(spread),
                    "gb_per_s" if decodes else "gflops": summary.round_to(rates[name] / 1e9),
                    "share": summary.round_to(share),
                    "speedup": {"F.linear": summary.round_to(r["speedup"])} if ours else None,
                }
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="use toy sizes, to see whether everything runs"
    )
    parser.add_argument(
        "--rounds", type=int, default=9, help="timed calls of each contender (default: 9)"
    )
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results/<device>)")
    options = parser.parse_args()
    device = torch.device("cpu")
    keep_memory_mapped()
    out: Path = options.out or machine.results_folder(device, options.quick)
    facts = machine.describe(device)
    print("   ".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    results: list[dict[str, Any]] = []
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    content = {"format": 1, "command": command, "machine": facts, "results": results}
    decode, size = ([(32, 64)], 1 << 16) if options.quick else (DECODING, BYTES)
    train = [(256, 256, 128)] if options.quick else TRAINING
    rounds = options.rounds
    todo: list[Callable[[], dict[str, Any]]] = [
        *(partial(decoding, shape, tokens, rounds, size) for shape in decode for tokens in TOKENS),
        *(
            partial(training, shape, backward, rounds)
            for shape in train
            for backward in (False, True)
        ),
    ]
    print(f"{'work':18}{'out x in':>14}{'tokens':>8}{'linear':>9}{'F.linear':>10}{'':10}"
          f"{'of read':>8}{'x F.linear':>12}")  # fmt: skip
    for case in tqdm(todo, unit="case", disable=None):
        result = case()
        results.append(result)
        decodes = result["work"] == "decoding"
        rates = result["bytes_per_s" if decodes else "flop_per_s"]
        tqdm.write(
            f"{result['work']:18}{'{} x {}'.format(*result['shape']):>14}{result['tokens']:8}"
            f"{rates['linear'] / 1e9:9.1f}{rates['F.linear'] / 1e9:10.1f}"
            f"{' GB/s' if decodes else ' GFLOP/s':10}"
            f"{format(result['share_of_read'], '8.1%') if decodes else '':8}"
            f"{result['speedup']:12.2f}"
        )
        summary.write(out, "linear", content, rows(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
