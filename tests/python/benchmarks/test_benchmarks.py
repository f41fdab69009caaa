# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, they report what did not run, and they count and time as documented."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import cases
import contenders
import machine
import model as model_benchmark
import ops as benchmark
import peers
import summary
import timing

CPU = torch.device("cpu")


def case(work="forward", B=1, T=64, H=2, K=16, V=32, dtype=torch.float32) -> cases.Case:
    return cases.Case(work, cases.Shape(B, T, H, K, V), dtype, CPU)


def check_section(folder: Path, name: str, seconds: list[float]) -> dict:
    """Checks the section that a script wrote: a row for each median in the raw results, in
    order.
    """
    content = summary.load(folder)
    section = content["sections"][name]
    assert content["device"] == section["machine"]["device"] == machine.device_name(CPU)
    assert section["machine"]["torch"] == torch.__version__
    assert section["command"].startswith(f"python benchmarks/{name}.py")
    assert "--quick" in section["command"] and str(folder) not in section["command"]
    medians = [row["median_ms"] for row in section["rows"]]
    assert medians == pytest.approx([1e3 * x for x in seconds], rel=1e-4)
    for row in section["rows"]:
        assert set(summary.KEYS) <= row.keys()
        assert 0 < row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] and row["rounds"] >= 1
    return section


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[dict, str, Path]:
    """Returns what `benchmarks/ops.py --quick` wrote and printed, and its folder."""
    out = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "benchmarks/ops.py", "--device", "cpu", "--quick", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "raw/ops.json").read_text()), done.stdout, out


def test_report_covers_each_form_and_the_step(quick):
    results = quick[0]["results"]
    done = {(r["work"], r["contender"]) for r in results if r["status"] == "ok"}
    for work in ("forward", "forward+backward"):
        assert {(work, f"retnet {f}") for f in ("chunkwise", "parallel", "recurrent")} <= done
        assert (work, "sdpa") in done
    assert {("step", "retnet retention_step"), ("step", "sdpa")} <= done
    assert {r["dtype"] for r in results} == {"float32", "bfloat16"}


def test_results_are_complete(quick):
    content = quick[0]
    assert content["machine"]["device"] and content["machine"]["torch"] == torch.__version__
    for r in content["results"]:
        if r["status"] != "ok":
            continue
        assert 0 < r["min_s"] <= r["q1_s"] <= r["median_s"] <= r["q3_s"] <= r["max_s"]
        assert r["ns_per_token_head"] > 0 and r["tflops"] > 0 and 0 < r["roofline"] < 2
        assert all(value > 0 for value in r["ceilings"].values())
        assert r["speedup"]["sdpa"] > 0 and set(r["speedup"]) <= set(content["baselines"])
        assert r["contender"] == "sdpa" or (r["agrees"] and r["error"] > 0)
        assert "peak_memory_bytes" in r
        assert r["share"] is None if r["contender"] == "sdpa" else 0 < r["share"] < 2


def test_the_section_of_the_operators(quick):
    content, _, out = quick
    results = content["results"]
    ran = [r for r in results if r["status"] == "ok"]
    section = check_section(out, "ops", [r["median_s"] for r in ran])
    for row, r in zip(section["rows"], ran, strict=True):
        assert (row["work"], row["contender"], row["dtype"], {x: row[x] for x in "BTHKV"}) == (
            *(r["work"], r["contender"], r["dtype"]),
            r["shape"],
        )
        assert row["roofline"] == pytest.approx(r["roofline"], rel=1e-4)
        ours = r["contender"].startswith("retnet")
        assert row.get("speedup") == (pytest.approx(r["speedup"], rel=1e-4) if ours else None)
        assert "alone" not in row and "agrees" not in row
    assert all(rate > 0 for probed in section["ceilings"].values() for rate in probed.values())
    cases_of = {}
    for r in results:
        if r["status"] == "not run":
            key = r["contender"], r["reason"]
            cases_of[key] = cases_of.get(key, 0) + 1
    assert {(x["contender"], x["reason"]): x["cases"] for x in section["not_run"]} == cases_of


