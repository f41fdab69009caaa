# SPDX-License-Identifier: Apache-2.0
"""Writes all figures in the pages, and the plots, from the summaries: ``make results``.

A page quotes results between two lines. The text between them is generated::

    <!-- results: NAME -->
    <!-- end -->

NAME is one of BLOCKS. If the name of a folder of ``benchmarks/results`` follows it, the block is
about that device. Otherwise there is a block for each device. README.md, benchmarks/README.md and
docs/ are read. With ``--check`` nothing is written. The exit status is then 1 if a page or a plot
is not what the summaries give, or if a summary is too long.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import plots
import summary
from summary import Row, number

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"^<!-- results: (.*?) -->\n(.*?)^<!-- end -->$", re.DOTALL | re.MULTILINE)
NAMES = {  # names in tables; other contenders keep the name in the summary
    "retnet": "RetNet",
    "sdpa": "causal attention (SDPA)",
    "llama sdpa": "Llama (SDPA)",
    "llama eager": "Llama (eager)",
    "llama dynamic cache": "Llama (growing KV cache)",
    "llama static cache": "Llama (static KV cache)",
}
OURS = ("retnet chunkwise", "retnet retention_step")  # contenders of ops.py


class ReportError(Exception):
    """A page asks for results that do not exist."""


@dataclass(frozen=True)
class Device:
    """A summary as a page sees it. ``link`` is the path from the page to its folder."""

    name: str
    link: str
    summary: dict[str, Any]

    def rows(self, section: str, **fields: Any) -> list[Row]:
        """Returns the rows of a section with these values, or none if there is no such section."""
        rows: list[Row] = self.summary["sections"].get(section, {}).get("rows", [])
        return [r for r in rows if all(r.get(key) == value for key, value in fields.items())]

    def row(self, section: str, **fields: Any) -> Row:
        """Returns the first of these rows, which must exist."""
        for row in self.rows(section, **fields):
            return row
        raise ReportError(f"{self.name}/summary.json: {section} has no row with {fields}")

    def section(self, name: str) -> dict[str, Any]:
        """Returns a section, which must exist."""
        if name not in self.summary["sections"]:
            raise ReportError(f"{self.name}/summary.json: has no section {name}")
        found: dict[str, Any] = self.summary["sections"][name]
        return found


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Formats a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(row: Row) -> str:
    """Formats the median and the quartiles."""
    return f"{number(row['median_ms'])} ({number(row['q1_ms'])} to {number(row['q3_ms'])})"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def ratio(x: float | None) -> str:
    return "" if x is None else f"{x:.2f}x" if x < 10 else f"{x:.1f}x"


def mib(x: float | None) -> str:
    if x is None:
        return ""
    return number(x, 3) if x >= 1 else "< 1"


def named(contender: str) -> str:
    return NAMES.get(contender, contender)


def shape_of(row: Row) -> str:
    return " ".join(f"{size}={row[size]:,}" for size in "BTHKV")


def dtypes_of(rows: Iterable[Row]) -> list[str]:
    """Returns the dtypes, those with fewer bits first."""
    return sorted({r["dtype"] for r in rows}, key=lambda name: (name == "float32", name))


def machine_line(device: Device) -> str:
    """Describes the machine and the versions."""
    machine = next(iter(device.summary["sections"].values()))["machine"]
    facts = [f"torch {machine['torch']}", f"Python {machine['python']}"]
    if machine["type"] == "cuda":
        facts.append(f"CUDA {machine['cuda']}")
    else:
        facts = [f"{machine['cores']} cores", f"`{machine['instruction_set']}` kernels", *facts]
    return f"{machine['device'].removeprefix('CPU ')} ({', '.join(facts)})"


def rival(row: Row, rows: list[Row]) -> tuple[Row, float]:
    """Returns the fastest baseline of a row, and how many times as fast the row is."""
    name, times = min(row.get("speedup", {}).items(), key=lambda item: item[1])
    same = ("work", "size", "batch", "length", "dtype")
    cases = [r for r in rows if all(r.get(key) == row.get(key) for key in same)]
    return next(r for r in cases if r["contender"] == name), times


def headline(device: Device) -> str:
    """Writes the table of the README: models and retention against named baselines."""
    lines: list[list[str]] = []
    models = device.rows("model")
    ours = [r for r in models if r["contender"] == "retnet" and "speedup" in r]
    training = [r for r in ours if r["work"] == "training step"]
    for dtype in dtypes_of(training):
        r = max((r for r in training if r["dtype"] == dtype), key=lambda r: r["length"])
        other, times = rival(r, models)
        what = f"{r['size'].upper()} model, {r['length']:,} tokens, {dtype}"
        lines.append(
            [
                f"Train a {what}",
                f"{number(r['tokens_per_s'], 3)} tokens/s",
                f"{named(other['contender'])}: {number(other['tokens_per_s'], 3)} tokens/s",
                f"{ratio(times)} as fast",
            ]
        )
        lines.append(compare_memory(f"Memory that a step adds, {dtype}", r, other, "peak_mib"))
    steps = sorted((r for r in ours if r["work"] == "decode step"), key=lambda r: r["length"])
    for r in steps[:1] + steps[1:][-1:]:  # at a short and at a long context
        other, times = rival(r, models)
        context, rate = f"context of {r['length']:,} tokens", "{:.3g} ms, {:.3g} tokens/s"
        lines.append(
            [
                f"Decode one token, {context}, {r['size'].upper()} model, {r['dtype']}",
                rate.format(r["median_ms"], r["tokens_per_s"]),
                f"{named(other['contender'])}: "
                + rate.format(other["median_ms"], other["tokens_per_s"]),
                f"{ratio(times)} as fast",
            ]
        )
        lines.append(compare_memory(f"State or KV cache, {context}", r, other, "state_mib"))
    retention = device.rows("ops", work="forward+backward", contender=OURS[0], K=256, V=512)
    retention = [r for r in retention if "speedup" in r]
    for dtype in dtypes_of(retention):
        r = max((r for r in retention if r["dtype"] == dtype), key=lambda r: r["T"])
        for name, times in sorted(r.get("speedup", {}).items(), key=lambda item: item[1]):
            lines.append(
                [
                    f"Retention, forward and backward, {r['T']:,} tokens, {dtype}",
                    f"{number(r['median_ms'], 3)} ms",
                    f"{named(name)}: {number(r['median_ms'] * times, 3)} ms",
                    f"{ratio(times)} as fast",
                ]
            )
    picture = f"\n\n![RetNet and Llama]({device.link}/model.png)" if models else ""
    head = [f"Medians on {machine_line(device)}", "RetNet", "Baseline", "RetNet vs. baseline"]
    return table(head, lines) + picture


def compare_memory(what: str, ours: Row, other: Row, key: str) -> list[str]:
    """Returns a row of the headline."""
    name, share = named(other["contender"]), ""
    if key in ours and key in other:
        share = f"{percent(ours[key] / other[key])} of the memory"
    return [what, f"{mib(ours.get(key))} MiB", f"{name}: {mib(other.get(key))} MiB", share]


def whole(device: Device) -> str:
    """Writes everything that the summary of a device holds."""
    parts = [f"## {device.summary['device']}", f"Measured on {machine_line(device)}."]
    heads = ["command", "commit", "threads", "load average before"]
    parts.append(
        table(
            heads,
            (
                [
                    f"`{section['command']}`",
                    f"{section['machine']['commit']}",
                    f"{section['machine']['threads']}",
                    f"{section['machine']['load_average'][0]}",
                ]
                for section in device.summary["sections"].values()
            ),
        )
    )
    of_section = {"ops": whole_ops, "model": whole_model, "linear": whole_linear}
    for name, write in {**of_section, "twins": whole_twins}.items():
        if name in device.summary["sections"]:
            parts += write(device)
            missing = device.section(name)["not_run"]
            if missing:
                rows = ([f"{r['contender']}: {r['reason']}", f"{r['cases']}"] for r in missing)
                parts.append(table(["did not run", "cases"], rows))
    return "\n\n".join(parts)


def whole_ops(device: Device) -> Iterator[str]:
    """Writes a table for each kind of work and dtype, and then one for RetNet alone."""
    yield "### Retention"
    yield f"![Retention and its peers]({device.link}/ops.png)"
    rows = device.rows("ops")
    key = lambda r: (r["work"], r["dtype"])  # noqa: E731
    for work, dtype in dict.fromkeys(map(key, rows)):
        rate = ("gb_per_s", "GB/s") if work.startswith("step") else ("tflops", "TFLOP/s")
        some = [r for r in rows if key(r) == (work, dtype) and not r.get("alone")]
        sound = [r for r in some if r.get("agrees", True)]
        ours = {shape_of(r): r["median_ms"] for r in sound if r["contender"] in OURS}
        yield f"#### {work}, {dtype}"
        yield table(
            ["shape", "contender", "median ms (quartiles)", "time relative to RetNet", rate[1],
             "roofline", "peak MiB", "error"],
            (
                [
                    shape_of(r),
                    named(r["contender"]) + (f", {r['note']}" if "note" in r else ""),
                    milliseconds(r),
                    ratio(r["median_ms"] / ours[shape_of(r)])
                    if shape_of(r) in ours and r in sound
                    else "",
                    number(r[rate[0]], 3),
                    percent(r["roofline"]),
                    mib(r.get("peak_mib")),
                    f"{r['error']:.0e}" + ("" if r.get("agrees", True) else ", disagrees")
                    if "error" in r
                    else "different function",
                ]
                for r in some
            ),
        )  # fmt: skip
    alone = device.rows("ops", alone=True)
    if alone:
        yield "#### RetNet without peers, other shapes"
        head = ["work, shape, dtype", "median ms (quartiles)", "TFLOP/s", "roofline", "peak MiB"]
        yield table(
            head,
            (
                [
                    f"{r['work']}, {shape_of(r)}, {r['dtype']}",
                    milliseconds(r),
                    number(r["tflops"], 3),
                    percent(r["roofline"]),
                    mib(r.get("peak_mib")),
                ]
                for r in alone
            ),
        )
    grows = device.section("ops")["scaling"]
    if grows:
        yield table(["scaling", "ratio"], ([name, number(x, 3)] for name, x in grows.items()))


def whole_model(device: Device) -> Iterator[str]:
    """Writes a table for training and one for decoding."""
    yield "### RetNet and Llama models"
    yield f"![RetNet and Llama]({device.link}/model.png)"
    for work, cases in groupby(
        sorted(device.rows("model"), key=lambda r: r["work"], reverse=True), lambda r: r["work"]
    ):
        some = list(cases)
        decodes = work == "decode step"
        key = lambda r: tuple(r[x] for x in ("size", "dtype", "batch", "length"))  # noqa: E731
        ours = {key(r): r["median_ms"] for r in some if r["contender"] == "retnet"}
        held = ["state or cache MiB"] if decodes else []
        yield f"#### {work}"
        yield table(
            ["model, dtype, sequences", "context tokens" if decodes else "tokens", "contender",
             "median ms (quartiles)", "tokens/s", "time relative to RetNet", "share of limit",
             *held, "peak MiB"],
            (
                [
                    f"{r['size'].upper()}, {r['dtype']}, {r['batch']}",
                    f"{r['length']:,}",
                    named(r["contender"]),
                    milliseconds(r),
                    number(r["tokens_per_s"], 3),
                    ratio(r["median_ms"] / ours[key(r)]) if key(r) in ours else "",
                    percent(r["share"]),
                    *([mib(r.get("state_mib"))] if decodes else []),
                    mib(r.get("peak_mib"))
                    + (f" (at least {mib(r['least_mib'])})" if "least_mib" in r else ""),
                ]
                for r in some
            ),
        )  # fmt: skip


def whole_linear(device: Device) -> Iterator[str]:
    """Writes tables for decoding, against the bandwidth of reading memory, and for training,
    against torch.
    """
    yield "### Linear layers"
    for work in dict.fromkeys(r["work"] for r in device.rows("linear")):
        rate = ("gb_per_s", "GB/s") if work == "decoding" else ("gflops", "GFLOP/s")
        yield f"#### {work}"
        yield table(
            ["out x in, tokens, dtype", "contender", "median ms (quartiles)", rate[1],
             "speedup over `F.linear`", "share of read bandwidth"],
            (
                [
                    f"{r['out']:,} x {r['in']:,}, {r['tokens']:,}, {r['dtype']}",
                    {"linear": "`retnet.ops.linear`", "F.linear": "`F.linear`"}.get(
                        r["contender"], "reading the same bytes"
                    ),
                    milliseconds(r),
                    number(r[rate[0]], 3),
                    ratio(r.get("speedup", {}).get("F.linear")),
                    percent(r.get("share")),
                ]
                for r in device.rows("linear", work=work)
            ),
        )  # fmt: skip


def whole_twins(device: Device) -> Iterator[str]:
    """Writes a table of the C++ modules against the Python modules, on one thread."""
    yield "### C++ modules and their Python twins"
    rows = []
    for r in device.rows("twins", contender="retnet.cpp"):
        twin = device.row("twins", contender="retnet.nn", work=r["work"], size=r["size"])
        over = r["time_over_python"]
        rows.append(
            [
                f"{r['work']}, {r['size']}",
                milliseconds(r),
                milliseconds(twin),
                f"{over['median']:.3f} ({over['q1']:.3f} to {over['q3']:.3f})",
                f"{number(r['tokens_per_s'], 3)}",
                f"{number(twin['tokens_per_s'], 3)}",
            ]
        )
    head = ["work, size", "C++ ms (quartiles)", "Python ms (quartiles)", "C++ time / Python time"]
    yield table([*head, "C++ tokens/s", "Python tokens/s"], rows)


def cpu_retention(device: Device) -> str:
    """Writes the table in the page on CPU kernels with the heads of the paper at T = 8192."""
    section, dtypes = device.section("ops"), dtypes_of(device.rows("ops"))

    def column(dtype: str) -> dict[str, str]:
        def ours(work: str, H: int = 4, K: int = 256, V: int = 512) -> Row:
            shape = {"B": 1, "T": 8192, "H": H, "K": K, "V": V}
            return device.row("ops", contender=OURS[0], work=work, dtype=dtype, **shape)

        peak = section["ceilings"][dtype]["fma_flop_per_s"]
        cells = {"measured peak of multiply-adds, GFLOP/s": number(peak / 1e9, 3)}
        for work in ("forward", "forward+backward"):
            row = ours(work)
            cells[f"{work}, ms (quartiles)"] = milliseconds(row)
            cells[f"{work}, share of the peak"] = percent(row["share"])
            for name, times in row.get("speedup", {}).items():
                cells[f"{work}, speedup over {named(name)}"] = ratio(times)
                at_peak = ratio(times / row["share"])
                cells[f"{work}, speedup over {named(name)} if at the peak"] = at_peak
        for H, K, V in ((4, 256, 432), (8, 128, 256), (8, 128, 128), (16, 64, 64)):
            share = percent(ours("forward", H, K, V)["share"])
            cells[f"forward, share of the peak, H={H} K={K} V={V}"] = share
        for name, x in section["scaling"].items():
            if name.endswith(f", {dtype}"):
                cells[name.removesuffix(f", {dtype}")] = number(x, 3)
        return cells

    columns = [column(dtype) for dtype in dtypes]
    lines = ([name, *(x.get(name, "") for x in columns)] for name in columns[0])
    return table(["B=1 T=8,192 H=4 K=256 V=512", *dtypes], lines)


def cpu_models(device: Device) -> str:
    """Writes the table in the page on CPU kernels with models, their share of the limit and their
    memory.
    """
    lines = []
    for r in device.rows("model", contender="retnet"):
        others = ", ".join(f"{named(name)} {ratio(x)}" for name, x in r.get("speedup", {}).items())
        least = f" (at least {mib(r['least_mib'])})" if "least_mib" in r else ""
        lines.append(
            [
                f"{r['work']}, {r['size'].upper()}, {r['length']:,} tokens, {r['dtype']}",
                milliseconds(r),
                others,
                percent(r["share"]),
                f"{mib(r.get('peak_mib'))}{least}",
            ]
        )
    head = ["RetNet", "ms (quartiles)", "speedup over Llama", "share of limit", "added MiB"]
    return table(head, lines)


def cpu_steps(device: Device) -> str:
    """Writes the table in the page on CPU kernels with decode steps, linear layers and their
    bandwidth.
    """
    lines = []
    for r in device.rows("ops", work="step", contender="retnet retention_step"):
        name = f"decode step, B={r['B']} H={r['H']} K={r['K']} V={r['V']}, {r['dtype']}"
        others = ", ".join(f"{named(name)} {ratio(x)}" for name, x in r.get("speedup", {}).items())
        share = f"{percent(r['share'])} of updating"
        lines.append([name, milliseconds(r), number(r["gb_per_s"], 3), share, others])
    for r in device.rows("linear", contender="linear"):
        decodes = r["work"] == "decoding"
        if decodes and r["tokens"] != 1:
            continue
        tokens = "1 token" if decodes else f"{r['tokens']:,} tokens"
        name = f"linear {r['work']}, {r['out']:,} x {r['in']:,}, {tokens}, {r['dtype']}"
        share = f"{percent(r['share'])} of reading" if decodes else ""
        rate = number(r["gb_per_s"], 3) if decodes else ""
        times = f"`F.linear` {ratio(r['speedup']['F.linear'])}"
        lines.append([name, milliseconds(r), rate, share, times])
    head = ["work", "ms (quartiles)", "GB/s", "share of the bandwidth", "speedup over"]
    return table(head, lines)


BLOCKS: dict[str, Callable[[Device], str]] = {
    "headline": headline,
    "everything": whole,
    "cpu-retention": cpu_retention,
    "cpu-models": cpu_models,
    "cpu-steps": cpu_steps,
}


def devices(root: Path) -> dict[str, dict[str, Any]]:
    """Returns the summaries by the names of their folders."""
    folders = sorted(path.parent for path in root.glob("benchmarks/results/*/summary.json"))
    return {folder.name: summary.load(folder) for folder in folders}


def render(page: Path, root: Path, summaries: dict[str, dict[str, Any]]) -> str:
    """Returns the text of a page with its blocks as the summaries give them."""
    text, name = page.read_text(), page.relative_to(root)

    def block(found: re.Match[str]) -> str:
        wanted, *chosen = found[1].split()
        if wanted not in BLOCKS:
            raise ReportError(f"{name}: unknown results: {wanted} (known: {', '.join(BLOCKS)})")
        for device in chosen:
            if device not in summaries:
                raise ReportError(f"{name}: no results of {device} ({', '.join(summaries)})")
        parts = []
        for device in chosen or summaries:
            link = os.path.relpath(root / "benchmarks/results" / device, page.parent)
            parts.append(BLOCKS[wanted](Device(device, link, summaries[device])))
        return "\n\n".join([f"<!-- results: {found[1]} -->", *parts, "<!-- end -->"])

    # A mark after a backtick is an example.
    if len(re.findall("(?<!`)<!-- results:", text)) != len(MARKED.findall(text)):
        raise ReportError(f"{name}: <!-- results: NAME --> and <!-- end --> must be lines in pairs")
    return MARKED.sub(block, text)


def pages(root: Path) -> list[Path]:
    """Returns the pages that may quote results."""
    return [root / "README.md", root / "benchmarks/README.md", *sorted(root.glob("docs/**/*.md"))]


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; list what is stale")
    check: bool = parser.parse_args(arguments).check
    stale: list[str] = []
    try:
        summaries = devices(root)
        for page in pages(root):
            text = render(page, root, summaries)
            if text != page.read_text():
                stale.append(f"{page.relative_to(root)} is not what the summaries give")
                if not check:
                    page.write_text(text)
    except ReportError as error:
        print(error, file=sys.stderr)
        return 1
    for name, content in summaries.items():
        folder = root / "benchmarks/results" / name
        lines = len((folder / "summary.json").read_text().splitlines())
        if lines > summary.MOST_LINES:
            print(f"{name}/summary.json: {lines} lines of {summary.MOST_LINES}", file=sys.stderr)
            return 1
        for path in plots.stale(folder, content):
            stale.append(f"{path.relative_to(root)} is not drawn from the summary")
            if not check:
                plots.draw(path, content)
    for each in stale:
        print(each if check else f"wrote {each.split(' is not ')[0]}")
    if check and stale:
        print("run make results", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
