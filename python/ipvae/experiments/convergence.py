"""``ipvae reproduce convergence``: how inference goes on over a thousand steps, and whether it drifts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..evaluation.evaluate import evaluate
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, MUTED, ORANGE, new_figure, percent, set_heading, with_grid
from .mnist import CLAMP
from .mnist import UPDATES as MNIST_UPDATES
from .reproduce import Claim, Experiment, Report, Results, ended, first_found, found
from .trials import UPDATES, Trial, Workshop

MODELS = {
    "iP-VAE": ("ip-vae", {}), "iP-VAE, exact natural gradient": ("ip-vae", {"drive": "expected"}),
    "iG-VAE": ("ig-vae", {}), "iG-relu-VAE": ("ig-relu-vae", {}),
}  # fmt: skip
COLORS = (BLUE, GREEN, MUTED, ORANGE)
MARKS = (1, 16, 64, 128, 256, 1000)
CURVES = ("r2", "squared_error", "zeros")
# R2 may fall by this from its value at 1,000 steps to be called stable.
DRIFT = 0.01


def trials(preset: str, seeds: int) -> list[Trial]:
    """Patches and MNIST, there the models of `mnist`; digits in the quick preset."""
    data = ["digits"] if preset == "quick" else ["patches", "mnist"]
    options = {"steps": 100, "far": 300, "images": 100} if preset == "quick" else {
        "steps": 1000, "far": 10_000, "images": 500
    }  # fmt: skip
    return [
        Trial(
            f"{label}, {name}", model, name, seed,
            {**fields, **(CLAMP if name == "mnist" and model == "ip-vae" else {})},
            {"max_steps": (MNIST_UPDATES if name == "mnist" else UPDATES)[preset]}, options,
        )
        for name in data for label, (model, fields) in MODELS.items() for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """Curves to the first number of steps, and R2 at the second on a fifth of the images."""
    options = trial.options
    x = workshop.data(trial.data).test[: options["images"]]
    curves = evaluate(model, x, options["steps"], marks=())
    far = evaluate(model, x[: max(1, len(x) // 5)], options["far"], marks=())
    states = model.infer(x[:50], options["steps"], record=("log_rate",), seed=0).records["log_rate"]
    moves = states.diff(dim=0).abs().flatten(1).mean(1)
    marks = _marks(options["steps"])
    return {
        "at": {
            str(mark): {name: float(getattr(curves, name)[mark - 1]) for name in CURVES} for mark in marks
        },
        "steps_to_95": curves.steps_to(0.95), "steps_to_99": curves.steps_to(0.99),
        "drift": float(far.r2[-1] - far.r2[options["steps"] - 1]),
        "move": float(moves[-len(moves) // 10 :].mean()),
    }  # fmt: skip


def _marks(steps: int) -> list[int]:
    """Steps of the curves: those of the table, and others evenly on a logarithmic axis."""
    even = {round(mark) for mark in np.geomspace(1, steps, 40)}
    return sorted(even | {mark for mark in MARKS if mark <= steps})


def report(results: Results) -> Report:
    """R2, squared error and silence over steps, steps to 95 and 99 %, drift; and the curves."""
    curve = [int(mark) for mark in first_found(results)["at"]]
    last = curve[-1]
    marks = [mark for mark in MARKS if mark < last] + [last]
    columns = [
        "model", *(f"R2 at {mark:,}" for mark in marks), "squared error", "silent", "to 95 %", "to 99 %",
        "drift", "mean abs. du",
    ]  # fmt: skip
    rows, claims = [], []
    for label in results:
        at = {mark: found(results, label, "at", str(mark), "r2") for mark in marks}
        drift = found(results, label, "drift")
        rows.append([
            label, *(r2.show() for r2 in at.values()),
            found(results, label, "at", str(last), "squared_error").show(1),
            found(results, label, "at", str(last), "zeros").show(1, 100.0) + " %",
            found(results, label, "steps_to_95").show(0), found(results, label, "steps_to_99").show(0),
            drift.show(), found(results, label, "move").show(3),
        ])  # fmt: skip
        trained, end = at[min(16, last)], at[last]
        claims.append(Claim(
            f"{label}: stable beyond the training length", drift.mean > -DRIFT and end.mean >= trained.mean,
            f"R2 {trained.show()} at 16 steps, {end.show()} at {last:,}; then {drift.show()}",
        ))  # fmt: skip
    return Report(columns, rows, claims, _figure(results, curve), [
        "Squared error, summed over pixels, and silence are at the last step. Drift is the change of R2 from "
        "there to ten times as many steps (quick: three times), on a fifth of the images.",
        "Mean abs. du is the mean size of a step's change of the state, over the last tenth of the steps.",
    ])  # fmt: skip


def _figure(results: Results, steps: list[int]) -> Any:
    figure, axes = new_figure((9.0, 3.8), 1, 2)
    for i, label in enumerate(results):
        color, style = COLORS[i % len(COLORS)], "-" if i < len(COLORS) else "--"
        for ax, name in zip(axes, ("r2", "zeros"), strict=True):
            curves = np.array([[at[name] for at in v["at"].values()] for v in ended(results, label)])
            if len(curves):
                ax.plot(steps, curves.mean(0), color=color, ls=style, lw=1.8, label=label)
                ax.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.2, lw=0)
    for ax, name in zip(axes, ("$R^2$", "silent"), strict=True):
        ax.set_xscale("log")
        ax.set_xlabel("inference step")
        ax.set_ylabel(name)
        with_grid(ax)
    axes[1].yaxis.set_major_formatter(percent)
    axes[0].legend(frameon=False, fontsize=8)
    set_heading(figure, "Inference over steps, trained with T = 16")
    return figure


CONVERGENCE = Experiment(
    "convergence", "Does inference converge beyond the steps it was trained for, and stay there?",
    "Models with 512 neurons are trained on whitened 16x16 patches of natural images, and those of `mnist` "
    "on it, with T = 16. Hard counts are then drawn for 1,000 steps on 500 held-out inputs, and for "
    "10,000 on 100 of them.",
    {"quick": 0.5, "short": 12.0, "long": 240.0}, trials, measure, report,
)  # fmt: skip
