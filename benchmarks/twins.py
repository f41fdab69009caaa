# SPDX-License-Identifier: Apache-2.0
"""Measures what the C++ modules cost against their Python twins: ``python benchmarks/twins.py``.

A training step (forward, backward, AdamW) of retnet.cpp and of retnet.nn runs in turns. It is
measured in CPU time of the thread, which load on the machine does not lengthen. Greedy text for one
prompt is measured in tokens/s. Both run the same operators with the same weights on one thread. The
script writes raw/twins.json and its section of summary.json.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import machine
import retnet.cpp
import retnet.nn
import summary
from retnet import RetNetConfig
from retnet._memory import keep_memory_mapped
from retnet.generation import generate
from timing import Spread, alternate

TWINS: dict[str, Any] = {
    "retnet.cpp": retnet.cpp.RetNetForCausalLM,
    "retnet.nn": retnet.nn.RetNetForCausalLM,
}
SIZES: dict[str, dict[str, int]] = {  # the differences from the preset "tiny"
    "tiny": {},
    "medium": {
        "embed_dim": 512,
        "num_layers": 6,
        "key_dim": 64,
        "value_dim": 128,
        "ffn_dim": 1024,
    },
}
Call = Callable[[], object]


def thread_time(call: Call) -> float:
    """Returns the CPU time of this thread in one call, in seconds."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def models(size: str) -> dict[str, Any]:
    """Returns both twins with the same weights."""
    made = {}
    for name, kind in TWINS.items():
        torch.manual_seed(0)
        made[name] = kind(RetNetConfig.preset("tiny", **SIZES[size]))
    return made


def training_step(model: Any, batch: int, length: int) -> Call:
    """Returns a call that trains a step on a fixed batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def writing(model: Any, tokens: int) -> Call:
    """Returns a call that generates greedy text for one prompt."""
    prompt = torch.arange(32)
    options: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0.0}
    if isinstance(model, retnet.cpp.RetNetForCausalLM):
        return lambda: model.generate([prompt], **options)
    return lambda: generate(model, [prompt], **options)


def works(quick: bool) -> Iterator[tuple[str, str, dict[str, Call], int]]:
    """Yields the names of the work and the size, the calls of both twins, and the tokens in one
    call.
    """
    for size in SIZES:
        if quick and size != "tiny":
            continue
        batch, length, tokens = (1, 16, 8) if quick else (4, 256, 128)
        twins = models(size)
        yield (
            "training step",
            size,
            {name: training_step(model, batch, length) for name, model in twins.items()},
            batch * length,
        )
        yield (
            "generate, B=1",
            size,
            {name: writing(model.eval(), tokens) for name, model in twins.items()},
            tokens,
        )


def raise_it(name: str, error: Exception) -> None:
    raise error


def measure(calls: dict[str, Call], pairs: int) -> dict[str, Any]:
    """Returns the times of both twins, and the median of the ratios of the pairs, which noise in
    one pair cannot move.
    """
    for call in calls.values():
        call()
    times = alternate(calls, dict.fromkeys(calls, pairs), thread_time, raise_it)
    ratios = [a / b for a, b in zip(*(times[name] for name in TWINS), strict=True)]
    return {
        "seconds": {name: vars(Spread.of(times[name])) for name in TWINS},
        "ratio": vars(Spread.of(ratios)),
    }


def rows(results: list[dict[str, Any]]) -> list[summary.Row]:
    """Returns the rows of the summary: both twins, and for C++ the ratio of times, pair by pair."""
    found = []
    for r in results:
        ratio = {key: summary.round_to(r["ratio"][key]) for key in ("median", "q1", "q3")}
        for name, spread in r["seconds"].items():
            found.append(
                {
                    "work": r["work"],
                    "size": r["size"],
                    "tokens": r["tokens"],
                    "contender": name,
                    **summary.times(spread),
                    "tokens_per_s": summary.round_to(r["tokens"] / spread["median"]),
                    "time_over_python": ratio if name == "retnet.cpp" else None,
                }
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="use toy sizes, to see whether everything runs"
    )
    parser.add_argument(
        "--pairs", type=int, default=20, help="number of alternating pairs of calls (default: 20)"
    )
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results/<device>)")
    options = parser.parse_args()
    device = torch.device("cpu")
    keep_memory_mapped()
    torch.set_num_threads(1)
    out: Path = options.out or machine.results_folder(device, options.quick)
    facts = machine.describe(device)
    print("   ".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    print(f"{'work':16}{'size':8}{'retnet.cpp ms':>15}{'retnet.nn ms':>14}{'ratio':>8}"
          f"{'quartiles':>16}{'tokens/s C++':>14}{'Python':>9}")  # fmt: skip
    results: list[dict[str, Any]] = []
    content = {
        "format": 1,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": facts,
        "results": results,
    }
    for work, size, calls, tokens in tqdm(works(options.quick), unit="case", disable=None):
        result = {"work": work, "size": size, "tokens": tokens, **measure(calls, options.pairs)}
        results.append(result)
        ratio, (ours, twin) = result["ratio"], (result["seconds"][n]["median"] for n in TWINS)
        tqdm.write(
            f"{work:16}{size:8}{ours * 1e3:15.2f}{twin * 1e3:14.2f}{ratio['median']:8.3f}"
            f"{ratio['q1']:9.3f}..{ratio['q3']:.3f}{tokens / ours:14,.0f}{tokens / twin:9,.0f}"
        )
        summary.write(out, "twins", content, rows(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
