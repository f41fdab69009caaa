# SPDX-License-Identifier: Apache-2.0
"""Compares the simulation of compiled code with figures computed by hand."""

import struct
import sys
from collections import Counter

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import estimate_report as er
import sass
import sass_execute
import schedule
from latencies import INTERVALS, LATENCIES, Figure


def parse(*rows: str) -> list[sass.Instruction]:
    """Returns the instructions of a listing. `label:` names the next one.

    A row may begin with its schedule, `stall write read waits|`.
    """
    labels, lines = {}, []
    for row in rows:
        if row.endswith(":"):
            labels[row[:-1]] = f"0x{16 * len(lines):x}"
        else:
            lines.append(row)
    text = "\tcode for sm_90a\n\t\tFunction : kernel\n"
    for at, line in enumerate(lines):
        stall, write, read, waits = 1, 7, 7, 0
        if "|" in line:
            head, line = line.split("|")
            stall, write, read, waits = map(int, head.split())
        for label, address in labels.items():
            line = line.replace(f"<{label}>", address)
        word = (stall | write << 5 | read << 8 | waits << 11) << 41
        text += f"        /*{16 * at:04x}*/  {line.strip()} ;  /* 0x{0:016x} */\n"
        text += f"  /* 0x{word:016x} */\n"
    return sass.parse_sass(text)["90a", "kernel"]


def registers(*rows: str, arguments: bytes = b"", thread: int = 0) -> list[int]:
    """Returns the registers after some instructions."""
    program = sass_execute.Program(parse(*rows, "EXIT"))
    bank = sass_execute.constant_bank("90a", 256, 7, arguments)
    state = ([0] * 256, [0] * 64, [False] * 8, [False] * 8, bank, {"SR_TID.X": thread}, [], [])
    assert program.block(0)(*state) == -1
    return state[0]


WORD = (1 << 32) - 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("IADD3 R9, R1, -R2, 0x5", 100 - 7 + 5),
        ("IADD3 R9, R2, -R1, RZ", 7 - 100 & WORD),
        ("IMAD R9, R1, 0x3, -R2", 293),
        ("IMAD.HI.U32 R9, R3, R1, RZ", WORD * 100 >> 32),
        ("LEA R9, R1, R2, 0x4", 1607),
        ("LEA.HI R9, R1, R2, RZ, 0x1e", 7 + (100 >> 2)),
        ("LEA.HI.SX32 R9, R3, R2, 0x1e", 6),  # -1 >> 2
        ("LOP3.LUT R9, R1, R2, R3, 0x78, !PT", 100 ^ 7),
        ("LOP3.LUT R9, R1, 0xf, RZ, 0xc0, !PT", 4),
        ("LOP3.LUT R9, R1, R2, RZ, 0x3f, !PT", ~(100 & 7) & WORD),
        ("SHF.R.U32.HI R9, RZ, 0x5, R1", 3),
        ("SHF.R.S32.HI R9, RZ, 0x1f, R3", WORD),
        ("SHF.L.U64.HI R9, R3, 0x4, R1", 100 << 4 | 15),
        ("SHF.R.U64 R9, R1, 0x2, R2", (7 << 30 | 25) & WORD),
        ("VIADDMNMX R9, R1, -R2, 0x40, PT", 64),
        ("VIMNMX R9, RZ, R3, !PT", 0),
        ("VIMNMX.RELU R9, R3, R1, PT", 0),
        ("SEL R9, R1, R2, PT", 100),
        ("IABS R9, R3", 1),
        ("PRMT R9, R3, 0x8880, RZ", WORD),
        ("PRMT R9, R1, 0x7610, R2", 100 | 0),
        ("HFMA2.MMA R9, -RZ, RZ, 0, 5.9604644775390625e-08", 1),
        ("I2FP.F32.S32 R9, R3", struct.unpack("<I", struct.pack("<f", -1))[0]),
        ("FMUL R9, R4, 3", struct.unpack("<I", struct.pack("<f", 4.5))[0]),
        ("FSEL R9, R4, +INF, !PT", 0x7F800000),
        ("S2R R9, SR_TID.X", 64),
        ("LDC R9, c[0x0][0x214]", 77),
        ("LDC.U8 R9, c[0x0][0x211]", 2),
        ("MOV R9, c[0x0][0xc]", 7),
    ],
)
def test_values_of_instructions(row, expected) -> None:
    start = ["MOV R1, 0x64", "MOV R2, 0x7", "MOV R3, 0xffffffff", "MOV R4, 0x3fc00000"]
    arguments = struct.pack("<II", 0x0201, 77)
    assert registers(*start, row, arguments=arguments, thread=64)[9] == expected


