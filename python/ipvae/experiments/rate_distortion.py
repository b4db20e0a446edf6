"""``ipvae reproduce rate-distortion``: reconstruction against sparsity, of models and of sparse coding."""

from __future__ import annotations

import math
from typing import Any

from ..data import DataSplits
from ..evaluation.evaluate import evaluate
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, ORANGE, new_figure, percent, set_heading, with_grid
from .reproduce import Claim, Experiment, Report, Results, found
from .trials import Trial

KINDS = {"ip-vae": ("iP-VAE", BLUE), "expected": ("exact natural gradient", GREEN), "lca": ("LCA", ORANGE)}


def trials(preset: str, seeds: int) -> list[Trial]:
    """iP-VAEs over T and beta, by the published rule and the exact gradient, and LCAs over their penalty."""
    quick = preset == "quick"
    data, updates = ("digits", 150) if quick else ("patches", 2000 if preset == "short" else 12_000)
    options = {"steps": 64 if quick else 1000, "images": 100 if quick else 500}
    lengths = {"quick": (8,), "short": (16,), "long": (8, 16, 32)}[preset]
    betas, penalties = ((1.0, 8.0), (0.1, 0.4)) if quick else ((2.0, 6.0, 12.0, 24.0), (0.3, 0.6, 1.0, 1.5))
    made = [
        Trial(f"{kind}, T = {t}, beta {beta:g}", "ip-vae", data, seed, {"t_train": t, **fields},
              {"max_steps": updates, "beta_outer": beta}, options)
        for kind, fields in (("ip-vae", {}), ("expected", {"drive": "expected"}))
        for t in lengths for beta in betas for seed in range(seeds)
    ]  # fmt: skip
    made += [
        Trial(f"lca, penalty {p:g}", "lca", data, seed, {"penalty": p}, {"max_steps": updates // 4}, options)
        for p in penalties for seed in range(seeds)
    ]  # fmt: skip
    return made


def measure(model: VAE, splits: DataSplits, trial: Trial) -> dict[str, Any]:
    """R2 and silence at the last step, and the distance from all of the variation with no neuron active."""
    result = evaluate(model, splits.test[: trial.options["images"]], trial.options["steps"], marks=())
    r2, zeros = float(result.r2[-1]), float(result.zeros[-1])
    return {"r2": r2, "zeros": zeros, "distance": math.hypot(1.0 - r2, 1.0 - zeros)}


def report(results: Results) -> Report:
    """Points, and which kind comes closest to (1, 1)."""
    rows = [
        [label, *(found(results, label, name).show() for name in ("r2", "zeros", "distance"))]
        for label in results
    ]
    nearest: dict[str, tuple[float, str]] = {}
    figure, (ax,) = new_figure((6.0, 4.2), 1, 1)
    for kind, (shown, color) in KINDS.items():
        labels = [label for label in results if label.startswith(kind)]
        points = [(found(results, label, "zeros").mean, found(results, label, "r2").mean) for label in labels]
        ax.plot(*zip(*points, strict=True), "o-", color=color, label=shown)
        nearest[kind] = min((found(results, label, "distance").mean, label) for label in labels)
    ax.set_xlabel("silent")
    ax.set_ylabel("$R^2$")
    ax.xaxis.set_major_formatter(percent)
    ax.legend(frameon=False, fontsize=9)
    with_grid(ax)
    set_heading(figure, "Reconstruction against sparsity")
    (ours, at), (theirs, there) = nearest["ip-vae"], nearest["lca"]
    (exact, where) = nearest["expected"]
    claims = [
        Claim(
            "the iP-VAE comes as near to (1, 1) as LCA", ours <= theirs,
            f"{ours:.3f} ({at}), {theirs:.3f} ({there})",
        ),
        Claim(
            "the exact natural gradient comes nearer than the published rule", exact < ours,
            f"{exact:.3f} ({where}), {ours:.3f} ({at})",
        ),
    ]  # fmt: skip
    return Report(["trial", "R2", "silent", "distance to (1, 1)"], rows, claims, figure, [
        "LCA has signed, analog activations, and no noise; an iP-VAE has counts.",
    ])  # fmt: skip


RATE_DISTORTION = Experiment(
    "rate-distortion", "How much is reconstructed at how much sparsity?",
    {"quick": 0.5, "short": 35.0, "long": 600.0}, trials, measure, report,
)  # fmt: skip
