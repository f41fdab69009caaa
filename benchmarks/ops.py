# SPDX-License-Identifier: Apache-2.0
"""Times retention against its peers on the device that is present: ``python benchmarks/ops.py``.

The contenders are every form of retnet's retention, torch's causal attention at the same width,
flash-linear-attention, the example of Helion, and torchscale. They take turns for each kind of work
(forward, forward+backward, one decode step), shape and dtype. Before the timing, each output is
compared with that of retnet in float64. A contender that cannot run is listed with the reason. The
script writes raw/ops.json and its section of summary.json.

The exit status is 0, 1 or 2. It is 1 if retnet failed or disagrees with its own float64 result, and
2 if a GPU was measured without flash-linear-attention, because the report is then incomplete.
"""

import argparse
import sys
import time
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from tqdm import tqdm

import machine
import summary
from cases import (
    Case,
    Credit,
    Inputs,
    cases,
    checked,
    describe,
    dtype_name,
    least_flop,
    make_inputs,
    retention_credit,
)
from contenders import Attention, Contender, Retention, RetentionStep, Run
from peers import FlashLinearAttention, Helion, Torchscale
from retnet._memory import keep_memory_mapped
from timing import Call, Clock, Spread, alternate, peak_memory, rounds_within

FASTEST = Retention("chunkwise")  # measured alone if there are no peers
SEQUENCE: list[Contender] = [
    FASTEST,
    Retention("parallel"),
    Retention("recurrent"),
    Attention(),
    Attention(SDPBackend.FLASH_ATTENTION),
    Attention(SDPBackend.CUDNN_ATTENTION),
    FlashLinearAttention("chunk_retention"),
    FlashLinearAttention("fused_chunk_retention"),
    FlashLinearAttention("fused_recurrent_retention"),
    FlashLinearAttention("parallel_retention"),
    Helion(),
    Torchscale("chunkwise"),
    Torchscale("parallel"),
    Torchscale("recurrent"),
]
STEP: list[Contender] = [
    RetentionStep(),
    Attention(),
    FlashLinearAttention("fused_recurrent_retention"),
    Torchscale("recurrent"),
]
# Seconds of timed calls per contender and case, and the least number of calls.
SECONDS = {"cpu": 1.0, "cuda": 0.3}
LEAST = {"cpu": 5, "cuda": 3}
# Each that ran is a baseline: a contender's speedup is how many times faster it is.
BASELINES = {
    "sdpa": "sdpa",
    "fla": "fla chunk_retention",
    "helion": "helion retention",
    "torchscale": "torchscale chunkwise",
}
STEP_BASELINES = BASELINES | {
    "fla": "fla fused_recurrent_retention",
    "torchscale": "torchscale recurrent",
}
AGREES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # relative error of the whole tensor


def contenders_of(case: Case) -> list[Contender]:
    """Returns the contenders of a case."""
    if not case.peers:
        return [FASTEST]
    return STEP if case.is_step else SEQUENCE