@pytest.mark.parametrize(
    ("a", "b"), [(5, 3), (3, 5), (5, 5), (1 << 33, 1), (1, 1 << 33), (1 << 40, (1 << 40) - 1)]
)
def test_sums_and_comparisons_of_64_bits(a, b) -> None:
    rows = [
        "LDC.64 R2, c[0x0][0x210]",
        "LDC.64 R4, c[0x0][0x218]",
        "IADD3 R6, P0, R2, -R4, RZ",
        "IADD3.X R7, R3, ~R5, RZ, P0, !PT",
        "ISETP.GE.U32.AND P1, PT, R2, R4, PT",
        "ISETP.GE.AND.EX P1, PT, R3, R5, PT, P1",
        "SEL R8, R1, 0x1, !P1",
        "IMAD.WIDE.U32 R10, R2, 0x3, R4",
    ]
    found = registers(*rows, arguments=struct.pack("<QQ", a, b))
    assert found[6] | found[7] << 32 == a - b & (1 << 64) - 1
    assert found[8] == int(a >= b)
    assert found[10] | found[11] << 32 == (a & WORD) * 3 + b


@pytest.mark.parametrize(("a", "b"), [(1000, 7), (6, 7), (4096 * 12 + 5, 12), (2**31 + 9, 3)])
def test_the_compilers_division(a, b) -> None:
    """It multiplies by the reciprocal in fp32 and corrects the result."""
    rows = [
        *("LDC R4, c[0x0][0x210]", "LDC R5, c[0x0][0x214]"),
        *("I2F.U32.RP R0, R5", "MUFU.RCP R0, R0", "IADD3 R2, R0, 0xffffffe, RZ"),
        *("F2I.FTZ.U32.TRUNC.NTZ R3, R2", "MOV R2, RZ", "IMAD.MOV R7, RZ, RZ, -R3"),
        *("IMAD R7, R7, R5, RZ", "IMAD.HI.U32 R3, R3, R7, R2", "IMAD.HI.U32 R3, R3, R4, RZ"),
        *("IMAD.MOV R7, RZ, RZ, -R3", "IMAD R4, R5, R7, R4"),
        *("ISETP.GE.U32.AND P0, PT, R4, R5, PT", "@P0 IMAD.IADD R4, R4, 0x1, -R5"),
        *("@P0 IADD3 R3, R3, 0x1, RZ", "ISETP.GE.U32.AND P1, PT, R4, R5, PT"),
        "@P1 VIADD R3, R3, 0x1",
    ]
    assert registers(*rows, arguments=struct.pack("<II", a, b))[3] == a // b


LOOP = [
    "LDC R4, c[0x0][0x210]",
    "S2R R0, SR_TID.X",
    "ISETP.GE.AND P1, PT, R0, 0x20, PT",
    "MOV R5, RZ",
    "top:",
    "@!P1 BRA <skip>",
    "LDSM.16.M88.4 R8, [R4]",
    "skip:",
    "@P1 HMMA.16816.F32 R20, R8, R2, R20",
    "IADD3 R5, R5, 0x1, RZ",
    "ISETP.LT.AND P0, PT, R5, R4, PT",
    "@P0 BRA <top>",
    "CALL.REL.NOINC <sub>",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "EXIT",
    "sub:",
    "MUFU.RCP R6, R5",
    "RET.REL.NODEC R2 0x0",
]


@pytest.mark.parametrize("turns", [1, 5])
def test_what_warps_execute(turns) -> None:
    body = parse(*LOOP)
    bank = sass_execute.constant_bank("90a", 64, 1, struct.pack("<I", turns))
    first, second = sass_execute.traces(sass_execute.Program(body), bank, 64, 0)
    counts = [Counter(body[n].name for n in trace if n >= 0) for trace in (first, second)]
    assert [c["LDSM"] for c in counts] == [0, turns]
    assert [c["HMMA"] for c in counts] == [0, turns]
    assert first.count(~[i.name for i in body].index("HMMA")) == turns  # issued, but turned off
    assert [c["MUFU"] for c in counts] == [c["EXIT"] for c in counts] == [1, 1]


