# SPDX-License-Identifier: Apache-2.0
"""Tests that the gates at barriers fail where a listing is altered."""

import sys

import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import barrier_gates as bg
import sass
import sass_flow
import step_report


def parse(*rows: str) -> list[sass.Instruction]:
    """Returns the instructions of a listing. `label:` names the next one."""
    labels, lines = {}, []
    for row in rows:
        if row.endswith(":"):
            labels[row[:-1]] = f"0x{16 * len(lines):x}"
        else:
            lines.append(row)
    text = "\tcode for sm_90a\n\t\tFunction : kernel\n"
    for at, line in enumerate(lines):
        for label, address in labels.items():
            line = line.replace(f"<{label}>", address)
        text += f"        /*{16 * at:04x}*/  {line} ;\n"
    return sass.parse_sass(text)["90a", "kernel"]


LOOP = [
    "loop:",
    "IADD3 R1, R1, 0x40, RZ",
    "DEPBAR.LE SB0, 0x0",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "LDGSTS.E.BYPASS.128 [R5+0x2000], desc[UR10][R36.64], P5",
    "LDSM.16.M88.4 R8, [R4]",
    "HMMA.16816.F32.BF16 R20, R8, R2, R20",
    "@!PT LDS RZ, [RZ]",
    "STS [R6], R20",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "LDSM.16.MT88.4 R8, [R7]",
    "HMMA.16816.F32.BF16 R24, R8, R2, R24",
    "HMMA.16816.F32.BF16 R28, R8, R10, R28",
    "@P0 BRA <loop>",
]
FIRST = {"ldmatrix": 1, "cp_async": 1, "stores": 1, "mma": 1}
SECOND = {"ldmatrix": 1, "cp_async": 0, "stores": 0, "mma": 2}


def moved(row: int, to: int) -> list[str]:
    rows = list(LOOP)
    rows.insert(to, rows.pop(row))
    return rows


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (LOOP, []),
        (moved(8, 9), ["stores behind barrier 1", "stores behind barrier 2"]),
        (moved(10, 8), ["ldmatrix behind barrier 1", "ldmatrix behind barrier 2"]),
        (moved(10, 1), []),  # from the last interval to its other end
        (moved(4, 1), ["cp_async behind barrier 1", "cp_async behind barrier 2"]),
        (moved(11, 6), ["mma behind barrier 1", "mma behind barrier 2"]),
        (LOOP[:9] + LOOP[10:], ["barriers in the code of the loop"]),
        ([*LOOP[:5], LOOP[4], *LOOP[5:]], ["cp_async behind barrier 1"]),
        ([*LOOP[:5], f"@!PT {LOOP[4]}", *LOOP[5:]], []),
    ],
)
def test_what_moves_across_a_barrier(rows, expected) -> None:
    loop = sass.main_loop(parse(*rows))
    failures = bg.check_intervals("here", bg.intervals(loop), [FIRST, SECOND])
    assert [f.where for f in failures] == [f"here, {text}" for text in expected]
    assert {f.gate for f in failures} <= {"interval"}


def test_a_loop_without_barriers() -> None:
    assert bg.intervals(parse("LDSM.16.M88.4 R8, [R4]")) == []


def test_the_schedule_of_an_instruction() -> None:
    text = """	code for sm_90a
		Function : kernel
        /*0780*/              @!P0 BRA P1, 0x73a0 ;    /* 0x0000000c00048947 */
                                                       /* 0x00cfea0003800000 */
"""
    (found,) = sass.parse_sass(text)["90a", "kernel"]
    assert found.control == 0x00CFEA0003800000 >> 41
    assert (found.guard, found.name, found.target) == ("!P0", "BRA", 0x73A0)
    assert found.text == "@!P0 BRA P1, 0x73a0"


