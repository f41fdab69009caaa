# SPDX-License-Identifier: Apache-2.0
"""Runs retention over a million tokens in one call (H = 1, Dk = Dv = 64, bfloat16) on the CPU.

It prints the wall time and the peak memory of the whole process, which includes torch.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch

from retnet._memory import keep_memory_mapped
from retnet.ops import retention


def peak_bytes() -> int:
    """Returns the peak of resident memory. getrusage would start with that of the parent
    process.
    """
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def measure(num_tokens: int, backward: bool) -> dict[str, float | bool]:
    """Runs one call and, if asked for, its backward."""
    torch.manual_seed(0)
    shape = (1, num_tokens, 1, 64)
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16).requires_grad_(backward) for _ in range(3))
    log_decay = torch.tensor([math.log1p(-(2.0**-12))])
    start = time.perf_counter()
    out, state = retention(q, k, v, log_decay)
    forward_seconds = time.perf_counter() - start
    results: list[torch.Tensor | None] = [out, state]
    if backward:
        out.backward(v.detach())
        results += [x.grad for x in (q, k, v)]
    return {
        "num_tokens": num_tokens,
        "forward_seconds": forward_seconds,
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak_bytes(),
        "finite": all(x is not None and bool(torch.isfinite(x).all()) for x in results),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tokens", type=int, default=1_000_000, help="number of tokens (default: %(default)s)"
    )
    parser.add_argument("--backward", action="store_true", help="run the backward pass, too")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    keep_memory_mapped()
    result = measure(options.tokens, options.backward)
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{options.tokens:,} tokens: forward {result['forward_seconds']:.1f} s, "
            f"in all {result['seconds']:.1f} s, peak {result['peak_bytes'] / 1e9:.2f} GB"
        )