def test_a_loop_without_end(monkeypatch) -> None:
    monkeypatch.setattr(sass_execute, "LIMIT", 1000)
    program = sass_execute.Program(parse("top:", "NOP", "BRA <top>"))
    with pytest.raises(RuntimeError, match="more than 1000 instructions"):
        program.run([], {})


def cycles(*rows: str, warps: int = 1, resident: int = 1, ctas: int = 1) -> float:
    """Returns the cycles of blocks that execute all these instructions."""
    return result(*rows, warps=warps, resident=resident, ctas=ctas).cycles


def result(*rows: str, warps: int = 1, resident: int = 1, ctas: int = 1) -> schedule.Result:
    body = parse(*rows)
    costs = [schedule.cost(i, 6.0) for i in body]
    traces = [list(range(len(body)))] * warps
    return schedule.simulate(costs, traces, resident, ctas, 32.0)


HMMA = "HMMA.16816.F32 R20, R8, R2, R20"
COPY = ["1 7 7 0| LDGSTS.E.128 [R4], desc[UR4][R6.64]", "1 0 7 0| LDGDEPBAR"]
SHARED, GLOBAL = LATENCIES["shared"].value, LATENCIES["global"].value


@pytest.mark.parametrize(
    ("rows", "warps", "expected"),
    [
        (["4 7 7 0| FADD R1, R1, R1"] * 5, 1, 20),  # what the compiler states
        (["1 7 7 0| FADD R1, R1, R1"] * 5, 1, 5),
        (["1 7 7 0| IADD3 R1, R1, R1, RZ"] * 5, 1, 9),  # a pipe of half the rate
        (["1 7 7 0| FADD R1, R1, R1"] * 5, 4, 5),  # a scheduler each
        (["1 7 7 0| FADD R1, R1, R1"] * 5, 8, 10),  # two warps a scheduler
        ([f"1 7 7 0| {HMMA}"] * 5, 1, 25),  # 4 more of 6 cycles
        ([f"1 7 7 0| {HMMA}"] * 5, 8, 55),
        # A scoreboard: 4 wavefronts and the latency of shared memory.
        (["1 0 7 0| LDSM.16.M88.4 R8, [R4]", "1 7 7 1| NOP"], 1, 4 + SHARED + 1),
        (["1 0 7 0| LDS R8, [R4]", "1 7 7 1| NOP"], 1, 1 + SHARED + 1),
        (["1 0 7 0| LDS.128 R8, [R4]", "1 7 7 2| NOP"], 1, 2),  # another one
        # 512 bytes by 32 a cycle, and the latency of memory.
        (["1 0 7 0| LDG.E.128 R8, desc[UR4][R4.64]", "1 7 7 1| NOP"], 1, 16 + GLOBAL + 1),
        # Four warps share the pipe: 16 wavefronts.
        (["1 0 7 0| LDSM.16.M88.4 R8, [R4]", "1 7 7 1| NOP"], 4, 16 + SHARED + 1),
        # Operands are read before they may be written.
        (["1 7 0 0| STS [R4], R5", "1 7 7 1| NOP"], 1, 1 + LATENCIES["operands"].value + 1),
        # Copies: the group is waited for, the newest one not.
        ([*COPY, "1 7 7 0| DEPBAR.LE SB0, 0x0"], 1, 16 + GLOBAL + 1),
        ([*COPY, "1 7 7 0| DEPBAR.LE SB0, 0x1"], 1, 3),
        (["1 7 7 0| @!PT LDS RZ, [RZ]"] * 5, 1, 5),
        (["1 7 7 0| MEMBAR.ALL.GPU", "1 7 7 0| NOP"], 1, LATENCIES["fence"].value + 1),
    ],
)
def test_cycles_by_hand(rows, warps, expected) -> None:
    assert cycles(*rows, warps=warps) == expected


