# SPDX-License-Identifier: Apache-2.0
"""The kernel report finds the main loop and its instructions, and each of its gates can fail."""

import copy
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import kernel_report as kr
import mma_report as mr
import sass
from gates import Failure

NAME = "_ZN6retnet7kernels4cuda16chunkwise_kernelILNS1_5DTypeE2ELi3EEEvNS1_15ChunkwiseParamsEib"
# A loop without mma, the main loop with a smaller loop in it, and the endless loop after the end.
SASS = f"""
	code for sm_90a
		Function : {NAME}
        /*0000*/                   LDC R1, c[0x0][0x28] ;     /* 0x00000a00ff017b82 */
                                                              /* 0x000fe20000000800 */
        /*0010*/                   FADD R2, R2, 1 ;           /* 0x0000000102027421 */
        /*0020*/               @P0 BRA 0x10 ;                 /* 0x0000000000000947 */
        /*0030*/                   LDSM.16.M88.4 R4, [R3] ;   /* 0x000000000304783b */
        /*0040*/              @!PT LDS RZ, [RZ] ;             /* 0x00000000ffff7984 */
        /*0050*/               @P3 LDGSTS.E.BYPASS.128.ZFILL [R171+0x8000], desc[UR22][R94.64], P3 ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0070*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0080*/                   BRA.U !UP0, 0x60 ;         /* 0x0000000508147547 */
        /*0090*/                   IMAD.MOV.U32 R1, RZ, RZ, R2 ;
        /*00a0*/                   VIADDMNMX R173, R174, 0xfffffff8, RZ, !PT ;
        /*00b0*/                   F2FP.BF16.F32.PACK_AB R1, R2, R3 ;
        /*00c0*/                   STL [R1], R2 ;             /* 0x0000000201007387 */
        /*00d0*/              @!P0 BRA 0x120 ;               /* 0x0000000000008947 */
        /*00e0*/                   NOP ;                      /* 0x0000000000007918 */
        /*00f0*/                   BAR.SYNC 0x0 ;             /* 0x0000000000007b1d */
        /*0100*/              @!P1 BRA 0x30 ;                /* 0x0000000000009947 */
        /*0110*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0120*/                   BRA 0x120;                 /* 0x0000000000007947 */
	code for sm_75
		Function : {NAME}
        /*0000*/                   EXIT ;                     /* 0x000000000000794d */
        /*0010*/                   BRA 0x10;                  /* 0x0000000000007947 */
"""
ITEM = {
    "family": "chunkwise",
    "dtype": "bf16",
    "tile": 3,
    "shape": "256x128x64",
    "warps": 8,
    "chunk": 64,
    "shared_bytes": 1000,
    "turns": [],
    "intervals": [{"ldmatrix": 70, "cp_async": 8, "stores": 4, "mma": 60}],
    "counted": {"mma": 800, "wavefronts": 1000, "minimum": 1000, "barriers": 2}
    | {"l2_loaded": 300, "l2_stored": 100, "memory_bytes": 200}
    | {"ldmatrix": 800, "cp_async": 100, "stores": 50, "loads": 50},
    "header": {"mma": 800, "wavefronts": 1000, "barriers": 2, "l2_bytes": 400}
    | {"memory_bytes": 200, "others_per_mma": 4}
    | {"ldmatrix": 800, "cp_async": 100, "stores": 50, "loads": 50},
}
GOAL = {"family": "chunkwise", "device": "H100", "architecture": "90a"} | {
    **{"multiprocessors": 132, "clock_ghz": 2.0},
    **{"mma_per_cycle": 0.5, "wavefronts_per_cycle": 1, "issue_per_cycle": 4},
    **{"l2_tbps": 5, "memory_tbps": 2, "l2_bytes": 6000, "memory_bytes": 3000},
    **{"dtype": "bf16", "head_dim_qk": 256, "head_dim_v": 512, "heads": 32},
    **{"tokens": 6400, "tile": 3},
    **{"blocks": 128, "ns": 1.6},
}
NORM_BYTES = {"loaded": 2048, "stored": 1024, "memory_bytes": 3072}
NORM = {"direction": "forward", "dtype": "bf16", "head_dim_v": 512, "vector": 8} | {
    **{"threads": 32, "rows": 32, "counted": NORM_BYTES, "header": NORM_BYTES},
}
ROTARY = {"style": "half", "dtype": "bf16", "head_dim_qk": 8} | {
    **{"counted": {"memory_bytes": 64}, "header": {"memory_bytes": 64}},
}
# 10,000 bytes / ns / (100 * 2) = 10 bytes a cycle of a multiprocessor: 307.2 cycles a row.
NORM_DEVICE = {"device": "H100", "architecture": "90a", "multiprocessors": 100} | {
    **{"clock_ghz": 2.0, "issue_per_cycle": 4, "memory_tbps": 2.0, "memory_latency_ns": 1000},
}
NORM_CODE = Counter({"float": 1000, "MUFU": 100, kr.PADDING: 500})
NORM_KERNEL = kr.NormKernel("forward", "bf16", 8, 32, "90a")
# All 8 warps together.
LOOP = Counter({"HMMA": 800, "LDSM": 800, "integer": 2400})
KERNEL = mr.Kernel("chunkwise", "bf16", 3, "90a")


