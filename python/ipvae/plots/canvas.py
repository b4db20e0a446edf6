"""What all figures share: their look, and checks of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ipvae_kernels import checks

from ..extras import explained
from ..inputs import dense

with explained():
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, INK, MUTED, GRID = "#1f5f99", "#d1622b", "#2f7d5b", "#22262b", "#6b7280", "#e3e6ea"
# Negative blue, zero white, positive red: features have signs, and a white zero sets them apart.
DIVERGING = LinearSegmentedColormap.from_list(
    "features", ["#163b66", "#4f8bc4", "#ffffff", "#e08a5a", "#8a2a12"]
).with_extremes(bad="#e9ecef")
DPI = 160

Array = NDArray[np.float64]


def percent(value: float, _: object = None) -> str:
    """A share as a label of an axis: silence is in percent wherever it is shown."""
    return f"{100 * value:g} %"


def new_figure(
    size: tuple[float, float], rows: int, columns: int, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A white figure of inches `size`, and its axes, row by row."""
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


def columns_of(n: int) -> int:
    """Columns for a grid of n tiles that is wider than high and, where possible, full."""
    ideal = math.sqrt(1.6 * n)
    full = [c for c in range(1, n + 1) if n % c == 0 and 0.7 * ideal <= c <= 1.5 * ideal]
    return min(full, key=lambda c: abs(c - ideal)) if full else max(1, round(ideal))


def fitting(aspect: float, width: float) -> tuple[float, float]:
    """A figure size of about `width` inches for an image of this width / height, with room for a title."""
    height = width / aspect
    scale = min(1.0, 10.0 / height)
    return max(width * scale, 3.0), max(height * scale, 1.0) + 0.45


def with_grid(ax: Axes) -> None:
    """A light grid, and no frame above and to the right."""
    ax.grid(True, color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def without_axes(ax: Axes) -> None:
    """No ticks and no frame: for images."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def set_title(ax: Axes, text: str) -> None:
    """Above one axes, at its left."""
    ax.set_title(text_of(text), loc="left", fontsize=12, color=INK, fontweight="bold", pad=8)


def set_heading(figure: Figure, text: str, note: str = "") -> None:
    """Above the whole figure; `note` is smaller, beside it."""
    figure.suptitle(text_of(text), x=0.012, ha="left", fontsize=12, color=INK, fontweight="bold")
    if note:
        figure.axes[0].set_title(note, loc="left", fontsize=9, color=MUTED)


def numbers(name: str, values: ArrayLike) -> Array:
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


def shape_of(shape: object) -> tuple[int, ...]:
    """(height, width) or (channels, height, width)."""
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) not in (2, 3):
        raise ValueError(f"shape: expected (height, width) or (channels, height, width), found {shape!r}")
    return tuple(checks.integer("shape", side, 1, 2**31 - 1) for side in shape)


def text_of(title: object) -> str:
    """A title, checked."""
    if not isinstance(title, str):
        raise TypeError(f"title: expected a string, found {type(title).__name__}")
    return title


def limit_of(name: str, value: object) -> int | None:
    """A number of things to draw at most, checked; None: all."""
    return None if value is None else checks.integer(name, value, 1, 2**31 - 1)


def matrix(name: str, values: ArrayLike) -> Array:
    """A matrix of numbers, checked; neither side is 0."""
    array = numbers(name, values)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name}: expected two dimensions and at least one entry, found shape {array.shape}")
    return array


def vector(name: str, values: ArrayLike) -> Array:
    """A vector of numbers, checked, not empty."""
    array = numbers(name, values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected one non-empty dimension, found shape {array.shape}")
    return array


def is_image(shape: Sequence[int]) -> bool:
    """Whether inputs of this shape can be drawn: (height, width), or channels, 1 or 3, before these."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def as_images(name: str, rows: Array, shape: Sequence[int]) -> Array:
    """Rows [N, M] as images [N, height, width, channels]."""
    shape = shape_of(shape)
    full = (1, *shape) if len(shape) == 2 else shape
    if not is_image(full) or math.prod(full) != rows.shape[1]:
        raise ValueError(
            f"shape: expected (height, width) or (1 or 3, height, width) with {rows.shape[1]} pixels "
            f"as in {name}, found {tuple(shape)}"
        )
    return np.moveaxis(rows.reshape(len(rows), *full), 1, -1)
