"""``ipvae reproduce ood``: inputs unlike those of the training, for models more and less amortised."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor

from ..data import RotationFeeder
from ..evaluation.evaluate import latents_at
from ..evaluation.metrics import pooled_r2
from ..evaluation.readout import fit_readout
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, MUTED, ORANGE, new_figure, percent, set_heading, with_grid
from .mnist import AMORTISED, CLAMP, SMALL_STEPS, UPDATES, inference_steps
from .reproduce import Claim, Experiment, Report, Results, above, bar, ended, first_found, found
from .trials import Trial, Workshop

# From no amortisation to nothing else: label, model, share of the updates as in `mnist`.
ROWS = [
    ("iterative, iP-VAE", "ip-vae", 1.0),
    ("hybrid, iteratively amortised", "ia-p-vae", 1.0),
    ("hybrid, semi-amortised", "sa-p-vae", 0.4),
    ("amortised, P-VAE", "p-vae", AMORTISED),
]
# The quick preset: updates, and fields of models that are slow at their own sizes.
QUICK = 100
SMALL: dict[str, dict[str, Any]] = {
    "ip-vae": CLAMP, "sa-p-vae": {"t_train": 4}, "ia-p-vae": {"t_train": 3, "updater_width": 64}
}  # fmt: skip
OTHERS = {
    "quick": ["natural-8"], "short": ["fashion-mnist", "emnist-letters", "digits-28", "natural-28"]
}  # fmt: skip
# With classes that the training's readout knows.
SAME_CLASSES = ("digits-28",)
FIELDS = {"ip-vae": CLAMP, "sa-p-vae": SMALL_STEPS}
COLORS = (BLUE, GREEN, ORANGE, MUTED)


def trials(preset: str, seeds: int) -> list[Trial]:
    """One model of counts of each kind; trainings are those of `mnist`."""
    quick = preset == "quick"
    options: dict[str, Any] = {
        "angles": [0, 30, 90] if quick else list(range(0, 181, 15)),
        "others": OTHERS.get(preset, OTHERS["short"]), "images": 100 if quick else 500,
        "fitted": 500 if quick else 5000, "steps": {"quick": 16, "short": 256, "long": 1000}[preset],
    }  # fmt: skip
    return [
        Trial(
            label, model, "digits" if quick else "mnist", seed,
            SMALL.get(model, {}) if quick else FIELDS.get(model, {}),
            {"max_steps": QUICK if quick else round(share * UPDATES[preset])}, options,
        )
        for label, model, share in ROWS for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """R2 over steps, and accuracy where classes are known, for each angle and each other set."""
    options, splits = trial.options, workshop.data(trial.data)
    steps = inference_steps(model, options["steps"])
    train = splits.train[: options["fitted"]]
    readout = fit_readout(
        latents_at(model, train, [steps], seed=1)[steps], splits.labels["train"][: options["fitted"]]
    )

    def shown(x: Tensor, classes: Tensor | None) -> dict[str, Any]:
        result = model.infer(x, steps, record=("squared_error",), seed=0)
        r2 = pooled_r2(result.records["squared_error"], x)
        curve = {str(2**i): float(r2[2**i - 1]) for i in range(steps.bit_length())}
        rates = model.rates(result.state.log_rate)
        accuracy = None if classes is None else readout(rates, classes)
        return {"r2": float(r2[-1]), "curve": curve, "accuracy": accuracy}

    n = options["images"]
    images, labels = splits.images("test")[:n], splits.labels["test"][:n]
    found = {str(angle): shown(rotated(images, angle).flatten(1), labels) for angle in options["angles"]}
    others, missing = workshop.sets(options["others"])
    seen = {
        name: shown(other.test[:n], other.labels["test"][:n] if name in SAME_CLASSES else None)
        for name, other in others.items()
    }
    return {"rotated": found, "others": seen, "missing": missing}


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images [B, C, H, W] turned counterclockwise."""
    return RotationFeeder(images, start_degrees=degrees).frames(0, 1)[0]