def reference(case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """Runs retnet's chunkwise form, or the step, on the same rounded inputs in float64."""
    exact = inputs.map(Tensor.double)
    form: Contender = RetentionStep() if case.is_step else Retention("chunkwise")
    return form.prepare(case, exact).call()


def error(run: Run, outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float | None:
    """Returns the largest |x - reference| / |reference| among the output and the gradients."""
    if run.agreement == "none":
        return None
    if run.agreement == "rows":  # a positive factor per row is ignored
        outputs, expected = (
            tuple(torch.nn.functional.normalize(x.double(), dim=-1) for x in tensors[:1])
            for tensors in (outputs, expected)
        )
    pairs = zip(outputs, expected, strict=True)
    return max(float((x.double() - y).norm() / y.norm()) for x, y in pairs)


def in_graph(run: Run) -> Run:
    """Returns the same call, captured in a CUDA graph and replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run.call()

    def call() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return Run(call, run.credit, run.agreement)


def reason(error: Exception) -> str:
    """Formats an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def measure(case: Case, clock: Clock, quick: bool, bar: Any) -> list[dict[str, Any]]:
    """Measures all contenders on one case, and the ceilings of the machine at that time."""
    device = case.device.type
    ceilings = machine.ceilings(case.device, case.dtype, clock, quick)
    inputs, small = make_inputs(case), checked(case)
    small_inputs = inputs if small == case else make_inputs(small)
    expected = reference(small, small_inputs)
    contenders = contenders_of(case)
    results = [{"contender": c.name, **describe(case), "status": "not run"} for c in contenders]
    by_name = {r["contender"]: r for r in results}
    runs: dict[str, Run] = {}
    rounds: dict[str, int] = {}

    def failed(name: str, error: Exception) -> None:
        by_name[name] |= {"status": "failed", "reason": reason(error)}
        runs.pop(name, None)

    for contender in contenders:
        name, result = contender.name, by_name[contender.name]
        bar.set_postfix_str(f"{case}: {name}")
        why_not = contender.why_not(case)
        if why_not is not None:
            result["reason"] = why_not
            continue
        try:
            run = contender.prepare(case, inputs)
            checked_run = run if small == case else contender.prepare(small, small_inputs)
            deviation = error(run, checked_run.call(), expected)
            del checked_run
            if case.work == "step in a CUDA graph":
                run = in_graph(run)
            memory, seconds = peak_memory(run.call, case.device)
        except Exception as problem:
            failed(name, problem)
            continue
        runs[name], rounds[name] = (
            run,
            2 if quick else rounds_within(SECONDS[device], seconds, LEAST[device]),
        )
        result |= {
            "peak_memory_bytes": memory,
            "error": deviation,
            "checked_shape": describe(small)["shape"],
            "agreement": run.agreement,
            "note": run.note,
            "agrees": deviation is None or deviation <= AGREES[case.dtype],
        }
    del expected
    bar.set_postfix_str(f"{case}: timing {len(runs)}")
    calls: dict[str, Call] = {name: run.call for name, run in runs.items()}
    taken = alternate(calls, rounds, clock, failed)
    beside = {
        name: beside_in_place(run.call, run.state, clock, rounds[name])
        for name, run in runs.items()
        if run.state is not None and device == "cpu"
    }
    for name, times in taken.items():
        spread, credit = Spread.of(times), runs[name].credit
        seconds, limits = spread.median, ceilings
        if name in beside:
            seconds, update = beside[name]
            limits = ceilings | {"update_bytes_per_s": update}
            by_name[name]["beside_in_place"] = {"step_s": seconds, "update_bytes_per_s": update}
        reached = share(case, name, seconds, limits)
        least = least_seconds(case, credit, ceilings)
        by_name[name] |= {
            "status": "ok",
            "rounds": spread.rounds,
            "median_s": spread.median,
            "min_s": spread.minimum,
            "q1_s": spread.q1,
            "q3_s": spread.q3,
            "max_s": spread.maximum,
            "ns_per_token_head": spread.median / case.token_heads * 1e9,
            "tflops": credit.flop / spread.median / 1e12,
            "gb_per_s": credit.bytes / spread.median / 1e9,
            "credit": credit.formula,
            "ceilings": ceilings,
            "roofline": least / spread.median if reached is None else reached,
            "share": reached,
        }
    add_ratios(results)
    return results


def beside_in_place(step: Call, state: Tensor, clock: Clock, rounds: int) -> tuple[float, float]:
    """Returns the seconds of a step and the bytes/s of changing its state in place. Both use the
    same pages, because pages differ in speed. Each timed pass follows another of its kind, so that
    the cache holds what such a pass leaves.
    """
    calls = {"step before": step, "step": step, "before": state.neg_, "in place": state.neg_}

    def failed(name: str, error: Exception) -> None:
        raise error

    taken = alternate(calls, dict.fromkeys(calls, rounds), clock, failed)
    seconds = {name: Spread.of(times).median for name, times in taken.items()}
    return seconds["step"], 2 * state.nbytes / seconds["in place"]


def least_seconds(case: Case, credit: Credit, ceilings: dict[str, float]) -> float:
    """Returns the time that the ceilings of the machine allow. On a GPU they are a matrix product
    and a copy, on a CPU multiply-adds and the best of memory.
    """
    if case.device.type == "cuda":
        compute, memory = ceilings["matmul_flop_per_s"], ceilings["copy_bytes_per_s"]
    else:
        compute = ceilings["fma_flop_per_s"]
        memory = max(ceilings[f"{kind}_bytes_per_s"] for kind in ("copy", "read", "update"))
    return max(credit.flop / compute, credit.bytes / memory)


def share(case: Case, name: str, seconds: float, ceilings: dict[str, float]) -> float | None:
    """Returns the share of the peak of the CPU. For a sequence it is that of multiply-adds and
    counts the causal half of a chunk. For a step it is the bandwidth of changing its state in
    place. It is None for attention and on a GPU.
    """
    if case.device.type != "cpu" or name.startswith("sdpa"):
        return None
    if case.is_step:
        return retention_credit(case).bytes / seconds / ceilings["update_bytes_per_s"]
    return least_flop(case) / seconds / ceilings["fma_flop_per_s"]


def add_ratios(results: list[dict[str, Any]]) -> None:
    """Sets ``speedup`` in the results of one case: the median of the baseline over that of the
    contender.
    """
    median = {r["contender"]: r["median_s"] for r in results if r["status"] == "ok"}
    for result in results:
        if result["status"] == "ok":
            baselines = STEP_BASELINES if result["work"].startswith("step") else BASELINES
            result["speedup"] = {
                name: median[name] / result["median_s"]
                for name in baselines.values()
                if name in median
            }


def scaling(results: list[dict[str, Any]]) -> dict[str, float]:
    """Returns how retnet's forward scales, by dtype, if both of two shapes were measured. One ratio
    is the time of 16 times as many tokens over 16 times the time. The other is the token-heads/s of
    one head over those of two. Both use all threads.
    """
    found = {}
    ns = {
        (r["dtype"], r["shape"]["T"], r["shape"]["H"]): r["ns_per_token_head"]
        for r in results
        if r["contender"] == "retnet chunkwise"
        and (r["work"], r["status"]) == ("forward", "ok")
        and (r["shape"]["B"], r["shape"]["K"], r["shape"]["V"]) == (1, 256, 512)
    }
    for dtype in dict.fromkeys(key[0] for key in ns):
        for name, over, under in (
            ("T=131072 over 16 x T=8192", (dtype, 1 << 17, 4), (dtype, 8192, 4)),
            ("token-heads/s of H=1 over H=2", (dtype, 8192, 2), (dtype, 8192, 1)),
        ):
            if over in ns and under in ns:
                found[f"{name}, {dtype}"] = ns[over] / ns[under]
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Formats the results of one case, with those that did not run."""
    first = results[0]
    sizes = " ".join(f"{name}={size}" for name, size in first["shape"].items())
    baselines = STEP_BASELINES if first["work"].startswith("step") else BASELINES
    rate = "GB/s" if first["work"].startswith("step") else "TFLOP/s"
    columns = [f"x {short}" for short in baselines]
    ran = [r for r in results if r["status"] == "ok"]
    ceilings = "   ".join(f"{n} {x:.3g}" for n, x in ran[0]["ceilings"].items()) if ran else ""
    lines = [
        f"{first['work']}   {sizes}   {first['dtype']}   ceilings probed now: {ceilings}",
        f"  {'contender':32}{'median ms':>10}{'quartiles':>19}{'ns/tok-head':>12}{rate:>9}"
        f"{'roofline':>9}{'of peak':>9}"
        + "".join(f"{c:>13}" for c in columns)
        + f"{'peak MiB':>10}  error",
    ]
    for r in results:
        if r["status"] != "ok":
            lines.append(f"  {r['contender']:32}{r['status']}: {r['reason']}")
            continue
        quartiles = f"{summary.number(r['q1_s'] * 1e3)}..{summary.number(r['q3_s'] * 1e3)}"
        achieved = r["gb_per_s"] if rate == "GB/s" else r["tflops"]
        memory = r["peak_memory_bytes"]
        ratios = (r["speedup"].get(name) for name in baselines.values())
        lines.append(
            f"  {r['contender']:32}{summary.number(r['median_s'] * 1e3):>10}{quartiles:>19}"
            f"{summary.number(r['ns_per_token_head']):>12}{achieved:>9.3g}{r['roofline']:>9.1%}"
            f"{'' if r['share'] is None else format(r['share'], '.1%'):>9}"
            + "".join(f"{'' if x is None else format(x, '.3g'):>13}" for x in ratios)
            + f"{'-' if memory is None else format(memory / 2**20, '.0f'):>10}  {error_text(r)}"
        )
    return "\n".join(lines)


def error_text(result: dict[str, Any]) -> str:
    note = f"  {result['note']}" if result["note"] else ""
    if result["error"] is None:
        return "(another function)" + note
    verdict = "" if result["agrees"] else "  DISAGREES"
    rows = " (rows scaled)" if result["agreement"] == "rows" else ""
    return f"{result['error']:.1e}{rows}{verdict}{note}"


def rows(results: list[dict[str, Any]]) -> list[summary.Row]:
    """Returns the rows of the summary: what ran. ``alone`` means without peers. ``agrees`` is False
    or absent.
    """
    found = []
    for _, each in groupby(results, lambda r: (r["work"], r["shape"], r["dtype"])):
        case = list(each)
        for r in case:
            if r["status"] != "ok":
                continue
            spread = {name: r[f"{name}_s"] for name in ("median", "q1", "q3")}
            rate = "gb_per_s" if r["work"].startswith("step") else "tflops"
            memory = r["peak_memory_bytes"]
            ours = r["contender"].startswith("retnet")
            ratios = {name: summary.round_to(x) for name, x in r["speedup"].items()}
            found.append(
                {
                    "work": r["work"],
                    **r["shape"],
                    "dtype": r["dtype"],
                    "contender": r["contender"],
                    **summary.times({"rounds": r["rounds"], **spread}),
                    rate: summary.round_to(r[rate]),
                    "roofline": summary.round_to(r["roofline"]),
                    "share": summary.round_to(r["share"]),
                    "peak_mib": summary.round_to(memory and memory / summary.MIB),
                    "error": summary.round_to(r["error"], 2),
                    "agrees": None if r["agrees"] else False,
                    "note": r["note"],
                    "alone": True if len(case) == 1 else None,
                    "speedup": ratios if ours else None,
                }
            )
    return found


def ceilings(results: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Returns, by dtype, the medians of what was probed before each case."""
    found: dict[str, dict[str, float | None]] = {}
    for dtype in dict.fromkeys(r["dtype"] for r in results):
        probed = [r["ceilings"] for r in results if r["dtype"] == dtype and r["status"] == "ok"]
        names = probed[0] if probed else ()
        found[dtype] = {n: summary.round_to(median(x[n] for x in probed), 4) for n in names}
    return found


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the raw results and the section of the summary."""
    results = content["results"]
    grows = {name: summary.round_to(x) for name, x in scaling(results).items()}
    more = {"scaling": grows, "ceilings": ceilings(results)}
    summary.write(folder, "ops", content, rows(results), **more)


def status(device: torch.device, results: list[dict[str, Any]]) -> int:
    """Returns the exit status as the docstring of the module says, and prints why it is not 0."""
    ours = [r for r in results if r["contender"].startswith("retnet")]
    bad = [r for r in ours if r["status"] == "failed" or r.get("agrees") is False]
    if bad:
        print(f"retnet failed or disagrees with its float64 result in {len(bad)} measurements")
        return 1
    fla = [r for r in results if r["contender"].startswith("fla ")]
    if device.type == "cuda" and not any(r["status"] == "ok" for r in fla):
        print("incomplete: flash-linear-attention did not run: " + fla[0]["reason"])
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    parser.add_argument(
        "--quick", action="store_true", help="use toy sizes, to see whether everything runs"
    )
    parser.add_argument(
        "--minutes", type=float, help="start no measurement after this many minutes"
    )
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results/<device>)")
    options = parser.parse_args()
    start = time.monotonic()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        keep_memory_mapped()
    out: Path = options.out or machine.results_folder(device, options.quick)

    clock = Clock(device)
    facts = machine.describe(device)
    print("   ".join(f"{name}: {value}" for name, value in facts.items()))
    results: list[dict[str, Any]] = []
    content = {
        "format": 1,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": facts,
        "ceilings": "probed before each case (machine.ceilings); a step's beside_in_place",
        "baselines": sorted({*BASELINES.values(), *STEP_BASELINES.values()}),
        "results": results,
    }
    dtypes = machine.dtypes(device, options.quick)
    print("dtypes measured here: " + ", ".join(dtype_name(x) for x in dtypes) + "\n")
    bar = tqdm(cases(device, dtypes, options.quick), unit="case", disable=None)
    for case in bar:
        if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
            names = [c.name for c in contenders_of(case)]
            late = {**describe(case), "status": "not run", "reason": "out of time (--minutes)"}
            results += [{"contender": name, **late} for name in names]
            tqdm.write(f"{case}: not run: out of time (--minutes)\n")
        else:
            measured = measure(case, clock, options.quick, bar)
            results += measured
            tqdm.write(table(measured) + "\n")
        content["scaling"] = scaling(results)
        content["seconds"] = time.monotonic() - start
        write(out, content)
    for name, value in scaling(results).items():
        print(f"{name}: {value:.3f}")
    print(f"{out / 'summary.json'}: {time.monotonic() - start:.0f} s")
    return status(device, results)


if __name__ == "__main__":
    sys.exit(main())