def test_rows_of_operators_measured_alone_and_of_one_that_disagrees():
    def result(name, T, **others):
        same = dict.fromkeys(("tflops", "roofline", "share", "error", "peak_memory_bytes"), 0.5)
        times = {f"{x}_s": 1.0 for x in ("median", "q1", "q3")} | {"rounds": 5, "note": ""}
        shape = {"B": 1, "T": T, "H": 2, "K": 16, "V": 32}
        case = {"work": "forward", "shape": shape, "dtype": "float32", "contender": name}
        return {**same, **times, **case, "status": "ok", "agrees": True, "speedup": {}, **others}

    results = [
        result("retnet chunkwise", 64),
        result("torchscale recurrent", 64, agrees=False),
        {**result("sdpa", 64), "status": "not run", "reason": "tired"},
        result("retnet chunkwise", 128),
    ]
    first, second, last = benchmark.rows(results)
    assert (first["alone"], second["alone"], last["alone"]) == (None, None, True)
    assert (first["agrees"], second["agrees"], last["agrees"]) == (None, False, None)


def test_what_cannot_run_is_listed_with_the_reason(quick):
    content, printed, _ = quick
    listed = {r["contender"] for r in content["results"]}
    assert {c.name for c in benchmark.SEQUENCE + benchmark.STEP} == listed
    for r in content["results"]:
        if r["status"] != "ok":
            assert r["status"] == "not run" and r["reason"]
        if r["contender"].startswith("fla"):
            assert "needs a GPU" in r["reason"]
    assert "fla chunk_retention             not run: needs a GPU" in printed
    assert "helion retention                not run: needs a GPU" in printed


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    assert "not installed" in str(peers.load("a_package_that_is_not_there"))
    monkeypatch.setattr(peers, "torchscale", lambda: "not installed (no module torchscale)")
    why_not = peers.Torchscale("parallel").why_not(case())
    assert why_not is not None and "not installed" in why_not


def test_a_contender_that_fails_is_recorded_and_stops_no_other(monkeypatch):
    class Broken(contenders.Attention):
        def __init__(self):
            super().__init__()
            self.name = "broken"

        def prepare(self, case, inputs):
            def call():
                raise torch.OutOfMemoryError("no room\nfor this")

            return contenders.Run(call, cases.attention_credit(case))

    monkeypatch.setattr(benchmark, "SEQUENCE", [Broken(), contenders.Attention()])
    bar = benchmark.tqdm(disable=True)
    broken, sdpa = benchmark.measure(case(), timing.Clock(CPU), True, bar)
    assert broken["status"] == "failed"
    assert broken["reason"] == "OutOfMemoryError: no room for this"
    assert sdpa["status"] == "ok"
    assert "broken" in benchmark.table([broken, sdpa])


def test_torchscale_agrees_where_it_is_installed():
    if isinstance(peers.torchscale(), str):
        pytest.skip("torchscale is not installed")
    for work in ("forward", "step"):
        inputs = cases.make_inputs(case(work))
        expected = benchmark.reference(case(work), inputs)
        for form in ("recurrent",) if work == "step" else ("chunkwise", "parallel", "recurrent"):
            run = peers.Torchscale(form).prepare(case(work), inputs)
            error = benchmark.error(run, run.call(), expected)
            assert error is not None and error < 1e-6


def test_what_is_measured_on_a_gpu():
    """Each head size, length and number of heads is measured forward, with its backward and as a
    step.
    """
    every = cases.cases(torch.device("cuda"), [torch.bfloat16], quick=False)
    assert len(every) == len(set(every))
    for works in (["forward"], ["forward+backward"], ["step"], ["step in a CUDA graph"]):
        shapes = [c.shape for c in every if c.work in works]
        assert {(s.K, s.V) for s in shapes} == {(128, 128), (128, 256), (256, 256), (256, 512)}
        assert {s.B * s.H for s in shapes} == {4, 32, 128} | ({8} if works[0][0] == "f" else set())
        if works[0].startswith("forward"):
            assert {s.T for s in shapes} == {2048, 8192, 32768, 131072}


