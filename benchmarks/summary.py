# SPDX-License-Identifier: Apache-2.0
"""The results of a device: raw files, and the summary from which pages and plots are made.

A folder of results holds ``raw/<script>.json``, which has all that a script measured and which git
ignores. It also holds ``summary.json``, which has at most MOST_LINES lines and which git tracks.
The summary has a section for each script: its command, the machine and the versions, and one row,
on a line of its own, for each contender in each case. A row has at least KEYS, and also the shape,
the dtype, rates and ratios. ``speedup`` says how many times as fast as each baseline of the case it
is. What did not run is listed with the reason.
"""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
SECTIONS = ("ops", "model", "linear", "twins")  # in this order
KEYS = ("work", "contender", "rounds", "median_ms", "q1_ms", "q3_ms")
MOST_LINES = 500
MIB = 2**20


def round_to(x: float | None, digits: int = 5) -> float | None:
    """Rounds the number to so many significant digits."""
    return None if x is None else float(f"{x:.{digits}g}")


def number(x: float, digits: int = 4) -> str:
    """Formats so many digits, or all before the point, never with an exponent."""
    return f"{x:,.0f}" if x >= 10 ** (digits - 1) else f"{x:.{digits}g}"


def times(spread: dict[str, float]) -> Row:
    """Returns the keys of a row that say how long a call took, from a timing.Spread in seconds."""
    ms = {f"{name}_ms": round_to(1e3 * spread[name]) for name in ("median", "q1", "q3")}
    return {"rounds": spread["rounds"], **ms}


def without_out(command: Sequence[str]) -> str:
    """Returns the command that measured, without the option that says where it wrote."""
    kept = list(command)
    if "--out" in kept:
        where = kept.index("--out")
        del kept[where : where + 2]
    return "python benchmarks/" + shlex.join(x for x in kept if not x.startswith("--out="))


def not_run(results: list[dict[str, Any]]) -> list[Row]:
    """Returns who did not run and why, with the number of cases."""
    some = [r for r in results if r.get("status", "ok") != "ok"]
    counts = Counter((r["contender"], r["status"], r["reason"]) for r in some)
    return [
        {"contender": name, "status": status, "reason": reason, "cases": count}
        for (name, status, reason), count in counts.items()
    ]


def write(folder: Path, name: str, content: dict[str, Any], rows: list[Row], **more: Any) -> None:
    """Writes raw/<name>.json and the section of the summary, with what a script has measured so
    far.
    """
    _write(folder / "raw" / f"{name}.json", json.dumps(content, indent=1))
    machine = content["machine"]
    before = load(folder)["sections"] if (folder / "summary.json").exists() else {}
    section = {
        "command": without_out(content["command"]),
        "machine": machine,
        **more,
        "rows": [{k: x for k, x in row.items() if x not in (None, "", {})} for row in rows],
        "not_run": not_run(content["results"]),
    }
    sections = before | {name: section}
    summary = {
        "format": 1,
        "device": machine["device"],
        "sections": {each: sections[each] for each in SECTIONS if each in sections},
    }
    _write(folder / "summary.json", _spread(summary, 4))


def load(folder: Path) -> dict[str, Any]:
    """Returns the summary of a device."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def _write(path: Path, text: str) -> None:
    """Writes the whole file or nothing, because a run may be killed at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text + "\n")
    new.replace(path)


def _spread(value: Any, levels: int, indent: str = "") -> str:
    """Formats JSON with a line for each item down to a level. A dict at the last level is one
    line.
    """
    if not value or not isinstance(value, dict | list) or levels == 0:
        return json.dumps(value)
    if levels == 1 and isinstance(value, dict):
        return json.dumps(value)
    deeper = indent + " "
    if isinstance(value, list):
        items = [_spread(x, levels - 1, deeper) for x in value]
    else:
        items = [f"{json.dumps(k)}: {_spread(x, levels - 1, deeper)}" for k, x in value.items()]
    first, last = "[]" if isinstance(value, list) else "{}"
    return first + "\n" + ",\n".join(deeper + x for x in items) + f"\n{indent}{last}"
