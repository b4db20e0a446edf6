"""Figure of the cost model: a step's time against the number of features."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..plots.canvas import new_figure, set_heading, with_grid
from .costs import Costs
from .layouts import Layout, layouts

FEATURES = (2**10, 2**24)


def curves(
    costs: Costs,
    inputs: int,
    batch: int,
    devices: int,
    *,
    steps: int = 16,
    rate: float = 0.01,
    per_host: int = 1,
) -> Any:
    """A line for each layout: where it was measured drawn through, where it is a prediction dashed.

    A line ends where the dictionary no longer fits the devices.

    Args:
        costs: of a device.
        inputs: M.
        batch: B, of all devices.
        devices: how many.
        steps: T of an update.
        rate: mean count of a neuron and step.
        per_host: as in `layouts`.

    Returns:
        A Matplotlib figure.
    """
    figure, (ax,) = new_figure((7.2, 4.6), 1, 1)
    sizes = np.unique(np.geomspace(*FEATURES, 57).astype(int))
    lines: dict[tuple[int, int], list[tuple[int, Layout]]] = {}
    for size in sizes:
        for layout in layouts(
            costs, int(size), inputs, batch, devices, steps=steps, rate=rate, per_host=per_host
        ):
            if layout.fits:
                lines.setdefault((layout.replicas, layout.shards), []).append((int(size), layout))
    for i, (_, points) in enumerate(sorted(lines.items())):
        colour = f"C{i}"
        for predicted, style in ((False, "-"), (True, "--")):
            y = [1e3 * layout.step if layout.predicted == predicted else np.nan for _, layout in points]
            name = points[0][1].name if predicted == points[-1][1].predicted else None
            ax.plot([size for size, _ in points], y, style, color=colour, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("features K")
    ax.set_ylabel("a step, ms")
    ax.legend(title="data x model", fontsize=8)
    with_grid(ax)
    set_heading(
        figure, f"{costs.name}: B {batch}, M {inputs}", "dashed: a prediction, outside of what was measured"
    )
    return figure
