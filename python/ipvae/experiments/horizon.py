"""``ipvae reproduce horizon``: how long a model was trained for against how long it infers."""

from __future__ import annotations

from typing import Any

from ..evaluation.evaluate import evaluate
from ..models.base import VAE
from ..plots.canvas import BLUE, new_figure, set_heading, with_grid
from .reproduce import Claim, Experiment, Report, Results, above, first_found, found
from .trials import UPDATES, Trial, Workshop

LENGTHS = {"quick": (2, 8), "short": (4, 8, 16, 32, 64), "long": (4, 8, 16, 32, 64)}


def trials(preset: str, seeds: int) -> list[Trial]:
    """One iP-VAE for each length of training, by as many updates."""
    quick = preset == "quick"
    options = (
        {"marks": [1, 8, 64], "images": 100} if quick else {"marks": [4, 16, 64, 256, 1000], "images": 500}
    )
    if preset == "long":
        options["marks"] = [*options["marks"], 10_000]  # type: ignore[misc]
    data = "digits" if quick else "patches"
    return [
        Trial(f"T = {t}", "ip-vae", data, seed, {"t_train": t}, {"max_steps": UPDATES[preset]}, options)
        for t in LENGTHS[preset] for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """R2, silence and -ELBO after each of some numbers of steps."""
    marks = trial.options["marks"]
    result = evaluate(model, workshop.data(trial.data).test[: trial.options["images"]], marks[-1], marks=())
    return {
        str(mark): {name: float(getattr(result, name)[mark - 1]) for name in ("r2", "zeros", "nelbo")}
        for mark in marks
    }


def report(results: Results) -> Report:
    """A row for each length of training, a column for each of inference."""
    marks, labels = list(first_found(results)), list(results)
    rows = [[label, *(found(results, label, mark, "r2").show() for mark in marks)] for label in labels]
    short, long, far = labels[0], labels[-1], marks[-1]
    a, b = found(results, long, far, "r2"), found(results, short, far, "r2")
    figure, (ax,) = new_figure((6.0, 3.8), 1, 1)
    for i, label in enumerate(labels):
        curve = [found(results, label, mark, "r2").mean for mark in marks]
        ax.plot(
            [int(m) for m in marks], curve, "o-", color=BLUE, alpha=0.35 + 0.65 * i / len(labels), label=label
        )
    ax.set_xscale("log")
    ax.set_xlabel("inference steps")
    ax.set_ylabel("$R^2$")
    ax.legend(frameon=False, fontsize=8)
    with_grid(ax)
    set_heading(figure, "Length of training and of inference")
    claim = f"training with {long} infers better than with {short}, at {int(far):,} steps"
    return Report(
        ["trained with", *(f"R2 at {int(mark):,} steps" for mark in marks)], rows,
        [Claim(claim, above(a, b), f"{a.show()} against {b.show()}")], figure,
    )  # fmt: skip


HORIZON = Experiment(
    "horizon", "How does the length of training bear on inference of any length?",
    "iP-VAEs that differ in T alone are trained on whitened patches by as many updates, and infer 500 "
    "held-out patches.",
    {"quick": 0.3, "short": 5.0, "long": 60.0}, trials, measure, report,
)  # fmt: skip