def test_a_barrier_waits_for_the_last_warp() -> None:
    """Eight warps with 6 mma each on four schedulers: the last barrier is reached at 72."""
    rows = [f"1 7 7 0| {HMMA}"] * 6 + ["1 7 7 0| BAR.SYNC.DEFER_BLOCKING 0x0", "1 7 7 0| NOP"]
    found = result(*rows, warps=8)
    last = 11 * 6 + 1  # the 12th mma issues at 66
    assert found.cycles == pytest.approx(last + LATENCIES["barrier"].value + 2)
    assert found.stalls["barrier"] > 0 and found.stalls["tensor"] > 0
    assert found.busy["tensor"] == 72


def test_blocks_follow_one_another() -> None:
    rows = ["4 7 7 0| FADD R1, R1, R1"] * 5
    assert cycles(*rows, ctas=3) == 60
    assert cycles(*rows, resident=2, ctas=4) == 40
    assert cycles(*rows, resident=4, ctas=4) == 20


def test_every_figure_has_a_source() -> None:
    for figure in [*INTERVALS.values(), *LATENCIES.values()]:
        assert isinstance(figure, Figure) and figure.value > 0 and len(figure.source) > 5


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "expected"),
    [
        *((256, 255, 139776, 1), (128, 255, 65536, 2), (256, 128, 20608, 2), (128, 40, 0, 12)),
        *((64, 16, 0, 32), (1024, 16, 0, 2), (128, 80, 100_000, 2)),
    ],
)
def test_blocks_of_a_multiprocessor(threads, registers, shared, expected) -> None:
    assert er.occupancy(threads, registers, shared) == expected


DEVICE = {"device": "H100", "architecture": "90a", "multiprocessors": 10, "clock_ghz": 2.0} | {
    **{"mma_per_cycle": 0.5, "l2_tbps": 1.0, "memory_tbps": 0.5},
}
# A loop over the first argument, 20 cycles a turn, of a tile that counts an mma a turn and warp.
KERNEL = "_ZN6retnet16chunkwise_kernelILNS1_5DTypeE2ELi3EEEv"
TURNS = [
    "1 7 7 0| ULDC UR4, c[0x0][0x210]",
    "5 7 7 0| MOV R5, RZ",
    "top:",
    f"8 7 7 0| {HMMA}",
    "1 7 7 0| BAR.SYNC.DEFER_BLOCKING 0x0",
    "1 7 7 0| LDSM.16.M88.4 R8, [R4]",
    "1 7 7 0| LDGSTS.E.128 [R4], desc[UR4][R6.64]",
    "1 7 7 0| STS.64 [R4], R6",
    "1 7 7 0| LDS.128 R8, [R4]",
    "1 7 7 0| IADD3 R5, R5, 0x10, RZ",
    "1 7 7 0| ISETP.LT.AND P0, PT, R5, UR4, PT",
    "1 7 7 0| @P0 BRA <top>",
    "1 7 7 0| EXIT",
]
COUNTED = {"mma": 4, "barriers": 1, "ldmatrix": 16, "cp_async": 16, "stores": 8, "loads": 16}
LAUNCH = {"name": "chunkwise_forward", "kernel": KERNEL, "blocks": 25, "threads": 128} | {
    **{"shared_bytes": 100_000, "units": 1000.0, "length": 1600, "chunk": 16},
    **{"l2_bytes": 3.0, "memory_bytes": 2.0},
    "runs": [{"length": n, "bytes": struct.pack("<I", n).hex()} for n in (64, 112)],
}
ITEM = {"family": "chunkwise", "dtype": "bf16", "tile": 3, "counted": COUNTED}


def test_the_simulation_of_a_launch() -> None:
    """25 blocks on 10 multiprocessors, 2 at a time: two rounds of 100 turns."""
    body = parse(*TURNS)
    total, executed = er.simulate_launch(body, LAUNCH, DEVICE, 2)
    costs = [schedule.cost(i, 8.0) for i in body]
    program = sass_execute.Program(body)
    bank = sass_execute.constant_bank("90a", 128, 25, struct.pack("<I", 1600))
    whole = schedule.simulate(costs, sass_execute.traces(program, bank, 128, 0), 2, 2, 50.0)
    assert total.cycles == pytest.approx(2 * whole.cycles, rel=0.01)
    assert total.busy["tensor"] == pytest.approx(2 * 2 * 100 * 8)
    assert executed[1] - executed[0] == {
        "HMMA": 12,
        **{"BAR": 12, "LDSM": 48, "LDGSTS": 48, "STS": 24, "LDS": 48},
    }
    assert er.check_executed(LAUNCH, executed, COUNTED) == []
    for key in COUNTED:
        (failure,) = er.check_executed(LAUNCH, executed, COUNTED | {key: 5})
        assert failure.gate == "executed" and key in failure.where


