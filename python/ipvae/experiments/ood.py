"""``ipvae reproduce ood``: inputs unlike those of the training, for models more and less amortised."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..data import DataSplits, RotationFeeder, load_dataset
from ..evaluation.evaluate import evaluate
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, MUTED, ORANGE, new_figure, set_heading, with_grid
from .mnist import CLAMP, UPDATES
from .reproduce import Claim, Experiment, Report, Results, above, found
from .trials import Trial

# From no amortisation to nothing else: label, model, share of the updates as in `mnist`.
ROWS = [
    ("iterative, iP-VAE", "ip-vae", 1.0),
    ("hybrid, iteratively amortised", "ia-p-vae", 0.25),
    ("hybrid, semi-amortised", "sa-p-vae", 0.1),
    ("amortised, P-VAE", "p-vae", 4.0),
]
# The quick preset: updates, and fields of models that are slow at their own sizes.
QUICK = 100
SMALL: dict[str, dict[str, Any]] = {
    "sa-p-vae": {"t_train": 4}, "ia-p-vae": {"t_train": 3, "updater_width": 64}
}  # fmt: skip
COLORS = (BLUE, GREEN, ORANGE, MUTED)


def trials(preset: str, seeds: int) -> list[Trial]:
    """One model of counts of each kind; trainings are those of `mnist`."""
    quick = preset == "quick"
    options: dict[str, Any] = {
        "angles": [0, 30, 90] if quick else list(range(0, 181, 15)),
        "images": 100 if quick else 500, "steps": 16 if quick else 1000,
    }  # fmt: skip
    return [
        Trial(
            label, model, "digits" if quick else "mnist", seed,
            {**(CLAMP if model == "ip-vae" else {}), **(SMALL.get(model, {}) if quick else {})},
            {"max_steps": QUICK if quick else round(share * UPDATES[preset])}, options,
        )
        for label, model, share in ROWS for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, splits: DataSplits, trial: Trial) -> dict[str, Any]:
    """R2 for each angle, and for other images of the same size."""
    options, shape = trial.options, splits.shape
    images = splits.test[: options["images"]].reshape(-1, *shape)
    found = {str(angle): r2(model, rotated(images, angle), options["steps"]) for angle in options["angles"]}
    return {"rotated": found, "others": {
        name: r2(model, x, options["steps"]) for name, x in others(shape, options["images"]).items()
    }}  # fmt: skip


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images [B, C, H, W] turned counterclockwise."""
    return RotationFeeder(images, start_degrees=degrees).frames(0, 1)[0]


def others(shape: tuple[int, ...], n: int) -> dict[str, Tensor]:
    """Images of other kinds, brought to the shape and to [0, 1]: digits of scikit-learn, natural patches."""
    _, height, width = shape
    digits = load_dataset("digits").test[:n].reshape(-1, 1, 8, 8)
    patches = load_dataset("patches", size=height, n_train=n).train[:n].reshape(-1, 1, height, height)
    flat = patches.flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    patches = (patches - low[:, None, None, None]) / (high - low)[:, None, None, None]
    return {
        "scikit-learn's digits": F.interpolate(digits, (height, width), mode="bilinear").clamp(0.0, 1.0),
        "natural patches": patches,
    }


def r2(model: VAE, images: Tensor, steps: int) -> float:
    """R2 at the last step."""
    result = evaluate(model, images.flatten(1), steps if model.iterative else 1, marks=())
    return float(result.r2[-1])


def report(results: Results) -> Report:
    """A row a model, and whether less amortised is better."""
    first = next(r["found"] for rows in results.values() for r in rows if "found" in r)
    angles, names = list(first["rotated"]), list(first["others"])
    rows = [
        [
            label, *(found(results, label, "rotated", angle).show() for angle in angles),
            *(found(results, label, "others", name).show() for name in names),
        ]
        for label in results
    ]  # fmt: skip
    figure, (ax,) = new_figure((6.4, 3.8), 1, 1)
    for label, color in zip(results, COLORS, strict=False):
        curve = [found(results, label, "rotated", angle) for angle in angles]
        ax.errorbar(
            [float(angle) for angle in angles], [m.mean for m in curve],
            yerr=[0.0 if m.n < 2 else m.deviation for m in curve], color=color, label=label, lw=1.8,
        )  # fmt: skip
    ax.set_xlabel("rotation, degrees")
    ax.set_ylabel("$R^2$")
    ax.legend(frameon=False, fontsize=8)
    with_grid(ax)
    set_heading(figure, "Inputs turned away from those of the training")
    return Report(
        ["model", *(f"{angle}°" for angle in angles), *names], rows,
        list(_claims(results, angles, names)), figure,
        ["R2 at the last step, of inputs of each kind. Trainings are those of `mnist`."],
    )  # fmt: skip


def _claims(results: Results, angles: list[str], names: list[str]) -> list[Claim]:
    """That each kind does better than the next more amortised one, on all shifted inputs together."""
    places = [("rotated", a) for a in angles if float(a) > 0] + [("others", name) for name in names]

    def shifted(label: str) -> Any:
        kept = [r for r in results[label] if "found" in r]
        means = [sum(r["found"][kind][name] for kind, name in places) / len(places) for r in kept]
        return found({label: [{"found": {"mean": mean}} for mean in means]}, label, "mean")

    claims = []
    for one, other in zip(list(results), list(results)[1:], strict=False):
        a, b = shifted(one), shifted(other)
        claim = f"out of distribution, {one} reconstructs better than {other} (mean R2)"
        claims.append(Claim(claim, above(a, b), f"{a.show()} against {b.show()}"))
    return claims


OOD = Experiment(
    "ood", "How do models more and less amortised reconstruct inputs unlike those of their training?",
    {"quick": 0.6, "short": 90.0, "long": 1500.0}, trials, measure, report,
)  # fmt: skip