def gates(failures: list[Failure]) -> list[str]:
    return [failure.gate for failure in failures]


def test_main_loop() -> None:
    functions = sass.parse_sass(SASS)
    assert list(functions) == [("90a", NAME), ("75", NAME)]
    assert mr.kernel_of(NAME, "90a") == KERNEL
    assert mr.kernel_of(NAME.replace("chunkwise", "gated"), "90a") is None
    grad_log_decay = (
        "_ZN6retnet7kernels4cuda21grad_log_decay_kernelILNS1_5DTypeE1ELi2EEEv"
        "NS1_18GradLogDecayParamsEb"
    )
    assert mr.kernel_of(grad_log_decay, "80") == mr.Kernel("grad_log_decay", "fp16", 2, "80")
    assert sass.main_loop(functions["75", NAME]) == []
    loop = sass.main_loop(functions["90a", NAME])
    assert (loop[0].address, loop[-1].address) == (0x30, 0x100)
    counts = Counter(map(sass.classify, loop))
    assert counts == {
        **{"HMMA": 2, "LDSM": 1, "LDGSTS": 1, "integer": 2, "F2FP": 1, "local": 1, "branch": 3},
        **{kr.PADDING: 2, "other": 1},
    }
    assert mr.others_per_mma(counts) == 5


def test_inner_loops_count_as_often_as_they_turn() -> None:
    loop = sass.main_loop(sass.parse_sass(SASS)["90a", NAME])
    once = Counter(map(sass.classify, loop))
    inner = Counter({"HMMA": 2, "branch": 1})  # two mma and the branch at 0x80
    assert sass.executed(loop, 8, [20]) == Counter({k: 8 * n for k, n in once.items()}) + Counter(
        {k: 12 * n for k, n in inner.items()}
    )
    # Too many loops, too few loops, and no loop.
    for turns in ([], [20, 20]):
        assert sass.executed(loop, 8, turns) == Counter()
    assert sass.executed([], 8, []) == Counter()
    # A loop without mma counts once. A loop inside another one counts its own turns.
    names = ["MOV", "HMMA", "HMMA", "LDSM", "BRA", "FADD", "BRA", "F2FP", "BRA", "BRA"]
    targets = {4: 2, 6: 1, 8: 7, 9: 0}  # of the branches
    nested = [
        sass.Instruction(16 * at, False, name, 16 * targets[at] if at in targets else None)
        for at, name in enumerate(names)
    ]
    assert sass.executed(nested, 1, [3, 12]) == {
        **{"integer": 1, "HMMA": 3 + 12, "LDSM": 12, "float": 3, "F2FP": 1},
        **{"branch": 12 + 3 + 1 + 1},
    }


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({}, []),
        ({"l2_loaded": 309}, ["bytes"]),
        ({"l2_stored": 90}, ["bytes"]),
        ({"l2_loaded": 307, "memory_bytes": 203}, []),
        ({"memory_bytes": 205}, ["bytes"]),
        ({"mma": 841}, ["mma"]),
        ({"mma": 759}, ["mma"]),
        ({"mma": 839}, []),
        ({"wavefronts": 1001, "minimum": 1001}, ["wavefronts"]),
        ({"wavefronts": 999, "minimum": 999}, []),
        ({"minimum": 999}, ["wavefronts"]),
        ({"barriers": 3}, ["barriers"]),
        ({"barriers": 1}, ["barriers"]),
    ],
    ids=str,
)
def test_gates_of_counts(change: dict[str, int], gate: list[str]) -> None:
    item = copy.deepcopy(ITEM)
    item["counted"].update(change)
    assert gates(mr.check_counts(item)) == gate


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        ({}, []),
        ({"HMMA": 799, "integer": 2390}, ["loop"]),
        ({"HMMA": 801}, []),
        ({"HMMA": 0}, ["loop"]),
        ({"local": 1, "integer": 2399}, ["spills"]),
        ({"integer": 2401}, ["others"]),
        ({kr.PADDING: 1}, []),
    ],
    ids=str,
)
def test_gates_of_the_loop(change: dict[str, int], gate: list[str]) -> None:
    loop = Counter({**LOOP, **change})
    code = mr.Code(loop, ITEM["intervals"], [])
    assert gates(mr.check_code(KERNEL, code, ITEM)) == gate
    # If each loop counts as often as it turns, the sum is the mma of a chunk.
    turning = gate if loop["HMMA"] == 800 else ["loop"]
    assert gates(mr.check_code(KERNEL, code, ITEM | {"turns": [4]})) == turning


