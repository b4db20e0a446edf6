"""``ipvae reproduce rate-distortion``: reconstruction against sparsity, of models and of sparse coding."""

from __future__ import annotations

import math
from typing import Any

from ..evaluation.evaluate import evaluate
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, ORANGE, new_figure, percent, set_heading, with_grid
from .reproduce import Claim, Experiment, Mean, Report, Results, above, bar, found, nan_last
from .trials import UPDATES, Trial, Workshop

KINDS = {"ip-vae": ("iP-VAE", BLUE), "expected": ("exact natural gradient", GREEN), "lca": ("LCA", ORANGE)}


# T of the training, beta, penalties of LCA. The short recipe has T = 16 and beta 12 on patches.
GRIDS = {
    "quick": ((8,), (1.0, 8.0), (0.1, 0.4)),
    "short": ((8, 16, 32), (4.0, 12.0, 24.0), (0.3, 0.6, 1.0, 1.5)),
    "long": ((8, 16, 32), (2.0, 6.0, 12.0, 24.0), (0.3, 0.6, 1.0, 1.5)),
}


def trials(preset: str, seeds: int) -> list[Trial]:
    """iP-VAEs over T and beta, by the exact gradient over beta alone, and LCAs over their penalty."""
    quick, updates = preset == "quick", UPDATES[preset]
    options = {"steps": 64 if quick else 1000, "images": 100 if quick else 500}
    lengths, betas, penalties = GRIDS[preset]
    middle = lengths[len(lengths) // 2]
    cells: list[tuple[str, int, dict[str, Any], float]] = [
        ("ip-vae", t, {}, beta) for t in lengths for beta in betas
    ]
    cells += [("expected", middle, {"drive": "expected"}, beta) for beta in betas]
    made = [
        (f"{kind}, T = {t}, beta {beta:g}", "ip-vae", {"t_train": t, **fields},
         {"max_steps": updates, "beta_outer": beta})
        for kind, t, fields, beta in cells
    ] + [
        (f"lca, penalty {p:g}", "lca", {"penalty": p}, {"max_steps": updates // 4}) for p in penalties
    ]  # fmt: skip
    data = "digits" if quick else "patches"
    return [
        Trial(label, model, data, seed, fields, train, options)
        for label, model, fields, train in made for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """R2 and silence at the last step, and the distance from all of the variation with no neuron active."""
    x = workshop.data(trial.data).test[: trial.options["images"]]
    result = evaluate(model, x, trial.options["steps"], marks=())
    r2, zeros = float(result.r2[-1]), float(result.zeros[-1])
    return {"r2": r2, "zeros": zeros, "distance": math.hypot(1.0 - r2, 1.0 - zeros)}


def report(results: Results) -> Report:
    """Points, and which kind comes closest to (1, 1)."""
    rows = [
        [label, *(found(results, label, name).show() for name in ("r2", "zeros", "distance"))]
        for label in results
    ]
    figure, (ax,) = new_figure((6.0, 4.2), 1, 1)
    nearest: dict[str, tuple[str, Mean]] = {}
    for kind, (shown, color) in KINDS.items():
        labels = [label for label in results if label.startswith(kind)]
        points = [(found(results, label, "zeros"), found(results, label, "r2")) for label in labels]
        ax.errorbar(
            [x.mean for x, _ in points], [y.mean for _, y in points],
            xerr=[bar(x) for x, _ in points], yerr=[bar(y) for _, y in points],
            fmt="o", color=color, label=shown,
        )  # fmt: skip
        distances = [(label, found(results, label, "distance")) for label in labels]
        nearest[kind] = min(distances, key=lambda pair: nan_last(pair[1].mean))
    ax.set_xlabel("silent")
    ax.set_ylabel("$R^2$")
    ax.xaxis.set_major_formatter(percent)
    ax.legend(frameon=False, fontsize=9)
    with_grid(ax)
    set_heading(figure, "Reconstruction against sparsity")

    def nearer(claim: str, one: str, other: str) -> Claim:
        (at, ours), (there, theirs) = nearest[one], nearest[other]
        return Claim(claim, above(theirs, ours), f"{ours.show()} ({at}), {theirs.show()} ({there})")

    claims = [
        nearer("the iP-VAE comes nearer to (1, 1) than LCA", "ip-vae", "lca"),
        nearer(
            "the exact natural gradient comes nearer to (1, 1) than the published rule", "expected", "ip-vae"
        ),
    ]
    return Report(["trial", "R2", "silent", "distance to (1, 1)"], rows, claims, figure, [
        "(1, 1) is all of the variation explained and every neuron silent. Compared is the best setting of "
        "each kind.",
        "LCA has signed, analog activations, and no noise; an iP-VAE has counts.",
    ])  # fmt: skip


RATE_DISTORTION = Experiment(
    "rate-distortion", "How much is reconstructed at how much sparsity?",
    "iP-VAEs with 512 neurons are trained on whitened patches over T and beta, with the exact natural "
    "gradient over beta, and LCAs over the penalty of their activations. R2 and silence are those of 500 "
    "held-out patches after 1,000 steps.",
    {"quick": 0.5, "short": 6.0, "long": 60.0}, trials, measure, report,
)  # fmt: skip
