"""``ipvae reproduce convergence``: how inference goes on over a thousand steps, and whether it drifts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data import DataSplits
from ..evaluation.evaluate import evaluate
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, MUTED, ORANGE, new_figure, percent, set_heading, with_grid
from .reproduce import Claim, Experiment, Report, Results, found
from .trials import Trial

MODELS = {
    "iP-VAE": ("ip-vae", {}), "iP-VAE, exact natural gradient": ("ip-vae", {"drive": "expected"}),
    "iG-VAE": ("ig-vae", {}), "iG-relu-VAE": ("ig-relu-vae", {}),
}  # fmt: skip
COLORS = (BLUE, GREEN, MUTED, ORANGE)
MARKS = (1, 16, 64, 128, 256, 1000)
# R2 may fall by this from its value at 1,000 steps to be called stable.
DRIFT = 0.01


def trials(preset: str, seeds: int) -> list[Trial]:
    """Patches, and MNIST in the long preset; digits in the quick one."""
    data = {"quick": ["digits"], "short": ["patches"], "long": ["patches", "mnist"]}[preset]
    options = {"steps": 100, "far": 300, "images": 100} if preset == "quick" else {
        "steps": 1000, "far": 10_000, "images": 500
    }  # fmt: skip
    updates = {"quick": 150, "short": 3000, "long": 12_000}[preset]
    return [
        Trial(f"{label}, {name}", model, name, seed, fields, {"max_steps": updates}, options)
        for name in data for label, (model, fields) in MODELS.items() for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, splits: DataSplits, trial: Trial) -> dict[str, Any]:
    """Curves to the first number of steps, and R2 at the second on a fifth of the images."""
    x, options = splits.test[: trial.options["images"]], trial.options
    curves = evaluate(model, x, options["steps"], marks=())
    far = evaluate(model, x[: max(1, len(x) // 5)], options["far"], marks=())
    states = model.infer(x[:50], options["steps"], record=("log_rate",), seed=0).records["log_rate"]
    moves = states.diff(dim=0).abs().flatten(1).mean(1)
    at = options["steps"] - 1
    return {
        "r2": curves.r2.tolist(), "zeros": curves.zeros.tolist(),
        "steps_to_95": curves.steps_to(0.95), "steps_to_99": curves.steps_to(0.99),
        "drift": float(far.r2[-1] - far.r2[at]), "move": float(moves[-len(moves) // 10 :].mean()),
    }  # fmt: skip


def report(results: Results) -> Report:
    """R2 and silence at some steps, steps to 95 and 99 %, drift; and the curves."""
    first = next(r["found"] for rows in results.values() for r in rows if "found" in r)
    last = len(first["r2"])
    marks = sorted({mark for mark in MARKS if mark < last} | {last})
    columns = [
        "model",
        *(f"R2 at {mark:,}" for mark in marks),
        "silent at the end",
        "to 95 %",
        "to 99 %",
        "drift",
        "|du|",
    ]
    rows, claims = [], []
    for label in results:
        drift = found(results, label, "drift")
        rows.append([
            label, *(found(results, label, "r2", mark - 1).show() for mark in marks),
            found(results, label, "zeros", last - 1).show(1, 100.0) + " %",
            found(results, label, "steps_to_95").show(0), found(results, label, "steps_to_99").show(0),
            drift.show(), found(results, label, "move").show(3),
        ])  # fmt: skip
        gain = found(results, label, "r2", last - 1)
        trained = found(results, label, "r2", min(16, last) - 1)
        claims.append(Claim(
            f"{label}: stable beyond the training length", drift.mean > -DRIFT and gain.mean >= trained.mean,
            f"R2 {trained.show()} at 16 steps, {gain.show()} at {last:,}; then {drift.show()}",
        ))  # fmt: skip
    return Report(columns, rows, claims, _figure(results, last), [
        "Drift is the change of R2 from the last step of the curves to ten times as many (quick: three "
        "times), on a fifth of the images.",
        "|du| is the mean size of a step's change of the state, over the last tenth of the steps.",
    ])  # fmt: skip


def _figure(results: Results, last: int) -> Any:
    figure, axes = new_figure((9.0, 3.8), 1, 2)
    steps = np.arange(1, last + 1)
    for (label, rows), color in zip(results.items(), COLORS * 2, strict=False):
        for ax, name in zip(axes, ("r2", "zeros"), strict=True):
            curves = np.array([r["found"][name] for r in rows if "found" in r])
            if len(curves):
                ax.plot(steps, curves.mean(0), color=color, lw=1.8, label=label)
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
    {"quick": 0.5, "short": 25.0, "long": 240.0}, trials, measure, report,
)  # fmt: skip
