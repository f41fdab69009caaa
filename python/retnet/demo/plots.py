# SPDX-License-Identifier: Apache-2.0
"""Draws the three plots of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from retnet.config import RetNetConfig
from retnet.demo.forms import Decoding
from retnet.demo.training import Point

__all__ = ["plot_decay", "plot_decoding", "plot_loss"]

_STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "savefig.dpi": 150,
}
_BIN = 64


def plot_loss(curve: list[Point], yardsticks: dict[str, float], final: float, path: Path) -> None:
    """Plots bits per byte against time, with lines for the n-gram models."""
    minutes = [point.seconds / 60 for point in curve]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        axes.plot(minutes, [p.train_bits for p in curve], color="C0", label="training (smoothed)")
        axes.plot(
            minutes, [p.held_out_bits for p in curve], "o-", ms=3, color="C1",
            label="held-out windows of 512 bytes",
        )  # fmt: skip
        axes.plot(minutes[-1], final, "*", ms=13, color="C3", zorder=3, label="held-out files")
        axes.annotate(
            f"{final:.3f}", (minutes[-1], final), (0, -16), textcoords="offset points",
            ha="center", color="C3",
        )  # fmt: skip
        for (name, bits), dash in zip(yardsticks.items(), ("--", ":"), strict=True):
            axes.axhline(bits, ls=dash, color="0.35", lw=1.2)
            axes.annotate(
                f"byte {name} {bits:.3f}", (1, bits), (0, 4), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", color="0.25",
            )  # fmt: skip
        lowest = min(min(p.train_bits, p.held_out_bits) for p in curve)
        low = min(lowest, final, *yardsticks.values()) - 0.4
        top = max(6.0, final, *yardsticks.values())
        axes.set(
            xlabel="minutes of training", ylabel="bits per byte", ylim=(low, top),
            title=f"RetNet on Python's standard library, {curve[-1].tokens / 1e6:.2f} M bytes read",
        )  # fmt: skip
        axes.set_xlim(left=0, right=minutes[-1] * 1.03)
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.97))
        figure.savefig(path)
        plt.close(figure)


def plot_decay(config: RetNetConfig, path: Path, length: int = 128) -> None:
    """Plots gamma^n of each head, and heat maps of D_nm = gamma^(n-m) for n >= m, else 0."""
    log_decay = config.log_decay().double().numpy()
    heads = config.num_heads
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(2.6 * heads + 1, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, heads, height_ratios=[1, 1])
        axes = figure.add_subplot(grid[0, :])
        n = np.arange(1, 2049)
        for head, g in enumerate(log_decay):
            axes.plot(n, np.exp(n * g), label=f"head {head}: $\\gamma$ = {np.exp(g):.5f}")
        axes.set_xscale("log", base=2)
        axes.set(
            xlabel="n, tokens ago", ylabel="$\\gamma^n$", xlim=(1, 2048), ylim=(0, 1.02),
            title="How much a head keeps of a token read n tokens ago",
        )  # fmt: skip
        axes.legend()
        row = np.arange(length)
        gap = row[:, None] - row[None, :]
        maps = []
        for head, g in enumerate(log_decay):
            axes = figure.add_subplot(grid[1, head])
            d = np.where(gap >= 0, np.exp(np.maximum(gap, 0) * g), np.nan)
            image = axes.imshow(d, cmap="viridis", norm=LogNorm(1e-2, 1), interpolation="nearest")
            axes.grid(False)
            axes.set_title(f"D, head {head}")
            axes.set_xlabel("m, token read")
            if head == 0:
                axes.set_ylabel("n, token written")
            else:
                axes.tick_params(labelleft=False)
            maps.append(axes)
        figure.colorbar(image, ax=maps, label="$D_{nm} = \\gamma^{n-m}$", extend="min", shrink=0.85)
        figure.savefig(path)
        plt.close(figure)


def plot_decoding(config: RetNetConfig, decoding: Decoding, path: Path) -> None:
    """Plots time per token and state size against length, and the size of a Transformer cache."""
    steps = np.asarray(decoding.step_us)
    bins = len(steps) // _BIN
    binned = steps[: bins * _BIN].reshape(bins, _BIN)
    at = (np.arange(bins) + 0.5) * _BIN
    tokens = np.arange(1, len(steps) + 1)
    cache = 2 * config.num_layers * config.embed_dim * 4 * tokens
    with plt.rc_context(_STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        low, middle, high = np.percentile(binned, [10, 50, 90], axis=1) / 1e3
        left.fill_between(at, low, high, alpha=0.25, lw=0, label="10th to 90th percentile")
        left.plot(at, middle, label=f"median of {_BIN} steps")
        left.set(
            xlabel="tokens read so far", ylabel="ms per token", title="Time of one decode step",
            ylim=(0, 1.6 * float(np.percentile(high, 95))), xlim=(0, len(steps)),
        )  # fmt: skip
        left.legend()
        right.plot(tokens, np.asarray(decoding.state_bytes) / 1024, label="RetNet state (measured)")
        right.plot(
            tokens, cache / 1024, "--",
            label=f"KV cache, Transformer of width {config.embed_dim}\nand {config.num_layers} "
            "layers, float32 (calculated)",
        )  # fmt: skip
        right.set_xscale("log", base=2)
        right.set_yscale("log", base=2)
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_formatter("{x:g}")
        right.set(xlabel="tokens read so far", ylabel="KiB", title="Memory kept between steps")
        right.set_xlim(1, len(steps))
        right.legend(loc="upper left")
        figure.savefig(path)
        plt.close(figure)