TID = "S2R R0, SR_TID.X"
LANES = ["ISETP.GE.AND P1, PT, R0, 0x10, PT", "@P1 BRA <else>", "FADD R9, R9, R9", "else:"]
REGION = ["BSSY B0, <else>", *LANES, "BSYNC B0"]
NEEDS = ["LDSM.16.M88.4 R8, [R4]", "HMMA.16816.F32 R20, R8, R2, R20"]
CLUSTER = ["UCGABAR_ARV", "UCGABAR_WAIT"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([TID, *REGION, *NEEDS], 0),
        ([TID, *LANES, *NEEDS], 2),  # the convergence taken out
        ([TID, *LANES, "WARPSYNC.ALL", *NEEDS], 0),
        ([TID, "BSSY B0, <else>", *LANES[:3], *NEEDS, "else:", "BSYNC B0"], 2),  # inside
        ([TID, *LANES, *CLUSTER], 2),
        ([TID, *REGION, *CLUSTER], 0),
        # What all lanes have: an argument, a number of the block or of the warp, what they load
        # from one address.
        (["LDC R0, c[0x0][0x210]", *LANES, *NEEDS], 0),
        (["S2R R0, SR_CTAID.X", *LANES, *NEEDS], 0),
        ([TID, "SHF.R.U32.HI R0, RZ, 0x5, R0", *LANES, *NEEDS], 0),
        ([TID, "SHF.R.U32.HI R0, RZ, 0x4, R0", *LANES, *NEEDS], 2),
        (["LDC.64 R2, c[0x0][0x210]", "LDG.E R0, desc[UR4][R2.64]", *LANES, *NEEDS], 0),
        ([TID, "IMAD.WIDE R2, R0, 0x4, R4", "LDG.E R0, desc[UR4][R2.64]", *LANES, *NEEDS], 2),
        (["SHFL.BFLY PT, R0, R3, 0x1, 0x1f", *LANES, *NEEDS], 2),
        # A register that was overwritten, and one that was so only under another predicate.
        ([TID, "MOV R0, RZ", *LANES, *NEEDS], 0),
        ([TID, "@P2 MOV R0, RZ", *LANES, *NEEDS], 2),
        ([TID, "@P2 MOV R0, RZ", f"@P2 {LANES[0]}", *LANES[1:], *NEEDS], 0),
        # The predicate of the instruction itself.
        ([TID, LANES[0], "@P1 LDSM.16.M88.4 R8, [R4]"], 1),
        (["LDC R0, c[0x0][0x210]", LANES[0], "@P1 LDSM.16.M88.4 R8, [R4]"], 0),
        # Lanes that have left do not count. A region inside another one.
        ([TID, LANES[0], "@P1 EXIT", *NEEDS], 0),
        ([TID, "BSSY B1, <end>", *REGION, "end:", "BSYNC B1", *NEEDS], 0),
        ([TID, "BSSY B1, <end>", *REGION, *LANES[1:3], *NEEDS, "else:", "end:", "BSYNC B1"], 2),
        # A region in a loop that is never closed.
        ([TID, "top:", *REGION[:-1], *NEEDS, "@P3 BRA <top>"], 2),
        ([TID, "top:", *REGION, *NEEDS, "@P3 BRA <top>"], 0),
        # A loop that lanes leave one by one.
        ([TID, "top:", "IADD3 R0, R0, 0x1, RZ", LANES[0], "@!P1 BRA <top>", *NEEDS], 2),
    ],
)
def test_lanes_that_are_alone(rows, expected) -> None:
    found = [i.text for i in sass_flow.Flow(parse(*rows, "EXIT")).apart()]
    assert len(found) == expected
    failures = bg.check_apart("here", found)
    assert [f.gate for f in failures] == ["apart"] * bool(expected)


BARRIER = ["MEMBAR.ALL.GPU", "ERRBAR", "UCGABAR_ARV", "UCGABAR_WAIT", "CCTL.IVALL"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (BARRIER * 2, []),
        (BARRIER * 3, ["MEMBAR", "CCTL"]),
        ([*BARRIER * 2, "MEMBAR.SC.SYS"], ["MEMBAR"]),
        ([*BARRIER * 2, "MEMBAR.SC.CTA", "CCTL.IV [R4]"], []),
        ([TID, *LANES, *BARRIER], ["apart", "apart"]),
    ],
)
def test_the_code_of_the_decode_step(rows, expected) -> None:
    failures = step_report.check_kernel("90a", "step", parse(*rows, "EXIT"), 2)
    found = [f.where.split(", ")[-1] if f.gate == "fences" else f.gate for f in failures]
    assert found == (expected if "apart" not in expected else ["apart"])
    assert all(f.where.startswith("step sm_90a, ") for f in failures)