@pytest.mark.parametrize("key", NORM_BYTES)
def test_gates_of_the_norms_bytes(key) -> None:
    for factor, gate in ((1.0, []), (1.019, []), (1.021, ["bytes"]), (0.979, ["bytes"])):
        counted = {**NORM_BYTES, key: NORM_BYTES[key] * factor}
        assert gates(kr.check_norm(NORM | {"counted": counted})) == gate


@pytest.mark.parametrize(
    ("code", "rows", "expected"),
    [
        ({}, 32, []),
        ({"float": 1128}, 32, []),
        ({"float": 1130}, 32, ["cycles per row by issue"]),
        ({"float": 0, "MUFU": 154}, 32, ["cycles per row by MUFU"]),
        ({}, 10, []),
        ({}, 9, ["bytes in flight"]),
    ],
    ids=str,
)
def test_model_of_the_norm(code, rows, expected) -> None:
    """Counted by hand: 3,072 B at 10 B a cycle, 4 instructions a cycle, 20,000 B per
    microsecond.
    """
    times = kr.norm_model(NORM | {"rows": rows}, NORM_DEVICE, NORM_CODE | Counter(code))
    assert times["memory"] == pytest.approx(307.2) and times["needed"] == pytest.approx(20_000)
    failures = kr.check_norm_model("here", times)
    assert [failure.where for failure in failures] == [f"here, {text}" for text in expected]
    assert gates(failures) == ["model"] * len(expected)


def test_gate_of_the_rotation() -> None:
    assert kr.check_rotary(ROTARY) == []
    assert gates(kr.check_rotary(ROTARY | {"counted": {"memory_bytes": 66}})) == ["bytes"]


def test_model() -> None:
    # 100 chunks run in parallel in 128 blocks. One cycle a chunk is 100 / 2 GHz / 204,800 token-
    # heads.
    cycle = 100 / 2 / 204800
    times = mr.model(GOAL, ITEM, LOOP)
    assert times == pytest.approx(
        {"tensor": 1600 * cycle, "shared": 1000 * cycle, "issue": 1000 * cycle}
        | {"L2": 1.2, "memory": 1.5}
    )
    assert mr.model(GOAL | {"blocks": 133}, ITEM, LOOP)["tensor"] == 2 * times["tensor"]
    assert mr.check_model(GOAL, times) == []
    failures = mr.check_model(GOAL | {"ns": 1.4}, times)
    assert [str(f) for f in failures] == [
        "FAIL model: chunkwise H100 bf16 Dk=256 Dv=512, ns by memory: 1.5, limit 1.4"
    ]


PTXAS = """ptxas info    : Compiling entry function '{name}' for 'sm_90a'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 99 registers, used 1 barriers, 64 bytes smem
"""


GRAD_LOG_DECAY = mr.Kernel("grad_log_decay", "bf16", 2, "90a")
MANGLED = {
    KERNEL: NAME,
    GRAD_LOG_DECAY: NAME.replace("chunkwise", "grad_log_decay").replace("ELi3E", "ELi2E"),
}


