"""Figures from plain arrays; no pyplot, no global state.

Every function returns a `Figure`, which the caller saves with ``figure.savefig(path)``; no display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ipvae_kernels import checks

from .extras import explained
from .inputs import dense

with explained():
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN, INK, MUTED, GRID = "#1f5f99", "#d1622b", "#2f7d5b", "#22262b", "#6b7280", "#e3e6ea"
# Negative blue, zero white, positive red: features have signs, and a white zero sets them apart.
DIVERGING = LinearSegmentedColormap.from_list(
    "features", ["#163b66", "#4f8bc4", "#ffffff", "#e08a5a", "#8a2a12"]
).with_extremes(bad="#e9ecef")
DPI = 160
# Of a raster: inches of a neuron's row, at 160 dpi five pixels, enough to see dots of several sizes; and the
# area of a single spike's dot where others are far larger, as a share of the largest.
RASTER_ROW, SMALLEST_DOT = 0.032, 0.12

Array = NDArray[np.float64]


def features(
    dictionary: ArrayLike,
    shape: Sequence[int],
    *,
    use: ArrayLike | None = None,
    limit: int | None = None,
    columns: int | None = None,
    title: str | None = None,
) -> Figure:
    """The dictionary as a grid of features, the most useful first.

    Args:
        dictionary: Phi, [M, K].
        shape: of an input: (height, width), or (channels, height, width) with 1 or 3 channels.
        use: [K], what features are sorted by, descending: the variance that each explains
            (`explained_variance`); None keeps the order. Not the counts: the neurons that fire
            most are often the noisiest.
        limit: show the first so many; None: all.
        columns: of the grid; None: as square as the figure.
        title: None gives one that tells the order.

    Returns:
        A figure with one axes and one image. Each feature is scaled by its own largest magnitude; white is
        zero.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    phi, limit, columns = (
        _matrix("dictionary", dictionary),
        _limit("limit", limit),
        _limit("columns", columns),
    )
    order = np.arange(phi.shape[1])
    if use is not None:
        used = _numbers("use", use)
        if used.shape != (phi.shape[1],):
            raise ValueError(f"use: expected shape ({phi.shape[1]},), found {used.shape}")
        order = np.argsort(-used, kind="stable")
    order = order[:limit]
    tiles = _images("dictionary", phi[:, order].T, shape)
    peak = np.abs(tiles).reshape(len(tiles), -1).max(axis=1)
    tiles = tiles / np.where(peak > 0, peak, 1.0)[:, None, None, None]
    n_columns = columns or _columns(len(tiles))
    color = tiles.shape[-1] == 3
    mosaic = _mosaic((tiles + 1.0) / 2.0 if color else tiles, n_columns, fill=0.92 if color else np.nan)
    figure, (axes,) = _figure(_fit(mosaic.shape[1] / mosaic.shape[0], width=9.0), 1, 1)
    axes.imshow(mosaic if color else mosaic[..., 0], cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    _bare(axes)
    text = (
        f"{len(tiles)} features" if len(tiles) == phi.shape[1] else f"{len(tiles)} of {phi.shape[1]} features"
    )
    _title(axes, title if title is not None else text + ("" if use is None else ", most useful first"))
    return figure


def convergence(
    r2: ArrayLike,
    zeros: ArrayLike,
    *,
    trained_steps: int | None = None,
    references: Mapping[str, tuple[float, float]] | None = None,
    title: str = "Inference over steps",
) -> Figure:
    """R2 and the share of silent neurons over inference steps.

    Args:
        r2: [steps].
        zeros: [steps], fraction in [0, 1].
        trained_steps: T of training, drawn as a mark; None: no mark.
        references: name -> (R2, zeros) of other models, drawn as thin lines.
        title: above the figure.

    Returns:
        A figure with two axes, steps on a logarithmic scale.
    """
    curves = (_vector("r2", r2), _vector("zeros", zeros))
    trained_steps = _limit("trained_steps", trained_steps)
    figure, axes = _figure((9.0, 3.8), 1, 2)
    for i, (ax, curve, color, name) in enumerate(
        zip(axes, curves, (BLUE, ORANGE), ("$R^2$", "silent neurons"), strict=True)
    ):
        steps = np.arange(1, len(curve) + 1)
        ax.plot(steps, curve, color=color, lw=2.2, solid_capstyle="round", zorder=3)
        ax.plot(steps[-1:], curve[-1:], "o", color=color, ms=5, zorder=4, clip_on=False)
        ax.annotate(
            f"{curve[-1]:.3f}" if i == 0 else f"{100 * curve[-1]:.1f} %",
            (float(steps[-1]), float(curve[-1])), xytext=(-2, 8), textcoords="offset points",
            ha="right", color=color, fontsize=11, fontweight="bold",
        )  # fmt: skip
        for label, values in (references or {}).items():
            ax.axhline(values[i], color=MUTED, lw=1.0, ls=(0, (4, 3)), zorder=1)
            ax.annotate(
                label, (0.01, values[i]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                textcoords="offset points", color=MUTED, fontsize=8.5,
            )  # fmt: skip
        if trained_steps is not None:
            ax.axvline(trained_steps, color=MUTED, lw=1.0, ls=":", zorder=1)
            ax.annotate(
                f"trained with {trained_steps}", (trained_steps, 0.02), xycoords=("data", "axes fraction"),
                xytext=(4, 0), textcoords="offset points", color=MUTED, fontsize=8.5,
            )  # fmt: skip
        ax.set(xscale="log", xlim=(1, max(len(curve), 2)), xlabel="inference step", ylabel=name)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.margins(y=0.16)
        _grid(ax)
    axes[1].yaxis.set_major_formatter(_percent)
    _suptitle(figure, title)
    return figure


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
    z, limit, sort = _matrix("counts", counts), _limit("limit", limit), checks.flag("sort", sort)
    first_step = checks.integer("first_step", first_step, 0, 2**53)
    totals = z.sum(axis=0)
    order = np.arange(z.shape[1])
    if sort:
        order = np.argsort(-totals, kind="stable")[: max(np.count_nonzero(totals), 1)]
    shown = z[:, order[:limit]]
    times, neurons = np.nonzero(shown)
    height = float(np.clip(RASTER_ROW * shown.shape[1], 3.2, 8.0))
    figure, axes = _figure((9.0, height + 2.2), 2, 1, height_ratios=[height, 1.2], sharex=True)
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
    _grid(axes[1])
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    silent = 100 * float(np.mean(z == 0))
    _suptitle(
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


def reconstructions(
    x: ArrayLike,
    reconstruction: ArrayLike,
    shape: Sequence[int],
    *,
    limit: int = 10,
    title: str = "Input, reconstruction and what is left",
) -> Figure:
    """Rows of inputs, reconstructions and residuals.

    Args:
        x: [N, M].
        reconstruction: [N, M].
        shape: of an input: (height, width), or (channels, height, width) with 1 or 3 channels.
        limit: show the first so many.
        title: above the figure.

    Returns:
        A figure with 3 x min(N, limit) axes of one image each. Input and reconstruction share one grey scale
        per column; residuals share one symmetric scale.
    """
    n_shown = _limit("limit", limit)
    inputs, outputs = _matrix("x", x)[:n_shown], _matrix("reconstruction", reconstruction)[:n_shown]
    if inputs.shape != outputs.shape:
        raise ValueError(f"reconstruction: expected shape {inputs.shape}, found {outputs.shape}")
    images = [_images("x", a, shape) for a in (inputs, outputs, inputs - outputs)]
    n, height, width = images[0].shape[:3]
    bound = float(np.abs(images[2]).max()) or 1.0
    figure, axes = _figure((max(0.95 * n, 3.0) + 0.7, (0.95 * height / width) * 3 + 0.75), 3, n)
    for row, (name, tiles) in enumerate(zip(("input", "recon.", "residual"), images, strict=True)):
        for column in range(n):
            ax = axes[row * n + column]
            scale = (
                (-bound, bound)
                if row == 2
                else (float(images[0][column].min()), float(images[0][column].max()))
            )
            tile = tiles[column]
            if tile.shape[-1] == 3:
                low, high = scale
                ax.imshow(np.clip((tile - low) / (high - low or 1.0), 0, 1), interpolation="nearest")
            else:
                ax.imshow(
                    tile[..., 0], cmap=DIVERGING if row == 2 else "gray", vmin=scale[0], vmax=scale[1],
                    interpolation="nearest",
                )  # fmt: skip
            _bare(ax)
            if column == 0:
                ax.set_ylabel(name, fontsize=10, color=INK)
    _suptitle(figure, title)
    return figure


def training_curves(
    history: Mapping[str, ArrayLike],
    *,
    panels: Sequence[tuple[str, Sequence[str]]] = (
        ("loss, nats", ("loss", "recon", "beta kl", "kl")),
        ("validation $R^2$", ("val_r2",)),
        ("validation, silent neurons", ("val_zeros",)),
        ("gradient norm", ("grad_norm",)),
    ),
    title: str = "Training",
) -> Figure:
    """Curves of a training run over optimizer steps.

    Args:
        history: "step" [R] and any of the logged names [R], NaN where a row has no value
            (`ipvae.read_history`). From "loss", "recon", "kl" and "beta" come the terms as they
            enter the loss, "recon" and "beta kl", whose sum it is.
        panels: (label, names) of each axes; names that the history lacks are left out, and so is a panel
            without any.
        title: above the figure.

    Returns:
        A figure with one axes per panel that has a curve.

    Raises:
        ValueError: if no panel has a curve.
    """
    vectors = {name: _vector(name, values) for name, values in history.items()}
    if len({len(values) for values in vectors.values()}) > 1:
        lengths = ", ".join(f"{name} {len(values)}" for name, values in vectors.items())
        raise ValueError(f"history: expected columns of one length, found {lengths}")
    columns, scale = _loss_terms(vectors)
    shown = [
        (label, [n for n in names if n in columns and np.isfinite(columns[n]).any()])
        for label, names in panels
    ]
    shown = [(label, names) for label, names in shown if names]
    if not shown or "step" not in columns:
        raise ValueError(
            f"history: expected 'step' and a logged curve, found {', '.join(columns) or 'nothing'}"
        )
    n_columns = min(2, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    figure, axes = _figure((4.5 * n_columns, 2.9 * n_rows + 0.3), n_rows, n_columns)
    for ax, (label, names) in zip(axes, shown, strict=False):
        for name, color in zip(names, (INK, BLUE, ORANGE, GREEN), strict=False):
            keep = np.isfinite(columns[name])
            steps, values = columns["step"][keep], columns[name][keep]
            if name.endswith("zeros"):
                ax.yaxis.set_major_formatter(_percent)
            ax.plot(
                steps,
                values,
                color=color,
                lw=1.6,
                marker="o" if len(steps) < 30 else None,
                ms=3.5,
                label=_NAMES.get(name, name),
            )
        if len(names) > 1:
            ax.legend(frameon=False, fontsize=9, labelcolor="linecolor")
        scaled = f" times {scale:.3g}" if "beta kl" in names and abs(scale - 1.0) > 1e-3 else ""
        ax.set(xlabel="optimizer step", ylabel=label + scaled)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:g}k" if v >= 10_000 else f"{v:g}")
        ax.set_xlim(columns["step"].min(), max(columns["step"].max(), 1))
        _grid(ax)
    for ax in axes[len(shown) :]:
        ax.remove()
    _suptitle(figure, title)
    return figure


# How the curves of a history are called in a legend, where not by their names.
_NAMES = {"recon": "reconstruction", "beta kl": "β KL", "kl": "KL"}


def _percent(value: float, _: object = None) -> str:
    """A share as a label of an axis: silence is in percent wherever it is shown."""
    return f"{100 * value:g} %"


def _loss_terms(columns: dict[str, Array]) -> tuple[dict[str, Array], float]:
    """Columns with the terms of the loss as they enter it, and their common factor, 256 / pixels.

    Without all of loss, recon, kl and beta: the columns as they are, and 1.
    """
    if not {"loss", "recon", "kl", "beta"} <= set(columns):
        return columns, 1.0
    weighted = columns["beta"] * columns["kl"]
    factor = columns["loss"] / (columns["recon"] + weighted)
    terms = {name: values for name, values in columns.items() if name != "kl"}
    terms |= {"recon": factor * columns["recon"], "beta kl": factor * weighted}
    return terms, float(np.nanmedian(factor))


def _figure(size: tuple[float, float], rows: int, columns: int, **options: Any) -> tuple[Figure, list[Axes]]:
    sharex = options.pop("sharex", False)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex, gridspec_kw=options)
    for ax in axes.flat:
        ax.tick_params(colors=MUTED, labelsize=9, length=3)
        ax.xaxis.label.set(color=INK, fontsize=10)
        ax.yaxis.label.set(color=INK, fontsize=10)
        ax.spines[:].set_color("#c3c8cf")
    return figure, list(axes.flat)


def _columns(n: int) -> int:
    """Columns for a grid of n tiles that is wider than high and, where possible, full."""
    ideal = math.sqrt(1.6 * n)
    full = [c for c in range(1, n + 1) if n % c == 0 and 0.7 * ideal <= c <= 1.5 * ideal]
    return min(full, key=lambda c: abs(c - ideal)) if full else max(1, round(ideal))


def _fit(aspect: float, width: float) -> tuple[float, float]:
    """A figure size of about `width` inches for an image of this width / height, with room for a title."""
    height = width / aspect
    scale = min(1.0, 10.0 / height)
    return max(width * scale, 3.0), max(height * scale, 1.0) + 0.45


def _grid(ax: Axes) -> None:
    ax.grid(True, color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def _title(ax: Axes, text: str) -> None:
    ax.set_title(_text(text), loc="left", fontsize=12, color=INK, fontweight="bold", pad=8)


def _suptitle(figure: Figure, text: str, note: str = "") -> None:
    figure.suptitle(_text(text), x=0.012, ha="left", fontsize=12, color=INK, fontweight="bold")
    if note:
        figure.axes[0].set_title(note, loc="left", fontsize=9, color=MUTED)


def _numbers(name: str, values: ArrayLike) -> Array:
    """An array of real numbers: of an array, a list, or a tensor, also one that is differentiated."""
    if isinstance(values, Tensor):
        dense(name, values)
        values = values.detach().cpu()
        values = (values if values.is_complex() else values.double()).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of numbers ({error})") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, found {array.dtype}")
    return array.astype(np.float64)


def _shape(shape: object) -> tuple[int, ...]:
    """(height, width) or (channels, height, width)."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) not in (2, 3):
        raise ValueError(f"shape: expected (height, width) or (channels, height, width), found {shape!r}")
    return tuple(checks.integer("shape", side, 1, 2**31 - 1) for side in shape)


def _text(title: object) -> str:
    if not isinstance(title, str):
        raise TypeError(f"title: expected a string, found {type(title).__name__}")
    return title


def _limit(name: str, value: object) -> int | None:
    return None if value is None else checks.integer(name, value, 1, 2**31 - 1)


def _matrix(name: str, values: ArrayLike) -> Array:
    array = _numbers(name, values)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name}: expected two dimensions and at least one entry, found shape {array.shape}")
    return array


def _vector(name: str, values: ArrayLike) -> Array:
    array = _numbers(name, values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected one non-empty dimension, found shape {array.shape}")
    return array


def is_image(shape: Sequence[int]) -> bool:
    """Whether inputs of this shape can be drawn: (height, width), or channels, 1 or 3, before these."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def _images(name: str, rows: Array, shape: Sequence[int]) -> Array:
    """Rows [N, M] as images [N, height, width, channels]."""
    shape = _shape(shape)
    full = (1, *shape) if len(shape) == 2 else shape
    if not is_image(full) or math.prod(full) != rows.shape[1]:
        raise ValueError(
            f"shape: expected (height, width) or (1 or 3, height, width) with {rows.shape[1]} pixels "
            f"as in {name}, found {tuple(shape)}"
        )
    return np.moveaxis(rows.reshape(len(rows), *full), 1, -1)


def _mosaic(tiles: Array, columns: int, fill: float) -> Array:
    """Images [N, h, w, c] on one canvas with gaps of one pixel."""
    n, height, width, channels = tiles.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), fill)
    for i, tile in enumerate(tiles):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = tile
    return canvas