def test_outputs_of_a_large_case_are_checked_on_a_smaller_one(monkeypatch):
    large = case("forward+backward", B=2, T=96, H=2)
    assert cases.checked(large) == large
    monkeypatch.setattr(cases, "CHECKED", 128)
    assert cases.checked(large) == case("forward+backward", B=1, T=64, H=2)
    assert cases.checked(case("step", B=200)) == case("step", B=200)
    monkeypatch.setattr(benchmark, "SEQUENCE", [contenders.Retention("chunkwise")])
    bar = benchmark.tqdm(disable=True)
    (result,) = benchmark.measure(large, timing.Clock(CPU), True, bar)
    assert result["agrees"] and result["error"] > 0
    assert (result["shape"]["T"], result["checked_shape"]["T"]) == (96, 64)


def test_helions_layout(monkeypatch):
    """A stand-in for Helion's function gets [B, H, T, D], a decay for each token and our scale."""

    def by_definition(q, k, v, g, *, C, scale):
        steps = torch.arange(q.shape[2])
        distance = steps[:, None] - steps
        decay = torch.exp(distance * g[..., :1].unsqueeze(-1)) * (distance >= 0)
        return (scale * q @ k.mT * decay) @ v

    engine = SimpleNamespace(helion_chunk_retention=by_definition)
    monkeypatch.setattr(peers, "load", lambda name: engine)
    one = case("forward+backward", B=2)
    assert "needs a GPU" in str(peers.Helion().why_not(one))
    inputs = cases.make_inputs(one)
    run = peers.Helion().prepare(one, inputs)
    outputs = run.call()
    assert [x.shape for x in outputs] == [getattr(inputs, x).shape for x in "vqkv"]
    error = benchmark.error(run, outputs, benchmark.reference(one, inputs))
    assert error is not None and error < 1e-5


def test_longer_than_a_slow_form_is_measured():
    assert contenders.Retention("chunkwise").why_not(case(T=1 << 20)) is None
    for form in ("parallel", "recurrent"):
        why_not = contenders.Retention(form).why_not(case(T=1 << 20))
        assert why_not is not None and "up to T=" in why_not


# Counted by hand at C = 64: 623 kFLOP and 3,072 bytes forward. The backward pass is three more
# retentions: four times as many operations in all, and 5,120 more bytes.
@pytest.mark.parametrize(
    ("work", "flop", "traffic"),
    [
        ("forward", 622_592, 3_072),
        ("forward+backward", 2_490_368, 3_072 + 5_120),
        ("step", 524_288, 8 * 256 * 512 + 2 * 1_536),
    ],
)
def test_credit_of_the_papers_head(work, flop, traffic):
    one = cases.retention_credit(case(work, 1, 1, 1, 256, 512, torch.bfloat16))
    assert (one.flop, one.bytes) == (flop, traffic)
    many = cases.retention_credit(case(work, 3, 7, 5, 256, 512, torch.bfloat16))
    assert many.flop == flop * 3 * 5 * (1 if work == "step" else 7)


# Counted by hand: forward 4KV + C(K+V) = 573,440 at C = 64, backward 10KV + C(3K+2V) = 1,425,408
# more.
@pytest.mark.parametrize(("work", "flop"), [("forward", 573_440), ("forward+backward", 1_998_848)])
def test_share_of_the_cpus_peak(work, flop):
    one = case(work, 1, 7, 3, 256, 512)
    assert cases.least_flop(one) == flop * 7 * 3
    ceilings = {"fma_flop_per_s": 1e9, "update_bytes_per_s": 1e6}
    share = benchmark.share(one, "retnet chunkwise", 0.5, ceilings)
    assert share == pytest.approx(2 * flop * 21 / 1e9)
    assert benchmark.share(one, "sdpa", 0.5, ceilings) is None
    step = case("step", 1, 7, 3, 256, 512)
    read_and_written = 3 * (8 * 256 * 512 + 4 * 1_536)
    assert benchmark.share(step, "retnet retention_step", 0.5, ceilings) == pytest.approx(
        2 * read_and_written / 1e6
    )


def test_a_step_beside_changing_its_state_in_place():
    """Only the second of two calls counts: the clock gives 9 s for the first, then 2 and 0.5 s."""
    state, times = torch.ones(10), {"step": [9.0, 2.0], "change": [9.0, 0.5]}

    def step():
        return (state,)

    def clock(call):
        seconds = times["step" if call is step else "change"]
        seconds.append(seconds.pop(0))
        return seconds[-1]

    seconds, rate = benchmark.beside_in_place(step, state, clock, 4)
    assert (seconds, rate) == (2.0, 2 * 40 / 0.5)


def test_least_time_by_the_ceilings():
    """The expected values are computed by hand. A CPU is bounded by its peak of multiply-adds and
    its fastest memory, a GPU by what was measured.
    """
    rates = {"fma_flop": 1e10, "matmul_flop": 5e9, "copy_bytes": 1e9, "read_bytes": 3e9}
    ceilings = {f"{name}_per_s": rate for name, rate in (rates | {"update_bytes": 2e9}).items()}

    def least(one):
        return benchmark.least_seconds(one, cases.retention_credit(one), ceilings)

    one, step = case("forward", 1, 7, 3, 256, 512), case("step", 1, 7, 3, 256, 512)
    assert least(one) == pytest.approx(622_592 * 21 / 1e10)
    assert least(step) == pytest.approx(3 * (8 * 256 * 512 + 4 * 1_536) / 3e9)
    on_gpu = dataclasses.replace(one, device=torch.device("cuda"))
    assert least(on_gpu) == pytest.approx(622_592 * 21 / 5e9)


def test_ceilings_of_a_cpu():
    """A ceiling is the number of operations, by formula, divided by the time."""

    def clock(call):
        call()
        return 0.5

    found = machine.ceilings(CPU, torch.float32, clock, quick=True)
    assert found["copy_bytes_per_s"] == found["update_bytes_per_s"] == 2 * 8 * (2 << 20)
    assert found["read_bytes_per_s"] == 2 * 4 * (2 << 20)
    assert found["matmul_flop_per_s"] == 2 * 2 * 256**3
    flop = torch.ops.retnet._multiply_adds(torch.float32, 1 << 12)
    assert found["fma_flop_per_s"] == 2 * flop
    per_step = flop / torch.get_num_threads() / (1 << 12)  # sums x lanes x 2
    assert per_step in (12 * 4 * 2, 12 * 8 * 2, 12 * 16 * 2)


def test_how_the_forward_grows():
    def result(T, H, ns, **others):
        shape = {"B": 1, "T": T, "H": H, "K": 256, "V": 512}
        same = {"contender": "retnet chunkwise", "work": "forward", "status": "ok"}
        return {**same, "shape": shape, "dtype": "float32", "ns_per_token_head": ns, **others}

    results = [
        result(8192, 4, 10.0),
        result(131072, 4, 10.4),
        result(131072, 4, 99.0, work="forward+backward"),
        result(8192, 1, 12.5),
        result(8192, 2, 10.0),
        result(8192, 2, 1.0, contender="sdpa"),
    ]
    scaling = benchmark.scaling(results)
    assert scaling == pytest.approx(
        {
            "T=131072 over 16 x T=8192, float32": 1.04,
            "token-heads/s of H=1 over H=2, float32": 0.8,
        }
    )
    assert benchmark.scaling(results[:1]) == {}


def test_the_best_chunk_of_torchscale(monkeypatch):
    torchscale = peers.Torchscale("chunkwise")
    monkeypatch.setattr(
        torchscale,
        "_prepare",
        lambda case, inputs, chunk: contenders.Run(lambda: chunk, cases.retention_credit(case)),
    )
    monkeypatch.setattr(peers, "Clock", lambda device: lambda call: abs(call() - 250))
    one = case(T=1024)
    run = torchscale.prepare(one, cases.make_inputs(one))
    assert (run.call(), run.note) == (256, "chunks of 256")
    assert torchscale.prepare(case(T=192), cases.make_inputs(case())).note == "chunks of 64"
    assert torchscale.prepare(case(T=50), cases.make_inputs(case())).note == "chunks of 50"


