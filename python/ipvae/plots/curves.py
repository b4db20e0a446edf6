"""Figures of numbers over steps: of inference, and of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..extras import explained
from .canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    Array,
    limit_of,
    new_figure,
    percent,
    set_heading,
    vector,
    with_grid,
)

with explained():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    curves = (vector("r2", r2), vector("zeros", zeros))
    trained_steps = limit_of("trained_steps", trained_steps)
    figure, axes = new_figure((9.0, 3.8), 1, 2)
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
        with_grid(ax)
    axes[1].yaxis.set_major_formatter(percent)
    set_heading(figure, title)
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
    vectors = {name: vector(name, values) for name, values in history.items()}
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
    figure, axes = new_figure((4.5 * n_columns, 2.9 * n_rows + 0.3), n_rows, n_columns)
    for ax, (label, names) in zip(axes, shown, strict=False):
        _draw_panel(ax, label, names, columns, scale)
    for ax in axes[len(shown) :]:
        ax.remove()
    set_heading(figure, title)
    return figure


def _draw_panel(
    ax: Axes, label: str, names: Sequence[str], columns: Mapping[str, Array], scale: float
) -> None:
    """The curves of one axes; the terms of the loss are shown times `scale`."""
    for name, color in zip(names, (INK, BLUE, ORANGE, GREEN), strict=False):
        keep = np.isfinite(columns[name])
        steps, values = columns["step"][keep], columns[name][keep]
        if name.endswith("zeros"):
            ax.yaxis.set_major_formatter(percent)
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
    with_grid(ax)


# How the curves of a history are called in a legend, where not by their names.


_NAMES = {"recon": "reconstruction", "beta kl": "β KL", "kl": "KL"}


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
