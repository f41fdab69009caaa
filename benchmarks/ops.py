# SPDX-License-Identifier: Apache-2.0
"""Times retention beside its peers on the device present: ``python benchmarks/ops.py``.

For each kind of work (forward, forward+backward, one decoding step), shape and dtype: every form of
retnet's retention, torch's causal attention at the same width, flash-linear-attention, Helion's
example and torchscale, in turns. Before the timing each output is compared with retnet's in
float64. A contender that cannot run is listed with the reason. Writes ops.json and ops.png.

Exit status: 0; 1 where retnet disagrees with its own float64 result, or failed; 2 where a GPU was
measured without flash-linear-attention, which makes the report incomplete.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from tqdm import tqdm

import machine
import report
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

FASTEST = Retention("chunkwise")  # measured alone where there are no peers
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
SECONDS = {"cpu": 1.0, "cuda": 0.3}  # of timed calls per contender and case; how many at least
LEAST = {"cpu": 5, "cuda": 3}
AGREES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # whole-tensor relative error


def contenders_of(case: Case) -> list[Contender]:
    """Who is measured on a case."""
    if not case.peers:
        return [FASTEST]
    return STEP if case.is_step else SEQUENCE


def reference(case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """retnet's chunkwise form, or step, on the same rounded inputs in float64."""
    exact = inputs.map(Tensor.double)
    form: Contender = RetentionStep() if case.is_step else Retention("chunkwise")
    return form.prepare(case, exact).call()


def error(run: Run, outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float | None:
    """The largest |x - reference| / |reference| among the output and the gradients."""
    if run.agreement == "none":
        return None
    if run.agreement == "rows":  # a positive factor per row is free
        outputs, expected = (
            tuple(torch.nn.functional.normalize(x.double(), dim=-1) for x in tensors[:1])
            for tensors in (outputs, expected)
        )
    pairs = zip(outputs, expected, strict=True)
    return max(float((x.double() - y).norm() / y.norm()) for x, y in pairs)


def in_graph(run: Run) -> Run:
    """The same call, captured in a CUDA graph and replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run.call()

    def call() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return Run(call, run.credit, run.agreement)


def reason(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def measure(case: Case, clock: Clock, quick: bool, bar: Any) -> list[dict[str, Any]]:
    """All contenders on one case, beside the machine's ceilings at that time."""
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
    report.add_ratios(results)
    return results


def beside_in_place(step: Call, state: Tensor, clock: Clock, rounds: int) -> tuple[float, float]:
    """Seconds of a step and bytes/s of changing its state in place: on the same pages, which differ
    in speed, and each after one of its own, for what a pass leaves in the cache is its own too."""
    calls = {"step before": step, "step": step, "before": state.neg_, "in place": state.neg_}

    def failed(name: str, error: Exception) -> None:
        raise error

    taken = alternate(calls, dict.fromkeys(calls, rounds), clock, failed)
    seconds = {name: Spread.of(times).median for name, times in taken.items()}
    return seconds["step"], 2 * state.nbytes / seconds["in place"]


def least_seconds(case: Case, credit: Credit, ceilings: dict[str, float]) -> float:
    """What the machine's ceilings leave: on a GPU those of a matrix product and of a copy, on a CPU
    those of multiply-adds and of the best of memory."""
    if case.device.type == "cuda":
        compute, memory = ceilings["matmul_flop_per_s"], ceilings["copy_bytes_per_s"]
    else:
        compute = ceilings["fma_flop_per_s"]
        memory = max(ceilings[f"{kind}_bytes_per_s"] for kind in ("copy", "read", "update"))
    return max(credit.flop / compute, credit.bytes / memory)


def share(case: Case, name: str, seconds: float, ceilings: dict[str, float]) -> float | None:
    """Of the CPU's peak: of multiply-adds, the causal half of a chunk counted; a step's, of the
    bandwidth of changing its state in place. None for attention, and on a GPU."""
    if case.device.type != "cpu" or name.startswith("sdpa"):
        return None
    if case.is_step:
        return retention_credit(case).bytes / seconds / ceilings["update_bytes_per_s"]
    return least_flop(case) / seconds / ceilings["fma_flop_per_s"]


def status(device: torch.device, results: list[dict[str, Any]]) -> int:
    """The exit status, as the module's docstring says; prints why it is not 0."""
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
    parser.add_argument("--device", help="cpu or cuda; by default the GPU where there is one")
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run at all")
    parser.add_argument("--minutes", type=float, help="start no measurement later than this")
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results/<device> by default")
    options = parser.parse_args()
    start = time.monotonic()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        keep_memory_mapped()
    folder = "quick" if options.quick else machine.folder_name(device)
    out: Path = options.out or Path(__file__).parent / "results" / folder

    clock = Clock(device)
    facts = machine.describe(device)
    print("   ".join(f"{name}: {value}" for name, value in facts.items()))
    results: list[dict[str, Any]] = []
    content = {
        "format": 1,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": facts,
        "ceilings": "probed before each case (machine.ceilings); a step's beside_in_place",
        "baselines": sorted({*report.BASELINES.values(), *report.STEP_BASELINES.values()}),
        "results": results,
    }
    dtypes = machine.dtypes(device, options.quick)
    print("dtypes measured here: " + ", ".join(dtype_name(x) for x in dtypes) + "\n")
    bar = tqdm(cases(device, dtypes, options.quick), unit="case", disable=None)
    try:
        for case in bar:
            if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
                names = [c.name for c in contenders_of(case)]
                late = {**describe(case), "status": "not run", "reason": "out of time (--minutes)"}
                results += [{"contender": name, **late} for name in names]
                tqdm.write(f"{case}: not run: out of time (--minutes)\n")
            else:
                measured = measure(case, clock, options.quick, bar)
                results += measured
                tqdm.write(report.table(measured) + "\n")
            content["scaling"] = report.scaling(results)
            content["seconds"] = time.monotonic() - start
            report.write_json(out / "ops.json", content)
    finally:  # also what an interrupted run has
        bar.close()
        report.plot(out / "ops.png", content)
    for name, value in report.scaling(results).items():
        print(f"{name}: {value:.3f}")
    print(f"{out / 'ops.json'} and ops.png: {time.monotonic() - start:.0f} s")
    return status(device, results)


if __name__ == "__main__":
    sys.exit(main())
