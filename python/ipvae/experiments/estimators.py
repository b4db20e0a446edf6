"""``ipvae reproduce estimators``: what each gradient of counts trains to, and what it costs."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ipvae_kernels import poisson_rsample

from ..evaluation.evaluate import evaluate
from ..models.base import VAE
from ..models.poisson import IPVAE
from ..plots.canvas import BLUE, ORANGE, new_figure, set_heading, with_grid
from .reproduce import Claim, Experiment, Report, Results, above, bar, found, nan_last
from .trials import UPDATES, Trial, Workshop

ESTIMATORS = ("sigmoid", "linear", "cubic", "quintic", "cosine", "fini2", "fini3")
# Gumbel's is served by autograd alone, and an update takes some twenty times as long: long preset only.
NAMES = {"quick": ("sigmoid", "fini2"), "short": ESTIMATORS, "long": (*ESTIMATORS, "gumbel")}
DRAWS = 2000  # behind bias and variance
TIMED = 5  # updates


def trials(preset: str, seeds: int) -> list[Trial]:
    """One iP-VAE an estimator, by as many updates; temperatures fall from 1 to .01 where there are any."""
    quick = preset == "quick"
    data = "digits" if quick else "patches"
    options = {"steps": 32 if quick else 128, "images": 100 if quick else 500}
    return [
        Trial(name, "ip-vae", data, seed, {"estimator": name}, {"max_steps": UPDATES[preset]}, options)
        for name in NAMES[preset] for seed in range(seeds)
    ]  # fmt: skip


def measure(model: VAE, workshop: Workshop, trial: Trial) -> dict[str, Any]:
    """-ELBO and R2 with hard counts; bias and cosine of the gradient in the trained state; time an update."""
    assert isinstance(model, IPVAE)
    x = workshop.data(trial.data).test[: trial.options["images"]]
    result = evaluate(model, x, trial.options["steps"], marks=())
    state = model.infer(x[:1], model.t_train, seed=0).state.log_rate
    return {
        "nelbo": float(result.nelbo[-1]), "r2": float(result.r2[-1]), "zeros": float(result.zeros[-1]),
        **{f"at {t:g}": gradient(model, x[:1], state, trial.label, t) for t in (1.0, 0.1, 0.01)},
        "seconds": update_seconds(model, workshop.data(trial.data).train[:100]),
    }  # fmt: skip


def gradient(
    model: IPVAE, x: Tensor, log_rate: Tensor, estimator: str, temperature: float
) -> dict[str, float]:
    """Relative bias, relative standard deviation and mean cosine to the exact gradient of E[recon] in u."""
    phi, precision = model.dictionary.detach(), torch.exp(-2.0 * model.log_sigma.detach())
    rate = log_rate.exp()
    residual = (x - rate @ phi.T) * precision
    exact = rate * (0.5 * (phi.square() * precision[:, None]).sum(0) - residual @ phi)
    u = log_rate.expand(DRAWS, -1).clone().requires_grad_()
    z = poisson_rsample(u, estimator=estimator, temperature=temperature, seed=1)
    (found,) = torch.autograd.grad(0.5 * ((x - z @ phi.T).square() * precision).sum(), u)
    size = exact.norm()
    return {
        "bias": float((found.mean(0) - exact[0]).norm() / size),
        "deviation": float(found.var(0).sum().sqrt() / size),
        "cosine": float(torch.cosine_similarity(found, exact, dim=-1).mean()),
    }


def update_seconds(model: IPVAE, x: Tensor) -> float:
    """Median time of a loss and its gradient at temperature .1."""
    times = []
    for seed in range(TIMED + 1):
        started = time.perf_counter()
        loss = model(x, temperature=0.1, seed=seed).loss
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        times.append(time.perf_counter() - started)
    return float(torch.tensor(times[1:]).median())


def report(results: Results) -> Report:
    """A row an estimator; which trains best, and whether spikes train as well as the authors' relaxation."""
    rows = [
        [
            label, found(results, label, "nelbo").show(2), found(results, label, "r2").show(),
            found(results, label, "zeros").show(1, 100.0) + " %",
            *(found(results, label, "at 0.1", name).show(2) for name in ("bias", "deviation", "cosine")),
            found(results, label, "seconds").show(1, 1000.0) + " ms",
        ]
        for label in results
    ]  # fmt: skip
    best = min(results, key=lambda label: nan_last(found(results, label, "nelbo").mean))
    theirs, ours = found(results, "sigmoid", "nelbo"), found(results, "fini2", "nelbo")
    claims = [
        Claim("the authors' sigmoid trains to a lower -ELBO than fini2, on whole spikes",
              above(ours, theirs), f"{theirs.show(2)} against {ours.show(2)}; best: {best}"),
    ]  # fmt: skip
    columns = ["estimator", "-ELBO", "R2", "silent", "bias", "deviation", "cosine", "an update"]
    return Report(columns, rows, claims, _figure(results), [
        "-ELBO, R2 and silence with hard counts, at the last step.",
        "Bias, standard deviation and cosine are of the gradient of the expected reconstruction term in the "
        "log rates, against its closed form, at temperature .1 in the state after T steps of one input, "
        "relative to the size of that gradient.",
    ])  # fmt: skip


def _figure(results: Results) -> Any:
    """What each trains to, against what an update takes."""
    figure, (ax,) = new_figure((6.4, 4.0), 1, 1)
    for label in results:
        x, y = found(results, label, "seconds"), found(results, label, "nelbo")
        ax.errorbar(
            1000.0 * x.mean, y.mean, xerr=1000.0 * bar(x), yerr=bar(y), fmt="o",
            color=BLUE if label.startswith("fini") else ORANGE,
        )  # fmt: skip
        ax.annotate(label, (1000.0 * x.mean, y.mean), fontsize=9, xytext=(6, 4), textcoords="offset points")
    ax.set_xlabel("an update, ms")
    ax.set_ylabel("-ELBO, nats")
    with_grid(ax)
    set_heading(figure, "Estimators: what they train to, and their time")
    return figure


ESTIMATORS_COMPARED = Experiment(
    "estimators", "What does each estimator of the gradient of counts train to, and at what cost?",
    "iP-VAEs that differ in the estimator alone are trained on whitened patches with T = 16, by as many "
    "updates. The gradient of the expected reconstruction term is then estimated 2,000 times in one "
    "trained state, for which it has a closed form.",
    {"quick": 0.3, "short": 6.0, "long": 240.0}, trials, measure, report,
)  # fmt: skip
