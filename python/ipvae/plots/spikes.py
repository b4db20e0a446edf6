"""Figures of spikes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ipvae_kernels import checks

from ..extras import explained
from .canvas import (
    BLUE,
    INK,
    MUTED,
    Array,
    limit_of,
    matrix,
    new_figure,
    set_heading,
    with_grid,
)

with explained():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


# Of a raster: inches of a neuron's row, at 160 dpi five pixels, enough to see dots of several sizes; and the
# area of a single spike's dot where others are far larger, as a share of the largest.
RASTER_ROW, SMALLEST_DOT = 0.032, 0.12


def raster(
    counts: ArrayLike,
    *,
    first_step: int = 1,
    sort: bool = True,
    limit: int | None = 256,
    title: str = "Spikes of one input",
) -> Figure:
    """Spikes of the neurons of one sample over time, with the population count below.

    Args:
        counts: [steps, K], spikes per step and neuron.
        first_step: the step of the first row, counted from 1.
        sort: most active neuron at the top, those that never fired left out; False shows all in order.
        limit: show the first so many neurons; None: all.
        title: above the figure.

    Returns:
        A figure with two axes: one dot per neuron and step that spiked, of an area that grows with the count
        (the legend shows how) and never wider than its cell, so that dots do not merge at any rate; and their
        sum.
    """
    z, limit, sort = matrix("counts", counts), limit_of("limit", limit), checks.flag("sort", sort)
    first_step = checks.integer("first_step", first_step, 0, 2**53)
    totals = z.sum(axis=0)
    order = np.arange(z.shape[1])
    if sort:
        order = np.argsort(-totals, kind="stable")[: max(np.count_nonzero(totals), 1)]
    shown = z[:, order[:limit]]
    times, neurons = np.nonzero(shown)
    height = float(np.clip(RASTER_ROW * shown.shape[1], 3.2, 8.0))
    figure, axes = new_figure((9.0, height + 2.2), 2, 1, height_ratios=[height, 1.2], sharex=True)
    cell = 72.0 * min(8.0 / shown.shape[0], height / shown.shape[1])  # points, the narrower side
    _dots(axes[0], times + first_step, neurons, shown[times, neurons], min(cell, 8.0))
    axes[0].set(ylim=(shown.shape[1] - 0.5, -0.5), ylabel="neuron, most active first" if sort else "neuron")
    population = z.sum(axis=1)
    steps = np.arange(len(z)) + first_step
    axes[1].fill_between(steps, population, step="mid", color=BLUE, alpha=0.25, lw=0)
    axes[1].step(steps, population, where="mid", color=BLUE, lw=1.3)
    axes[1].set(
        ylim=(0, max(float(population.max()) * 1.15, 1.0)), xlim=(steps[0] - 0.5, steps[-1] + 0.5),
        xlabel="inference step", ylabel="spikes",
    )  # fmt: skip
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    with_grid(axes[1])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    silent = 100 * float(np.mean(z == 0))
    set_heading(
        figure, title,
        f"{shown.shape[1]} of {z.shape[1]} neurons; {silent:.1f} % silent, mean over all and steps",
    )  # fmt: skip
    return figure


def _dots(ax: Axes, x: NDArray[np.int64], y: NDArray[np.int64], counts: Array, widest: float) -> None:
    """A dot per count above zero, at most `widest` points across, and a legend of what their sizes mean."""
    top = math.ceil(np.percentile(counts, 99)) if counts.size else 1

    def area(n: Any) -> Any:
        return widest**2 * (SMALLEST_DOT + (1.0 - SMALLEST_DOT) * np.minimum(n, top) / top)

    ax.scatter(x, y, s=area(counts), c=INK, marker="o", linewidths=0, rasterized=True)
    examples = sorted({1, max(1, round(top / 2)), top})
    for n in examples:
        more = n == top and counts.size and counts.max() > top
        label = f"{n}{' or more' if more else ''} spike{'s' if n > 1 or more else ''}"
        ax.scatter([], [], s=area(n), c=INK, linewidths=0, label=label)
    ax.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(examples), frameon=False, fontsize=9,
        labelcolor=MUTED, handletextpad=0.1, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip
