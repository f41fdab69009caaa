# SPDX-License-Identifier: Apache-2.0
"""Draws a summary: ops.png and model.png, with bars, 800 pixels wide on a page.

A project has one colour in every panel, and its fastest variant is drawn. Each picture carries a
digest of what it shows, so that a stale one is found without drawing it again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

from summary import Row

PROJECTS = {  # first word of a contender's name: name in the legend, colour
    "retnet": ("RetNet", "#0072b2"),
    "llama": ("Llama (its fastest variant)", "#d55e00"),
    "sdpa": ("causal attention (SDPA)", "#d55e00"),
    "torchscale": ("torchscale", "#009e73"),
    "fla": ("flash-linear-attention", "#cc79a7"),
    "helion": ("Helion", "#e69f00"),
}


@dataclass(frozen=True)
class Panel:
    """Groups of bars, with one bar for each project in a group."""

    title: str
    unit: str
    groups: dict[str, dict[str, float]]  # {label: {project: value}}


def project(contender: str) -> str:
    """Returns the project of a contender."""
    return contender.split()[0]


def best(rows: list[Row], value: Callable[[Row], float | None]) -> dict[str, float]:
    """Returns, by project, the value of its fastest contender."""
    found: dict[str, float] = {}
    for row in sorted(rows, key=lambda row: row["median_ms"]):
        x = value(row)
        if x is not None:
            found.setdefault(project(row["contender"]), x)
    return found


def model_panels(rows: list[Row]) -> list[Panel]:
    """Returns panels for training and decoding by length: speed and memory."""
    wanted: list[tuple[str, str, str, Callable[[Row], float | None]]] = [
        ("training step", "Training", "tokens/s", lambda r: r["tokens_per_s"]),
        ("training step", "Memory that a step adds", "MiB", lambda r: r.get("peak_mib")),
        ("decode step", "Decoding one token", "ms", lambda r: r["median_ms"]),
        ("decode step", "State or KV cache", "MiB", lambda r: r.get("state_mib")),
    ]
    panels = []
    for work, title, unit, value in wanted:
        some = [r for r in rows if r["work"] == work]
        some = [r for r in some if r["batch"] == min(x["batch"] for x in some)]
        groups = {}
        for dtype, length in sorted({(r["dtype"], r["length"]) for r in some}):
            same = [r for r in some if (r["dtype"], r["length"]) == (dtype, length)]
            groups[f"{length:,} tokens\n{dtype}"] = best(same, value)
        if groups:
            panels.append(Panel(f"{title}, {some[0]['size'].upper()} model", unit, groups))
    return panels


def ops_panels(rows: list[Row]) -> list[Panel]:
    """Returns panels with the time of each project relative to RetNet at the largest heads, and one
    with the share of the roofline.
    """
    panels = []
    for work, title in (
        ("forward", "Forward"),
        ("forward+backward", "Forward and backward"),
        ("step", "Decode step"),
    ):
        some = [r for r in rows if r["work"] == work and "alone" not in r and r.get("agrees", True)]
        some = [r for r in some if (r["K"], r["V"]) == max((x["K"], x["V"]) for x in some)]
        groups: dict[str, tuple[str, dict[str, float]]] = {}
        shapes = dict.fromkeys((r["dtype"], r["T"], r["B"], r["H"]) for r in some)
        for dtype, T, B, H in sorted(shapes, key=lambda shape: shape[:2]):
            same = [r for r in some if (r["dtype"], r["T"], r["B"], r["H"]) == (dtype, T, B, H)]
            times = best(same, lambda r: r["median_ms"])
            size = f"B={B} H={H}" if work == "step" else f"T={T:,}"
            if "retnet" in times:
                over = {name: x / times["retnet"] for name, x in times.items()}
                groups.setdefault(f"{size}\n{dtype}", (f"{times['retnet']:.3g} ms", over))
        if groups:
            named = {f"{label}\n{ms}": over for label, (ms, over) in groups.items()}
            panels.append(Panel(title, "time relative to RetNet", named))
    ours = [r for r in rows if (r["work"], r["contender"]) == ("forward", "retnet chunkwise")]
    if ours:
        dtype, T = min(r["dtype"] for r in ours), mode(r["T"] for r in ours)
        shares: dict[str, dict[str, float]] = {}
        for r in sorted(ours, key=lambda r: (r["K"], r["V"])):
            if (r["dtype"], r["T"]) == (dtype, T):
                shares.setdefault(f"K={r['K']}\nV={r['V']}", {"retnet": 100 * r["roofline"]})
        panels.append(Panel(f"RetNet forward, T={T:,}, {dtype}", "% of the roofline", shares))
    return panels


PLOTS: dict[str, Callable[[list[Row]], list[Panel]]] = {"ops": ops_panels, "model": model_panels}


def digest(content: dict[str, Any], name: str) -> str:
    """Returns a digest of what a plot shows."""
    shown = PROJECTS, PLOTS[name](content["sections"][name]["rows"])
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def stale(folder: Path, content: dict[str, Any]) -> list[Path]:
    """Returns the plots of a summary that are missing or show something else."""
    paths = [folder / f"{name}.png" for name in PLOTS if name in content["sections"]]
    return [
        path
        for path in paths
        if not path.exists() or digest(content, path.stem).encode() not in path.read_bytes()
    ]


def draw(path: Path, content: dict[str, Any]) -> None:
    """Draws one plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = PLOTS[path.stem](content["sections"][path.stem]["rows"])
    drawn = {name for panel in panels for group in panel.groups.values() for name in group}
    names = [name for name in PROJECTS if name in drawn]
    columns = 2 if len(panels) > 1 else 1
    lines = -(-len(panels) // columns)
    with plt.rc_context(
        {"font.size": 8, "axes.titlesize": 8.5, "axes.titleweight": "bold", "legend.fontsize": 9}
    ):
        figure, axes = plt.subplots(
            lines, columns, figsize=(8, 0.5 + 2.6 * lines), squeeze=False, layout="constrained"
        )
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for panel, ax in zip(panels, axes.flat, strict=False):
            _bars(ax, panel, names)
        handles = [
            plt.Rectangle((0, 0), 1, 1, color=colour, label=label)
            for label, colour in (PROJECTS[name] for name in names)
        ]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=len(handles), frameon=False
        )
        metadata = {"Description": digest(content, path.stem)}
        figure.savefig(path, dpi=150, metadata=metadata)
    plt.close(figure)


def _bars(ax: Any, panel: Panel, names: list[str]) -> None:
    """Draws one panel: the projects in the order of the legend, and a value above each bar."""
    here = [name for name in names if any(name in group for group in panel.groups.values())]
    upright = 90 if len(here) > 3 else 0  # narrow bars
    width = min(0.42, 0.84 / len(here))
    for place, name in enumerate(here):
        x = [i for i, group in enumerate(panel.groups.values()) if name in group]
        heights = [group[name] for group in panel.groups.values() if name in group]
        offset = (place - (len(here) - 1) / 2) * width
        bars = ax.bar([i + offset for i in x], heights, 0.94 * width, color=PROJECTS[name][1])
        values = [_value(height) for height in heights]
        ax.bar_label(bars, values, padding=2, fontsize=7, rotation=upright)
    ax.set_title(f"{panel.title}: {panel.unit}")
    ax.set_xticks(range(len(panel.groups)), list(panel.groups))
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_visible(False)
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.margins(y=0.2 if upright else 0.12)


def _value(x: float) -> str:
    """Formats a number with three digits at most."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}" if x < 1 else f"{x:.3g}"
