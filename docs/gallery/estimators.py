"""
Estimators of the gradient of a count
=====================================

Bias and noise of d E[f(z)] / du by each estimator, for f linear, quadratic and cubic, against the
true value rate (E[f(z + 1)] - E[f(z)]). A relaxed count at a high temperature is smooth and biased; at a low
one it is unbiased and noisy. The finite-order slopes have no temperature, and no bias up to the degree they
are made for.
"""

import math

import torch
from ipvae.plots.canvas import new_figure, set_heading, with_grid

from ipvae_kernels import poisson_rsample

DRAWS = 100_000
RATE = 1.0
LOSSES = {
    "f = z": lambda z: z,
    "f = z squared": torch.square,
    "f = z cubed": lambda z: z**3,
}
ESTIMATORS = ("sigmoid", "linear", "cubic", "quintic", "cosine")
TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)


def expected(f, rate):
    """E[f(z)], by its sum."""
    z = torch.arange(60.0, dtype=torch.float64)
    return float((f(z) * torch.exp(z * math.log(rate) - rate - torch.lgamma(z + 1))).sum())


def gradient(f, estimator, temperature):
    """Mean of df/du over draws, and its standard deviation."""
    u = torch.full((DRAWS, 1), math.log(RATE)).requires_grad_()
    z = poisson_rsample(u, estimator=estimator, temperature=temperature, seed=0)
    (found,) = torch.autograd.grad(f(z).sum(), u)
    return found.mean().item(), found.std().item()


figure, axes = new_figure((9.0, 6.0), 2, len(LOSSES))
for column, (name, f) in enumerate(LOSSES.items()):
    shifted = expected(lambda z, f=f: f(z + 1), RATE)
    true = RATE * (shifted - expected(f, RATE))
    top, bottom = axes[column], axes[column + len(LOSSES)]
    for estimator in ESTIMATORS:
        found = [gradient(f, estimator, tau) for tau in TEMPERATURES]
        top.plot(TEMPERATURES, [100 * (mean / true - 1) for mean, _ in found], "o-", ms=3, label=estimator)
        bottom.plot(TEMPERATURES, [noise / true for _, noise in found], "o-", ms=3)
    for estimator, style in (("fini2", "--"), ("fini3", ":")):
        mean, noise = gradient(f, estimator, 0.0)
        top.axhline(100 * (mean / true - 1), color="black", ls=style, lw=1, label=estimator)
        bottom.axhline(noise / true, color="black", ls=style, lw=1)
    top.set(title=name, xscale="log", ylim=(-60, 60))
    bottom.set(xscale="log", xlabel="temperature", yscale="log", yticks=(0.5, 1, 2, 4), ylim=(0.4, 7))
    bottom.minorticks_off()
    bottom.yaxis.set_major_formatter("{x:g}")
    for ax in (top, bottom):
        ax.set_xticks(TEMPERATURES, [f"{tau:g}" for tau in TEMPERATURES])
        ax.minorticks_off()
    with_grid(top)
    with_grid(bottom)
axes[0].set_ylabel("bias, %")
axes[len(LOSSES)].set_ylabel("deviation / true gradient")
axes[len(LOSSES) - 1].legend(fontsize=8, frameon=False, ncols=2)
set_heading(figure, f"Gradient of E[f(z)] at rate {RATE:g}")