def test_what_is_measured_on_a_cpu():
    every = cases.cases(CPU, [torch.float32], quick=False)
    assert len(every) == len(set(every))
    alone = {(c.work, c.shape) for c in every if not c.peers}
    for H, K, V in ((8, 128, 256), (8, 128, 128), (16, 64, 64), (4, 256, 432)):
        for work in ("forward", "forward+backward"):
            assert (work, cases.Shape(1, 8192, H, K, V)) in alone
    for T, H in ((131072, 4), (8192, 4), (8192, 1), (8192, 2)):
        assert ("forward", cases.Shape(1, T, H, 256, 512)) in alone
    beside_peers = {(c.work, c.shape) for c in every if c.peers}
    assert ("forward+backward", cases.Shape(1, 8192, 4, 256, 512)) in beside_peers
    assert ("step", cases.Shape(8, 2048, 16, 256, 512)) in beside_peers


def test_credit_of_attention():
    # One head of 128 over 4 tokens has 2 products of 2 * 128 for each of 8 pairs, half of 4 x 4.
    shape = {"B": 1, "T": 4, "H": 1, "K": 128, "V": 256}
    assert cases.attention_credit(case("forward", **shape)).flop == 8 * 2 * 2 * 128
    assert cases.attention_credit(case("step", **shape)).flop == 4 * 2 * 2 * 128


def test_spread_against_hand_values():
    spread = timing.Spread.of([5.0, 1.0, 4.0, 2.0, 3.0])
    assert spread == timing.Spread(5, 3.0, 1.0, 2.0, 4.0, 5.0)
    assert timing.Spread.of([1.0, 2.0]) == timing.Spread(2, 1.5, 1.0, 1.25, 1.75, 2.0)
    assert timing.Spread.of([7.0]) == timing.Spread(1, 7.0, 7.0, 7.0, 7.0, 7.0)


def test_rounds_within_a_time():
    assert timing.rounds_within(1.0, 0.1) == 10
    assert timing.rounds_within(1.0, 10.0) == 3
    assert timing.rounds_within(1.0, 0.0) == 30


def test_calls_alternate_and_errors_are_reported():
    order: list[str] = []
    errors: dict[str, Exception] = {}

    def failing() -> None:
        order.append("c")
        if order.count("c") == 3:
            raise RuntimeError("third call")

    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b"), "c": failing}

    def clock(call) -> float:
        call()
        return len(order)

    rounds = {"a": 4, "b": 2, "c": 4}
    times = timing.alternate(calls, rounds, clock, errors.__setitem__)
    assert "".join(order) == "abc" + "abcacaba"  # each is called once before any is timed
    assert times == {"a": [4, 7, 9, 11], "b": [5, 10]}
    assert list(errors) == ["c"] and str(errors["c"]) == "third call"


def test_calls_settle():
    """Calls are repeated, before they are timed, until they map no new memory. A slow call is
    repeated once.
    """
    counts = [0, 0, 0]

    def growing() -> None:
        counts[0] += 1
        kept.append(torch.ones((64 << 20) * (counts[0] < 3), dtype=torch.uint8))

    def always() -> None:
        counts[1] += 1
        kept.append(torch.ones(64 << 20, dtype=torch.uint8))

    def slow() -> None:
        counts[2] += 1
        always()

    kept: list[torch.Tensor] = []
    timing.settle(growing)
    timing.settle(always)
    assert counts == [3, 4, 0]
    timing.settle(slow, seconds=0)
    assert counts == [3, 5, 1]


