"""``ipvae reproduce transfer``: a dictionary learnt on one set of images, inference on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.metrics import pooled_r2
from ..extras import explained
from ..models.base import VAE
from ..plots.canvas import BLUE, GREEN, MUTED, ORANGE, new_figure, percent, set_heading, with_grid
from .mnist import AMORTISED, CLAMP, UPDATES, inference_steps
from .reproduce import Claim, Experiment, Mean, Report, Results, above, ended, found
from .trials import Trial, Workshop

with explained():
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

# label: model, fields, share of the updates as in `mnist`.
MODELS: dict[str, tuple[str, dict[str, Any], float]] = {
    "iP-VAE": ("ip-vae", CLAMP, 1.0), "P-VAE": ("p-vae", {}, AMORTISED)
}  # fmt: skip
# Sets that train, and sets that are inferred.
SETS = {
    "quick": (["digits", "natural-8"], ["digits", "natural-8"]),
    "short": (["mnist", "natural-28"], ["mnist", "fashion-mnist", "digits-28", "natural-28"]),
}
QUICK = 150
COLORS = (BLUE, ORANGE, GREEN, MUTED)
# Shares of the features, those with most spikes first, at which a share of the spikes is kept.
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def trials(preset: str, seeds: int) -> list[Trial]:
    """An iterative and an amortised model on each training set; those on MNIST are of `mnist`."""
    quick = preset == "quick"
    train, shown = SETS.get(preset, SETS["short"])
    options: dict[str, Any] = {
        "sets": shown, "images": 100 if quick else 500,
        "steps": {"quick": 32, "short": 256, "long": 1000}[preset], "last": 16,
    }  # fmt: skip
    return [
        Trial(
            f"{label} of {data}", model, data, seed, fields,
            {"max_steps": QUICK if quick else round(share * UPDATES[preset])}, options,
        )
        for data in train for label, (model, fields, share) in MODELS.items() for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """R2 of each set, how its spikes spread over the features, and which features serve it."""
    options, own = trial.options, trial.data
    steps = inference_steps(model, options["steps"])
    others, missing = workshop.sets(name for name in options["sets"] if name != own)
    r2, usage = {}, {}
    for name, splits in {own: workshop.data(own), **others}.items():
        r2[name], usage[name] = served(model, splits.test[: options["images"]], steps, options["last"])
    areas = area(model.dictionary.detach())
    return {
        "r2": r2,
        "spread": {name: spread(counts) for name, counts in usage.items()},
        "kept": {name: kept(counts) for name, counts in usage.items()},
        "overlap": {name: overlap(usage[own], counts) for name, counts in usage.items()},
        "local": {name: local(areas, usage[own], usage[name]) for name in usage if name != own},
        "area": float(areas.mean()), "missing": missing,
    }  # fmt: skip


def served(model: VAE, x: Tensor, steps: int, last: int) -> tuple[float, Tensor]:
    """R2 at the last step, and the mean counts of every neuron, [K], over some last steps."""
    result = model.infer(x, steps, record=("squared_error",), record_every=steps, seed=0)
    r2 = pooled_r2(result.records["squared_error"][-1], x)
    rates = model.encode(x, steps, last=min(last, steps), counts=True, seed=0)
    return float(r2), rates.mean(0)


def spread(counts: Tensor) -> float:
    """Share of the neurons that evenly used would have the entropy of these counts [K], 0 to 1."""
    share = counts / counts.sum().clamp(min=torch.finfo(counts.dtype).tiny)
    return float(torch.special.entr(share).sum().exp() / len(counts))


def kept(counts: Tensor) -> list[float]:
    """Share of the spikes of the busiest neurons, for each of `SHARES` of them."""
    sums = counts.sort(descending=True).values.cumsum(0)
    at = [max(1, round(share * len(counts))) - 1 for share in SHARES]
    return [float(value) for value in sums[at] / sums[-1].clamp(min=torch.finfo(counts.dtype).tiny)]


def overlap(one: Tensor, other: Tensor) -> float:
    """Of two uses [K] of the neurons, the share in common: the sum of the smaller of their shares."""
    return float(torch.minimum(one / one.sum(), other / other.sum()).sum())


def area(dictionary: Tensor) -> Tensor:
    """Share of the pixels that a feature covers, [K]: its participation ratio, of a dictionary [M, K]."""
    power = dictionary.square()
    ratio = power.sum(0).square() / power.square().sum(0).clamp(min=torch.finfo(power.dtype).tiny)
    return ratio / len(dictionary)


def local(areas: Tensor, home: Tensor, abroad: Tensor) -> float:
    """Spearman's correlation of a feature's area and of how much more it is used abroad, of those in use."""
    used = (home > 0) & (abroad > 0)
    gain = (abroad[used] / abroad.sum()).log() - (home[used] / home.sum()).log()
    return float(spearmanr(areas[used].numpy(), gain.numpy()).statistic)


def report(results: Results) -> Report:
    """A row for each model and set."""
    rows, pairs = [], []
    for label in results:
        for name in next(iter(ended(results, label)), {"r2": {}})["r2"]:
            pairs.append((label, name))
            away = not label.endswith(f" of {name}")
            rows.append([
                label, name, found(results, label, "r2", name).show(),
                found(results, label, "spread", name).show(1, 100.0) + " %",
                found(results, label, "overlap", name).show(1, 100.0) + " %" if away else "",
                found(results, label, "local", name).show(2) if away else "",
            ])  # fmt: skip
    columns = ["model", "set", "R2", "features in use", "use in common", "area and use"]
    return Report(columns, rows, list(_claims(results, pairs)), _figure(results), [
        "R2 is of all images together. Features in use: the share of the neurons that, evenly used, would "
        "have the entropy of the spikes.",
        "Use in common: of the spikes, the share that falls on the same neurons as on the set of the "
        "training.",
        "Area and use: Spearman's correlation over features of the area that one covers (participation "
        "ratio) and of how much more of the spikes it has on this set than on that of the training. Below 0 "
        "the local features are those that serve.",
        "natural-28 are patches of photographs, not whitened, each stretched from 0 to 1.",
    ])  # fmt: skip


def _claims(results: Results, pairs: list[tuple[str, str]]) -> list[Claim]:
    claims = []
    for label, name in pairs:
        kind, own = label.split(" of ")
        if kind != "iP-VAE" or name == own:
            continue
        a, b = found(results, label, "r2", name), found(results, f"P-VAE of {own}", "r2", name)
        claims.append(Claim(
            f"features of {own} serve {name} better by iterative inference than by an encoder (R2)",
            above(a, b), f"{a.show()} against {b.show()}",
        ))  # fmt: skip
        a = found(results, label, "local", name)
        below = above(Mean(0.0, 0.0, a.n), a)
        claims.append(Claim(
            f"of the features of {own}, the local ones serve {name}: compositional", below,
            f"correlation of area and use {a.show(2)}",
        ))  # fmt: skip
    return claims


def _figure(results: Results) -> Any:
    labels = [label for label in results if label.startswith("iP-VAE")]
    figure, axes = new_figure((4.6 * len(labels), 3.8), 1, len(labels))
    colors: dict[str, str] = {}
    for ax, label in zip(axes, labels, strict=True):
        known = [values["kept"] for values in ended(results, label)]
        for name in known[0] if known else []:
            color = colors.setdefault(name, COLORS[len(colors) % len(COLORS)])
            ax.plot(SHARES, np.mean([k[name] for k in known], axis=0), "o-", color=color, ms=3, label=name)
        ax.xaxis.set_major_formatter(percent)
        ax.yaxis.set_major_formatter(percent)
        ax.set_xlabel(f"busiest features of {label.split(' of ')[1]}")
        ax.set_ylabel("spikes")
        ax.legend(frameon=False, fontsize=8)
        with_grid(ax)
    set_heading(figure, "How many features serve a set")
    return figure


TRANSFER = Experiment(
    "transfer", "Do features learnt on one set of images serve others, and which of them do?",
    "An iP-VAE and a P-VAE of 512 neurons each are trained on MNIST and on natural images of the same "
    "size, and infer held-out images of each set and of others, 500 or as many as there are (digits-28 "
    "296, natural-28 43). Spikes of the last 16 steps are counted by neuron.",
    {"quick": 0.4, "short": 8.0, "long": 500.0}, trials, measure, report,
)  # fmt: skip
