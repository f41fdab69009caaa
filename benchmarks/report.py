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
        f"{first['work']}   {sizes}   {first['dtype']}   ceilings now: {ceilings}",
        f"  {'contender':32}{'median ms':>10}{'quartiles':>19}{'ns/tok-head':>12}{rate:>9}"
        f"{'roofline':>9}" + "".join(f"{c:>13}" for c in columns) + f"{'peak MiB':>10}  error",
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
            + "".join(f"{'' if x is None else format(x, '.3g'):>13}" for x in ratios)
            + f"{'-' if memory is None else format(memory / 2**20, '.0f'):>10}  {_error(r)}"
        )
    return "\n".join(lines)


def _error(result: Result) -> str:
    if result["error"] is None:
        return "(another function)"
    verdict = "" if result["agrees"] else "  DISAGREES"
    rows = " (rows scaled)" if result["agreement"] == "rows" else ""
    return f"{result['error']:.1e}{rows}{verdict}"


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Writes the whole report anew; a run that is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def plot(path: Path, report: dict[str, Any]) -> None:
    """ns per token-head of each contender: a panel per work and dtype, a colour per shape."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = [r for r in report["results"] if r["status"] == "ok"]
    panels = _unique((r["work"], r["dtype"]) for r in results)
    if not panels:
        return
    columns = len({dtype for _, dtype in panels})
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(7.5 * columns, 4.2 * rows), squeeze=False, layout="constrained"
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, panel in zip(axes.flat, panels, strict=False):
        _panel(ax, [r for r in results if (r["work"], r["dtype"]) == panel])
        ax.set_title("   ".join(panel))
    load = report["machine"]["load_average"][0]
    figure.suptitle(f"{report['machine']['device']}, load average {load}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(ax: Any, results: list[Result]) -> None:
    names = _unique(r["contender"] for r in results)
    shapes = _unique(tuple(r["shape"].items()) for r in results)
    step = 0.7 / len(shapes)
    for i, shape in enumerate(shapes):
        some = [r for r in results if tuple(r["shape"].items()) == shape]
        y = [names.index(r["contender"]) + (i - (len(shapes) - 1) / 2) * step for r in some]
        ns = {key: [r[key] * r["ns_per_token_head"] / r["median_s"] for r in some] for key in KEYS}
        median, q1, q3 = (ns[key] for key in KEYS)
        whiskers = [[m - x for m, x in zip(median, q1, strict=True)]]
        whiskers += [[x - m for m, x in zip(median, q3, strict=True)]]
        label = " ".join(f"{name}={size}" for name, size in shape)
        ax.errorbar(median, y, xerr=whiskers, fmt="o", markersize=5, capsize=2, label=label)
        for where, right, value in zip(y, q3, median, strict=True):
            ax.annotate(
                number(value),
                (right, where),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    ax.set_xscale("log")
    ax.margins(x=0.12)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.grid(True, which="major", alpha=0.3)
    ax.set_xlabel("ns per token-head, median and quartiles (log scale; less is better)")
    ax.legend(fontsize=7, loc="best")


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
