# SPDX-License-Identifier: Apache-2.0
"""Results as JSON, as tables and as a plot."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Result = dict[str, Any]

# Each is the ratio's denominator where it ran: how many times faster than it a contender is.
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
KEYS = ("median_s", "q1_s", "q3_s")


def add_ratios(results: list[Result]) -> None:
    """Sets ``speedup`` of one case's results: baseline's median over the contender's."""
    median = {r["contender"]: r["median_s"] for r in results if r["status"] == "ok"}
    for result in results:
        if result["status"] == "ok":
            baselines = STEP_BASELINES if result["work"].startswith("step") else BASELINES
            result["speedup"] = {
                name: median[name] / result["median_s"]
                for name in baselines.values()
                if name in median
            }


def scaling(results: list[Result]) -> dict[str, float]:
    """How retnet's forward grows, where both of two shapes were measured: the time of 16 times as
    many tokens over 16 times the time, and the token-heads/s of one head over those of two (both by
    all threads). By dtype."""
    found = {}
    ns = {
        (r["dtype"], r["shape"]["T"], r["shape"]["H"]): r["ns_per_token_head"]
        for r in results
        if r["contender"] == "retnet chunkwise"
        and (r["work"], r["status"]) == ("forward", "ok")
        and (r["shape"]["B"], r["shape"]["K"], r["shape"]["V"]) == (1, 256, 512)
    }
    for dtype in _unique(key[0] for key in ns):
        for name, over, under in (
            ("T=131072 over 16 x T=8192", (dtype, 1 << 17, 4), (dtype, 8192, 4)),
            ("token-heads/s of H=1 over H=2", (dtype, 8192, 2), (dtype, 8192, 1)),
        ):
            if over in ns and under in ns:
                found[f"{name}, {dtype}"] = ns[over] / ns[under]
    return found


def number(x: float) -> str:
    """Four digits, never an exponent."""
    return f"{x:,.0f}" if x >= 1000 else f"{x:.4g}"


def table(results: list[Result]) -> str:
    """One case's results, those that did not run included."""
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
        quartiles = f"{number(r['q1_s'] * 1e3)}..{number(r['q3_s'] * 1e3)}"
        achieved = r["gb_per_s"] if rate == "GB/s" else r["tflops"]
        memory = r["peak_memory_bytes"]
        ratios = (r["speedup"].get(name) for name in baselines.values())
        lines.append(
            f"  {r['contender']:32}{number(r['median_s'] * 1e3):>10}{quartiles:>19}"
            f"{number(r['ns_per_token_head']):>12}{achieved:>9.3g}{r['roofline']:>9.1%}"
            f"{'' if r['share'] is None else format(r['share'], '.1%'):>9}"
            + "".join(f"{'' if x is None else format(x, '.3g'):>13}" for x in ratios)
            + f"{'-' if memory is None else format(memory / 2**20, '.0f'):>10}  {_error(r)}"
        )
    return "\n".join(lines)


def _error(result: Result) -> str:
    note = f"  {result['note']}" if result["note"] else ""
    if result["error"] is None:
        return "(another function)" + note
    verdict = "" if result["agrees"] else "  DISAGREES"
    rows = " (rows scaled)" if result["agreement"] == "rows" else ""
    return f"{result['error']:.1e}{rows}{verdict}{note}"


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Writes the whole report anew; a run that is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def plot(path: Path, report: dict[str, Any]) -> None:
    """ns per token-head of each contender: a row per work and dtype, a column per head size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = [r for r in report["results"] if r["status"] == "ok"]
    rows = _unique((r["work"], r["dtype"]) for r in results)
    results.sort(key=lambda r: not r["contender"].startswith("retnet"))  # ours first in the legend
    columns = _unique((r["shape"]["K"], r["shape"]["V"]) for r in results)
    if not results:
        return
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(4.6 * len(columns) + 2.4, 3.4 * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    colours = dict(zip(_unique(r["contender"] for r in results), _colours(), strict=False))
    for (work, dtype), line in zip(rows, axes, strict=True):
        for (K, V), ax in zip(columns, line, strict=True):
            some = [r for r in results if (r["work"], r["dtype"]) == (work, dtype)]
            some = [r for r in some if (r["shape"]["K"], r["shape"]["V"]) == (K, V)]
            ax.set_title(f"{work}   {dtype}   K={K} V={V}", fontsize=9)
            ax.set_visible(bool(some))
            _panel(ax, some, colours)
        line[0].set_ylabel("ns per token-head (log)", fontsize=8)
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, label=name)
        for name, (colour, marker) in colours.items()
    ]
    handles.append(plt.Line2D([], [], color="black", linestyle="--", label="roofline of retention"))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    load = report["machine"]["load_average"][0]
    figure.suptitle(
        f"{report['machine']['device']}, load average {load}: median and quartiles, less is better"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _colours() -> list[tuple[Any, str]]:
    """Ten colours, with another marker the second time."""
    import matplotlib

    ten = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    return [(colour, marker) for marker in "os^" for colour in ten]


def _panel(ax: Any, results: list[Result], colours: dict[str, tuple[Any, str]]) -> None:
    """A line per contender over the shapes, by B, T and H."""
    from matplotlib.ticker import LogFormatter

    sizes = ("B", "H", "T")
    shapes = sorted(_unique(tuple(r["shape"][x] for x in sizes) for r in results))
    for name in _unique(r["contender"] for r in results):
        some = {tuple(r["shape"][x] for x in sizes): r for r in results if r["contender"] == name}
        x = [i for i, shape in enumerate(shapes) if shape in some]
        taken = [some[shapes[i]] for i in x]
        ns = {key: [r[key] * r["ns_per_token_head"] / r["median_s"] for r in taken] for key in KEYS}
        median, q1, q3 = (ns[key] for key in KEYS)
        whiskers = [[m - low for m, low in zip(median, q1, strict=True)]]
        whiskers += [[high - m for m, high in zip(median, q3, strict=True)]]
        colour, marker = colours[name]
        ours = name.startswith("retnet")
        ax.errorbar(
            x,
            median,
            yerr=whiskers,
            color=colour,
            marker=marker,
            markersize=4,
            capsize=2,
            linewidth=2 if ours else 1,
            zorder=3 if ours else 2,
        )
        if name.startswith("retnet") and not name.endswith(("parallel", "recurrent")):
            floor = [r["ns_per_token_head"] * r["roofline"] for r in taken]
            ax.plot(x, floor, color="black", linestyle="--", marker="_", linewidth=1)
            for where, value, share in zip(x, median, (r["roofline"] for r in taken), strict=True):
                ax.annotate(
                    f"{number(value)} ns\n{share:.0%}",
                    (where, value),
                    (4, -4),
                    textcoords="offset points",
                    va="top",
                    fontsize=6,
                    color=colour,
                )
    ax.set_yscale("log")
    for axis_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        axis_formatter(LogFormatter(minor_thresholds=(2, 0.6)))  # without exponents
    ax.tick_params(axis="y", which="both", labelsize=7)
    ax.margins(x=0.2, y=0.15)
    labels = ["\n".join(f"{n}={v}" for n, v in zip(sizes, shape, strict=True)) for shape in shapes]
    ax.set_xticks(range(len(shapes)), labels, fontsize=7)
    ax.grid(True, which="major", alpha=0.3)


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