def report(results: Results) -> Report:
    """Two rows a model, and whether less amortised is better."""
    first = first_found(results)
    places = [("rotated", angle) for angle in first["rotated"]] + [
        ("others", name) for name in first["others"]
    ]
    rows = [
        [f"{label}: {shown}", *(_cell(results, label, *place, measure=name) for place in places)]
        for name, shown in (("r2", "R2"), ("accuracy", "accuracy")) for label in results
    ]  # fmt: skip
    heads = [f"{name}°" if kind == "rotated" else name for kind, name in places]
    return Report(["model", *heads], rows, list(_claims(results, places)), _figure(results, first), [
        "R2, of all images together, and accuracy are at the last step; accuracy is that of logistic "
        "regression from rates, fitted to upright training images, where the classes are those of the "
        "training. Trainings are those of `mnist`.",
        "In as many minutes hybrids are far from converged, upright too: this says little of converged ones.",
        "natural-28 are patches of photographs, not whitened, each stretched from 0 to 1; digits-28 are "
        "scikit-learn's digits, enlarged.",
    ])  # fmt: skip


def _cell(results: Results, label: str, kind: str, name: str, *, measure: str) -> str:
    mean = found(results, label, kind, name, measure)
    if measure == "r2":
        return mean.show()
    return "" if mean.n and mean.mean != mean.mean else mean.show(1, 100.0) + " %"


def _figure(results: Results, first: dict[str, Any]) -> Any:
    angles = list(first["rotated"])
    turned = "90" if "90" in angles else angles[-1]
    figure, axes = new_figure((12.0, 3.8), 1, 3)
    for label, color in zip(results, COLORS, strict=False):
        for ax, measure in zip(axes, ("r2", "accuracy"), strict=False):
            curve = [found(results, label, "rotated", angle, measure) for angle in angles]
            ax.errorbar(
                [float(angle) for angle in angles], [m.mean for m in curve], yerr=[bar(m) for m in curve],
                color=color, label=label, lw=1.8,
            )  # fmt: skip
        curves = [values["rotated"][turned]["curve"] for values in ended(results, label)]
        steps = list(curves[0]) if curves else list[str]()
        means = [found(results, label, "rotated", turned, "curve", step).mean for step in steps]
        axes[2].plot([int(step) for step in steps], means, "o-", color=color, ms=3)
    names = ("$R^2$", "accuracy", f"$R^2$, turned by {turned}°")
    for ax, name, across in zip(axes, names, ("rotation, degrees",) * 2 + ("inference step",), strict=True):
        ax.set_xlabel(across)
        ax.set_ylabel(name)
        with_grid(ax)
    axes[1].yaxis.set_major_formatter(percent)
    axes[2].set_xscale("log")
    axes[1].legend(frameon=False, fontsize=8, loc="upper right")
    set_heading(figure, "Inputs turned away from those of the training")
    return figure


def _claims(results: Results, places: list[tuple[str, str]]) -> list[Claim]:
    """That each kind does better than the next more amortised one, and the first than the last, abroad."""
    shifted = [place for place in places if place != ("rotated", "0")]
    labels = list(results)

    def mean_of(label: str, measure: str) -> Any:
        values = [[f[kind][name][measure] for kind, name in shifted] for f in ended(results, label)]
        means = [[v for v in row if v is not None] for row in values]
        return found({label: [{"found": {"mean": sum(m) / len(m)}} for m in means]}, label, "mean")

    claims = []
    for measure, shown in (("r2", "reconstructs better (mean R2)"), ("accuracy", "is read out better")):
        for one, other in [*pairwise(results), (labels[0], labels[-1])]:
            a, b = mean_of(one, measure), mean_of(other, measure)
            claim = f"out of distribution, {one} {shown} than {other}"
            claims.append(Claim(claim, above(a, b), f"{a.show()} against {b.show()}"))
    return claims


OOD = Experiment(
    "ood", "How do models more and less amortised serve inputs unlike those of their training?",
    "Models of counts, from iterative to amortised, are trained on MNIST, and infer test images turned by "
    "0 to 180 degrees and held-out images of other sets, 500 or as many as there are (digits-28 296, "
    "natural-28 43).",
    {"quick": 0.6, "short": 7.0, "long": 1500.0}, trials, measure, report,
)  # fmt: skip