def test_peak_memory_sees_a_large_tensor():
    call = lambda: torch.ones(64 << 20, dtype=torch.uint8).sum()  # noqa: E731
    memory, seconds = timing.peak_memory(call, CPU)
    assert seconds > 0
    if memory is not None:
        assert memory >= 60 << 20


def test_ratios_name_their_baseline():
    ran = {"work": "forward", "status": "ok", "agrees": True}
    results = [
        {"contender": "sdpa", "median_s": 6.0, **ran},
        {"contender": "retnet chunkwise", "median_s": 2.0, **ran},
        {"contender": "fla chunk_retention", "work": "forward", "status": "not run"},
    ]
    benchmark.add_ratios(results)
    assert results[1]["speedup"] == {"sdpa": 3.0}


def test_no_ratio_to_or_of_a_wrong_result():
    def speedups(**agrees):
        results = [
            {"contender": name, "work": "forward+backward", "status": "ok", "median_s": seconds}
            for name, seconds in (("fla chunk_retention", 6.0), ("retnet chunkwise", 2.0))
        ]
        for result in results:
            result["agrees"] = agrees.get(result["contender"].split()[0], True)
        benchmark.add_ratios(results)
        return [result["speedup"] for result in results]

    assert speedups() == [{"fla chunk_retention": 1.0}, {"fla chunk_retention": 3.0}]
    assert speedups(fla=False) == [{}, {}]
    assert speedups(retnet=False) == [{"fla chunk_retention": 1.0}, {}]


def test_twins_benchmark(tmp_path):
    command = [sys.executable, "benchmarks/twins.py", "--quick", "--pairs", "3"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "raw/twins.json").read_text())["results"]
    assert [r["work"] for r in results] == ["training step", "generate, B=1"]
    for result in results:
        ratio, seconds = result["ratio"], result["seconds"]
        assert ratio["rounds"] == 3 and ratio["minimum"] <= ratio["median"] <= ratio["maximum"]
        assert all(spread["minimum"] > 0 for spread in seconds.values())
        assert f"{result['work']:16}{result['size']}" in done.stdout
    seconds = [
        r["seconds"][name]["median"] for r in results for name in ("retnet.cpp", "retnet.nn")
    ]
    rows = check_section(tmp_path, "twins", seconds)["rows"]
    for row, result in zip(rows[::2], results, strict=True):
        ratio = {key: result["ratio"][key] for key in ("median", "q1", "q3")}
        assert row["time_over_python"] == pytest.approx(ratio, rel=1e-4)
        tokens = result["tokens"] / result["seconds"]["retnet.cpp"]["median"]
        assert row["tokens_per_s"] == pytest.approx(tokens, rel=1e-4)


def test_linear_benchmark(tmp_path):
    command = [sys.executable, "benchmarks/linear.py", "--quick", "--rounds", "3"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "raw/linear.json").read_text())["results"]
    decoding, training = results[:3], results[3:]
    assert [(r["shape"], r["tokens"]) for r in decoding] == [([32, 64], n) for n in (1, 2, 4)]
    assert [r["work"] for r in training] == ["forward", "forward+backward"]
    for result in results:
        rate = result["bytes_per_s" if result in decoding else "flop_per_s"]
        work = result["bytes"] if result in decoding else 2 * 256 * 256 * 128
        work *= 3 if result["work"] == "forward+backward" else 1
        assert result["speedup"] == pytest.approx(rate["linear"] / rate["F.linear"])
        for name, spread in result["seconds"].items():
            assert rate[name] == pytest.approx(work / spread["median"]) and spread["rounds"] == 3
    seconds = [x["median"] for r in results for x in r["seconds"].values()]
    rows = check_section(tmp_path, "linear", seconds)["rows"]
    ours = [row for row in rows if row["contender"] == "linear"]
    for row, result in zip(ours, results, strict=True):
        assert [row["out"], row["in"], row["tokens"]] == [*result["shape"], result["tokens"]]
        assert row["speedup"]["F.linear"] == pytest.approx(result["speedup"], rel=1e-4)
        read = result.get("share_of_read")
        assert row.get("share") == (read and pytest.approx(read, rel=1e-4))


