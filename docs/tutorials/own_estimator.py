"""
An estimator of your own
========================

How a gradient passes through a count is an open question, and most of what is tried fails. This is the short
way to try: an estimator in ten lines of PyTorch, on the package's draws and updates, with nothing to build.
What proves itself then becomes a row of the table, fused in every backend.
"""

# %%
# An estimator of whole counts is a slope: d(count)/d(log rate) as a function of the count and of the rate.
# ``fini2`` has (count + rate) / 2, which makes the gradient of everything quadratic in the count unbiased. A
# plain straight-through estimator has the rate alone; it suffices for what is linear.

from collections.abc import Callable

import torch
from ipvae.plots.canvas import new_figure, set_heading
from torch import Tensor

import ipvae_kernels
from ipvae_kernels import PoissonParams

Slope = Callable[[Tensor, Tensor], Tensor]
FLOOR = 1.1920929e-07  # below which a rate does not fall


def straight_through(counts: Tensor, rate: Tensor) -> Tensor:
    """Slope of E[count]."""
    return rate


def halfway(counts: Tensor, rate: Tensor) -> Tensor:
    """The slope of fini2."""
    return (counts + rate) / 2


def draw(log_rate: Tensor, slope: Slope, seed: int, **which: int | str) -> Tensor:
    """Counts that autograd differentiates by a slope."""
    counts = ipvae_kernels.poisson_sample(log_rate, seed=seed, **which)
    with torch.no_grad():
        factor = slope(counts, torch.exp(log_rate) + FLOOR)
    return counts + factor * (log_rate - log_rate.detach())


# %%
# First the law: is the gradient right on average? For a loss f of one count, d E[f] / du is known: it is rate
# (E[f(z + 1)] - E[f(z)]), which for f = z squared is rate (2 rate + 1).

DRAWS = 200_000


def bias(slope: Slope, rate: float) -> float:
    """Mean gradient of the squared count, over the true one, less 1."""
    u = torch.full((DRAWS, 1), rate).log().requires_grad_()
    (found,) = torch.autograd.grad(draw(u, slope, seed=0).square().mean(), u)
    return float(found.sum()) / (rate * (2 * rate + 1)) - 1


rates = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
figure, (axes,) = new_figure((7.0, 3.0), 1, 1)
for slope in (straight_through, halfway):
    biases = [100 * bias(slope, rate) for rate in rates]
    axes.plot(rates, biases, "o-", label=slope.__name__)
    print(
        f"{slope.__name__:16}: bias {biases[0]:+.1f} % at rate {rates[0]}, {biases[-1]:+.1f} % at {rates[-1]}"
    )
axes.set(xscale="log", xlabel="rate", ylabel="bias, %")
axes.legend(frameon=False)
set_heading(figure, "Gradient of the squared count")

# %%
# Then the model: a step of the iterative Poisson VAE by hand, from the ops. Draws are named by step and
# purpose, so that they are those of the fused rollout at the same seed.


def elbo(x: Tensor, params: PoissonParams, steps: int, slope: Slope, seed: int) -> Tensor:
    """The loss of ``ipvae_kernels.elbo`` with an estimator of one's own, []."""
    phi, precision = params.dictionary, torch.exp(-2 * params.log_sigma)
    u, total = params.log_rate_init.expand(len(x), -1), x.new_zeros(())
    for t in range(steps):
        z = draw(u, slope, seed, draw="update", step=t)
        drive = ((x - z @ phi.T) * precision) @ phi
        before, u = u, ipvae_kernels.log_rate_update(u, u, drive, params)
        fresh = draw(u, slope, seed, draw="loss", step=t)
        recon = 0.5 * (x - fresh @ phi.T).square() * precision + params.log_sigma + 0.9189385332
        total = total + recon.sum(-1).mean() + ipvae_kernels.poisson_kl(u, before).sum(-1).mean()
    return total / steps * 256 / x.shape[1]


# %%
# With the slope of fini2 it has to agree with the fused op, loss and gradient.

torch.manual_seed(0)
x, K = torch.randn(32, 64), 48
made = [
    0.05 * torch.randn(64, K),
    torch.zeros(64),
    torch.full((K,), -3.0),
    torch.tensor(-1.0),
    torch.zeros(K),
]
tensors = [tensor.requires_grad_() for tensor in made]
params = PoissonParams(*tensors)

ours = elbo(x, params, 8, halfway, seed=3)
fused = ipvae_kernels.elbo(x, params, 8, estimator="fini2", seed=3).loss
(by_hand,) = torch.autograd.grad(ours, params.dictionary)
(of_op,) = torch.autograd.grad(fused, params.dictionary)
difference = float((by_hand - of_op).norm() / of_op.norm())
print(f"loss {ours.item():.5f} and {fused.item():.5f}; gradients differ by {difference:.0e}")

# %%
# Now the other one, which is biased where it matters: how far is its gradient from that of fini2 on this
# problem?

(other,) = torch.autograd.grad(elbo(x, params, 8, straight_through, seed=3), params.dictionary)
cosine = float(torch.nn.functional.cosine_similarity(other.flatten(), of_op.flatten(), dim=0))
print(f"straight_through: cosine to the gradient of fini2 {cosine:.3f}")

# %%
# What is worth keeping becomes a row of the table of estimators: its formula in ``csrc/common/estimators.h``,
# its name in ``ipvae_kernels/poisson/estimators.py``, its twin in ``ipvae_kernels/poisson/relaxation.py``
# and, for GPUs, in ``ipvae_kernels/backend/triton/poisson.py``. Tests of its mean, of its gradient and of the
# agreement of backends run over the table by themselves; the compiler and a test name what is missing. The
# page :doc:`/docs/design/extending` has the list, and what was measured when one was added for a trial.