class Report:
    """A report of one kernel of each family, whose goals hold."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.stack = dict.fromkeys(MANGLED, 0)
        self.loops = {kernel: LOOP.copy() for kernel in MANGLED}
        shared = {k: {"family": k.family, "tile": k.tile} for k in MANGLED}
        self.items = {k: copy.deepcopy(ITEM) | shared[k] for k in MANGLED}
        self.items[GRAD_LOG_DECAY]["turns"] = [4]
        self.goals = {k: GOAL | shared[k] for k in MANGLED}
        self.intervals = {k: copy.deepcopy(ITEM["intervals"]) for k in MANGLED}
        self.apart: dict[mr.Kernel, list[str]] = {kernel: [] for kernel in MANGLED}
        self.step: list[Failure] = []
        self.estimates: list[Failure] = []

    def gates(self, architecture: str = "90a") -> list[str]:
        ptxas = [PTXAS.format(name=MANGLED[k], stack=n) for k, n in self.stack.items()]
        text = "".join(ptxas).replace("sm_90a", f"sm_{architecture}")
        (self.folder / "x.o.ptxas").write_text(text)
        codes = {
            k._replace(architecture=architecture): mr.Code(n, self.intervals[k], self.apart[k])
            for k, n in self.loops.items()
        }
        self.monkeypatch.setattr(mr, "codes", lambda folder, items: codes)
        self.monkeypatch.setattr(kr.step_report, "check_code", lambda folder, limit: self.step)
        self.monkeypatch.setattr(kr.estimate_report, "report", lambda *_: self.estimates)
        self.monkeypatch.setattr(kr, "norm_counts", lambda folder: {NORM_KERNEL: NORM_CODE})
        counts = {k.family: [item] for k, item in self.items.items()}
        counts |= {"goals": list(self.goals.values()), "shared_limits": {"86": 1}}
        counts |= {"gated_group_norm": [NORM], "rotary": [ROTARY], "devices": [NORM_DEVICE]}
        counts |= {"min_capability": 80, "decode_step": [], "decode_step_goals": []}
        counts |= {"decode_step_fences": 2}
        return gates(kr.report(self.folder, counts))


@pytest.fixture
def made(tmp_path, monkeypatch) -> Report:
    return Report(tmp_path, monkeypatch)


@pytest.mark.parametrize("kernel", MANGLED, ids=lambda kernel: kernel.family)
@pytest.mark.parametrize(
    ("stack", "counted", "loop", "ns", "expected"),
    [
        (0, {}, {}, 1.6, []),
        (8, {}, {}, 1.6, ["spills"]),
        (0, {"barriers": 3}, {}, 1.6, ["barriers"]),
        (0, {"l2_loaded": 320}, {}, 1.6, ["bytes"]),
        (0, {"minimum": 999}, {}, 1.6, ["wavefronts"]),
        (0, {"mma": 880}, {"HMMA": 880}, 1.6, ["mma"]),
        (0, {}, {"HMMA": 792, "integer": 2300}, 1.6, ["loop"]),
        (0, {}, {"integer": 2408}, 1.6, ["others"]),
        (0, {}, {}, 1.4, ["model"]),
    ],
    ids=str,
)
def test_report(made, capsys, kernel, stack, counted, loop, ns, expected) -> None:
    """The report finds a fault in any family."""
    made.stack[kernel] = stack
    made.items[kernel]["counted"].update(counted)
    made.loops[kernel].update({name: n - LOOP[name] for name, n in loop.items()})
    made.goals[kernel]["ns"] = ns
    assert made.gates() == expected
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    mma = f"{made.loops[kernel]['HMMA'] / 8:g}"
    cells = ["sm_90a", f"{kernel.tile}", "256x128x64", "bf16", "99", str(stack), mma, "100"]
    assert cells in [row[:8] for row in rows]


@pytest.mark.parametrize("kernel", MANGLED, ids=lambda kernel: kernel.family)
def test_report_of_what_is_at_barriers(made, kernel) -> None:
    made.intervals[kernel][0]["ldmatrix"] -= 1
    assert made.gates() == ["interval"]
    made.apart[kernel] = ["LDSM R4, [R3]"]
    made.step = [Failure("fences", "", 3, "2")]
    made.estimates = [Failure("estimate", "", 2, "1")]
    assert made.gates() == ["interval", "apart", "fences", "estimate"]


def test_report_of_an_architecture_without_the_goals_code(made) -> None:
    """This is a failure, because the goal cannot be checked."""
    assert made.gates("80") == ["model", "model"]