@pytest.mark.not_poisoned
def test_what_autograd_keeps_of_a_training_step(monkeypatch):
    """The formula agrees with the tensors that autograd saves, except the statistics of norms and
    ids.
    """
    size, length = "tiny", 200
    model = model_benchmark.retnet_model(size, CPU, torch.float32)
    storages = {}

    def pack(x):
        if x.is_floating_point() and not isinstance(x, torch.nn.Parameter):
            storages[x.untyped_storage().data_ptr()] = x
        return x

    ids = torch.zeros(1, length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = super(type(model), model).forward(ids)[0]
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = sum(
        x.untyped_storage().nbytes() // 4
        for pointer, x in storages.items()
        if pointer not in owned and x.untyped_storage().nbytes() >= 4 * hidden.numel()
    )
    assert kept + hidden.numel() == model_benchmark.kept_numbers(size, length)
    # Counted by hand for 200 tokens, 2 layers of 256 channels and 256 classes. All logits fit in
    # one chunk.
    assert model_benchmark.least_memory(size, length, torch.float32) == (
        4 * 200 * 256 * 38 + 4 * 256 * 256 + 4 * 256 * 200
    )


def test_retnet_beside_a_transformer(tmp_path):
    command = [sys.executable, "benchmarks/model.py", "--device", "cpu", "--quick"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "raw/model.json").read_text())["results"]
    assert all(r["status"] == "ok" for r in results)
    by_work = {
        w: [r for r in results if r["work"].startswith(w)] for w in ("training", "decode step")
    }
    for work, some in by_work.items():
        names = {r["contender"] for r in some}
        assert len(names) == 3 and "retnet" in names, work
        sizes = {r["parameters"] for r in some}
        assert max(sizes) <= 1.01 * min(sizes)
        assert all(r["seconds"]["median"] > 0 and r["times_retnet"] > 0 for r in some)
    held = {(r["contender"], r["length"]): r["state_bytes"] for r in by_work["decode step"]}
    assert held["retnet", 16] == held["retnet", 32] == 2 * 256 * 512 * 4  # L H K V, float32
    assert held["llama dynamic cache", 32] == 2 * 2 * 2 * 32 * 128 * 4  # k and v, L, heads, T
    trained = {r["contender"]: r for r in by_work["training"]}
    assert trained["retnet"]["least_memory_bytes"] > 0
    # Counted by hand for 64 tokens and 2 layers of one head of 256 / 512, or of 2 heads of 128.
    retention = 2 * 64 * (14 * 256 * 512 + 64 * (4 * 256 + 3 * 512))
    attention = 2 * 7 * 64**2 * 256
    for name, mixing in (("retnet", retention), ("llama sdpa", attention)):
        r = trained[name]
        work = r["share"] * r["seconds"]["median"] * r["ceilings"]["fma_flop_per_s"]
        assert work == pytest.approx(6 * 64 * r["parameters"] + mixing), name
    for r in by_work["decode step"]:
        work = r["share"] * r["seconds"]["median"] * r["ceilings"]["read_bytes_per_s"]
        times = 2 if r["contender"] == "retnet" else 1
        assert work == pytest.approx(4 * r["parameters"] + times * r["state_bytes"])
    medians = [r["seconds"]["median"] for r in results]
    rows = check_section(tmp_path, "model", medians)["rows"]
    for row, result in zip(rows, results, strict=True):
        for name in ("work", "contender", "size", "batch", "length", "dtype", "parameters"):
            assert row[name] == result[name]
        held = result["state_bytes"]
        assert row.get("state_mib") == (held and pytest.approx(held / 2**20, rel=1e-4))
    ours = next(row for row in rows if row["contender"] == "retnet")
    others = [r for r in results if (r["work"], r["length"]) == (ours["work"], ours["length"])]
    ratios = {r["contender"]: r["times_retnet"] for r in others if r["contender"] != "retnet"}
    assert ours["speedup"] == pytest.approx(ratios, rel=1e-4)