def test_the_simulation_of_blocks_without_a_loop() -> None:
    launch = LAUNCH | {"runs": LAUNCH["runs"][:1], "blocks": 1000}
    total, _ = er.simulate_launch(parse(*TURNS), launch, DEVICE, 2)
    few = LAUNCH | {"runs": LAUNCH["runs"][:1], "blocks": 20}
    pair, _ = er.simulate_launch(parse(*TURNS), few, DEVICE, 2)
    assert total.cycles == pytest.approx(50 * pair.cycles, rel=0.05)


PTXAS = f"""ptxas info    : Compiling entry function '{KERNEL}' for 'sm_90a'
ptxas info    : Function properties for {KERNEL}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 99 registers, used 1 barriers, 64 bytes smem
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "x.o.ptxas").write_text(PTXAS)
    body = parse(*TURNS)
    monkeypatch.setattr(er, "disassemble", lambda *_: "")
    monkeypatch.setattr(er, "parse_sass", lambda _: {("90a", KERNEL): body})
    return tmp_path


def gates(found: er.Estimate) -> list[str]:
    return [failure.gate for failure in found.failures]


def test_an_estimate_and_its_goal(folder) -> None:
    found = er.estimate(LAUNCH, folder, DEVICE, [ITEM], {"chunkwise_forward": 100})
    assert gates(found) == []
    cycle = 1 / 2.0 / 1000
    assert found.times["L2"] == 0.003 and found.times["memory"] == pytest.approx(0.004 / 0.9)
    assert found.bounds["tensor"] == pytest.approx(2 * 2 * 100 * 8 * cycle)
    assert found.ns == found.times["simulation"] > max(found.bounds.values())
    assert sum(found.stalls.values()) == pytest.approx(1)
    first, second, third = er.lines(found, 100)
    limit = max(found.bounds.values())
    assert first == f"estimate chunkwise_forward ns={found.ns:.4g} bound={limit:.4g} goal=100"
    assert second.startswith("  by simulation (simulation ")
    assert third.startswith("  warps: ") and "%" in third

    for goal, expected in ((found.ns * 1.001, []), (found.ns * 0.999, ["estimate"])):
        found = er.estimate(LAUNCH, folder, DEVICE, [ITEM], {"chunkwise_forward": goal})
        assert gates(found) == expected
    # No goal is a goal of 0. What memory takes longer for than the simulation.
    slow = er.estimate(LAUNCH | {"memory_bytes": 1e5}, folder, DEVICE, [ITEM], {})
    assert gates(slow) == ["estimate"] and slow.ns == pytest.approx(200 / 0.9)
    other = ITEM | {"counted": COUNTED | {"mma": 5}}
    found = er.estimate(LAUNCH, folder, DEVICE, [other], {"chunkwise_forward": 100})
    assert gates(found) == ["executed"]


def test_an_estimate_without_a_kernel(folder) -> None:
    launch = LAUNCH | {"kernel": "another_kernel"}
    assert gates(er.estimate(launch, folder, DEVICE, [ITEM], {})) == ["estimate"]


def test_every_launch_has_a_goal() -> None:
    text = (ROOT / "tests/kernels/cuda/kernel_launches.cpp").read_text()
    body = text[text.index("kernel_launches() {") :]
    found = {name for name in er.GOALS if f'("{name}"' in text}
    assert found == set(er.GOALS)
    assert body.count("(") - 1 == len(er.GOALS)  # each a call in the list, behind its own name


def test_the_validation_is_printed(monkeypatch) -> None:
    assert all(0.8 <= own / other <= 1.2 for _, own, other in er.VALIDATION)
    assert er.validation()[0].startswith("validation FlashAttention-2 forward, head size 128")
    monkeypatch.setattr(er, "VALIDATION", ())
    assert er.validation() == ["not validated"]
