"""Figures of images: the features of a dictionary, and inputs with their reconstructions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..extras import explained
from .canvas import (
    DIVERGING,
    INK,
    Array,
    as_images,
    columns_of,
    fitting,
    limit_of,
    matrix,
    new_figure,
    numbers,
    set_heading,
    set_title,
    without_axes,
)

with explained():
    from matplotlib.figure import Figure


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
        matrix("dictionary", dictionary),
        limit_of("limit", limit),
        limit_of("columns", columns),
    )
    order = np.arange(phi.shape[1])
    if use is not None:
        used = numbers("use", use)
        if used.shape != (phi.shape[1],):
            raise ValueError(f"use: expected shape ({phi.shape[1]},), found {used.shape}")
        order = np.argsort(-used, kind="stable")
    order = order[:limit]
    tiles = as_images("dictionary", phi[:, order].T, shape)
    peak = np.abs(tiles).reshape(len(tiles), -1).max(axis=1)
    tiles = tiles / np.where(peak > 0, peak, 1.0)[:, None, None, None]
    n_columns = columns or columns_of(len(tiles))
    color = tiles.shape[-1] == 3
    mosaic = _mosaic((tiles + 1.0) / 2.0 if color else tiles, n_columns, fill=0.92 if color else np.nan)
    figure, (axes,) = new_figure(fitting(mosaic.shape[1] / mosaic.shape[0], width=9.0), 1, 1)
    axes.imshow(mosaic if color else mosaic[..., 0], cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    without_axes(axes)
    text = (
        f"{len(tiles)} features" if len(tiles) == phi.shape[1] else f"{len(tiles)} of {phi.shape[1]} features"
    )
    set_title(axes, title if title is not None else text + ("" if use is None else ", most useful first"))
    return figure


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
    n_shown = limit_of("limit", limit)
    inputs, outputs = matrix("x", x)[:n_shown], matrix("reconstruction", reconstruction)[:n_shown]
    if inputs.shape != outputs.shape:
        raise ValueError(f"reconstruction: expected shape {inputs.shape}, found {outputs.shape}")
    images = [as_images("x", a, shape) for a in (inputs, outputs, inputs - outputs)]
    n, height, width = images[0].shape[:3]
    bound = float(np.abs(images[2]).max()) or 1.0
    figure, axes = new_figure((max(0.95 * n, 3.0) + 0.7, (0.95 * height / width) * 3 + 0.75), 3, n)
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
            without_axes(ax)
            if column == 0:
                ax.set_ylabel(name, fontsize=10, color=INK)
    set_heading(figure, title)
    return figure


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
