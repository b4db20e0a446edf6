"""The released model's loop in plain PyTorch, with torch's own random numbers and autograd.

This is what the speed figures are measured against: what a competent user of PyTorch would write from the
paper ("Brain-like variational inference", arXiv 2410.19315) and its released code, of one update per step.
It shares no code with the kernels, draws the same laws with other numbers, and does nothing that is not
needed: constants leave the loop, and sums of exponentials are taken before autograd sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipvae_kernels import arrivals_quantile

from ..models.poisson import IPVAE

FLOOR = -8.0
RATE_FLOOR = 1.1920929e-07
Arrivals = int | Sequence[int] | None


class Result(NamedTuple):
    """What both functions return.

    Attributes:
        loss: (recon + beta kl), mean over steps and samples, times 256 / M; [].
        recon: [T, B], nats.
        kl: [T, B], nats.
        log_rate: final state, [B, K].
    """

    loss: Tensor
    recon: Tensor
    kl: Tensor
    log_rate: Tensor


class Constants(NamedTuple):
    """What does not change over the steps.

    Attributes:
        phi: dictionary, [M, K]; None beside another decoder.
        decoder: from codes [B, K] to pixels [B, M], in place of the dictionary; or None.
        sigma: standard deviation of the pixels, [M].
        var: its square, [M].
        bias: inhibition, with what the drive subtracts, [K].
        lr: step size, [].
        constant: part of the reconstruction term that no count changes, [].
        clamp_u: ceiling of the log rate.
        clamp_du: ceiling of its update.
        released_kl: whether the KL is that of the released code.
        expected: whether rates drive the updates, in place of counts.
        decay: weight of the pull of a log rate towards 0.
    """

    phi: Tensor | None
    decoder: nn.Module | None
    sigma: Tensor
    var: Tensor
    bias: Tensor
    lr: Tensor
    constant: Tensor
    clamp_u: float
    clamp_du: float
    released_kl: bool
    expected: bool
    decay: float


# (log rate [B, K], x [B, M], constants, estimator, temperature, arrivals) -> log rate, recon [B], kl [B].
Step = Callable[[Tensor, Tensor, Constants, str, float, int | None], tuple[Tensor, Tensor, Tensor]]


def constants(model: IPVAE) -> Constants:
    """The constants of a rollout; gradients flow through to the model's parameters."""
    p, config = model.params, model.config
    sigma = p.log_sigma.exp()
    bias = p.log_bias.exp()
    if config.drive != "paper":
        assert p.dictionary is not None
        bias = bias + 0.5 * (p.dictionary / sigma[:, None]).square().sum(0)
    constant = p.log_sigma.sum() + 0.5 * math.log(2.0 * math.pi) * len(sigma)
    return Constants(
        p.dictionary, model.flat_decoder(), sigma, sigma.square(), bias, p.log_lr.exp(), constant,
        model.clamps["clamp_u"], model.clamps["clamp_du"], config.kl == "released",
        config.drive == "expected", config.decay,
    )  # fmt: skip


def step(
    u: Tensor, x: Tensor, c: Constants, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One step from log rates [B, K]: the new ones, recon [B] and kl [B]."""
    prior = u
    code = rates(u) if c.expected else sample(u, estimator, temperature, n_arrivals)
    mean, back = decoded(code, c)
    drive = back((x - mean) / c.var) - c.bias
    change = c.lr * (drive - c.decay * u if c.decay else drive)
    change = c.clamp_du - F.softplus(c.clamp_du - change.clamp_(min=FLOOR))
    u = c.clamp_u - F.softplus(c.clamp_u - (u + change).clamp_(min=FLOOR))
    error = (x - decoded(sample(u, estimator, temperature, n_arrivals), c)[0]) / c.sigma
    recon = 0.5 * error.square().sum(-1) + c.constant
    d = u - prior
    kl = ((u if c.released_kl else prior).exp() * (1.0 + d.exp() * (d - 1.0))).sum(-1)
    return u, recon, kl


def decoded(z: Tensor, c: Constants) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Mean of the pixels for counts [B, K], and the map from errors [B, M] back to neurons [B, K].

    For a decoder that is not linear that is the vector-Jacobian product, by autograd, so not in inference
    mode.
    """
    phi = c.phi
    if phi is not None:
        return F.linear(z, phi), lambda error: F.linear(error, phi.T)
    assert c.decoder is not None
    code = z if z.requires_grad else z.detach().requires_grad_()
    mean = c.decoder(code)
    return mean, lambda error: torch.autograd.grad(mean, code, error, create_graph=True)[0]


def loss(
    model: IPVAE,
    x: Tensor,
    steps: int,
    beta: float,
    estimator: str,
    temperature: float,
    n_arrivals: Arrivals,
    step: Step = step,
) -> Result:
    """The training loss over T steps, differentiable by autograd.

    Args:
        model: its parameters, clamps and KL are used; one update per step.
        x: [B, M].
        steps: T.
        beta: weight of the KL.
        estimator: of d(counts)/d(log rate), any of `ipvae_kernels.poisson_rsample` but "gumbel".
        temperature: of the relaxed counts; 0 draws hard ones, without gradient. "fini2", "fini3" ignore it.
        n_arrivals: sum so many arrivals, or so many at each step ([T], see `released_arrivals`); None: by the
            released rule from the largest rate of each draw, which looks at the rates every time.
        step: what computes a step; `step`, or a compiled form of it.

    Raises:
        ValueError: for an unknown estimator, or a model with several updates per step.
    """
    if model.config.n_inner != 1:
        raise ValueError(f"model: the baseline has one update per step, found n_inner={model.config.n_inner}")
    if estimator not in (*INDICATORS, *SLOPES, "hard"):
        raise ValueError(f"estimator: the baseline does not have {estimator!r}")
    c = constants(model)
    u = model.params.log_rate_init.expand(len(x), -1)
    recons, kls = [], []
    for t in range(steps):
        n = n_arrivals[t] if isinstance(n_arrivals, Sequence) else n_arrivals
        u, recon_t, kl_t = step(u, x, c, estimator, temperature, n)
        recons.append(recon_t)
        kls.append(kl_t)
    recon, kl = torch.stack(recons), torch.stack(kls)
    return Result((recon + beta * kl).mean() * (256.0 / x.shape[-1]), recon, kl, u)


@torch.inference_mode()
def infer(model: IPVAE, x: Tensor, steps: int) -> Result:
    """T steps with hard counts, recon and KL computed at each, as the released evaluation does; no gradient.

    Args:
        model: one update per step.
        x: [B, M].
        steps: T.
    """
    return loss(model, x, steps, 1.0, "hard", 0.0, None)


def rates(log_rate: Tensor) -> Tensor:
    """Rates of log rates [B, K]."""
    return log_rate.exp() + RATE_FLOOR


def sample(log_rate: Tensor, estimator: str, temperature: float, n_arrivals: int | None) -> Tensor:
    """Counts of log rates [B, K], differentiable unless hard."""
    rate = rates(log_rate)
    if estimator in SLOPES:
        with torch.no_grad():
            z = torch.poisson(rate)
            slope = SLOPES[estimator](z, rate)
        return z + slope * (log_rate - log_rate.detach())
    if estimator == "hard" or temperature == 0.0:
        return torch.poisson(rate.detach())
    n = released_quantile(rate) if n_arrivals is None else n_arrivals
    unit = rate.new_empty(n, *rate.shape).exponential_().cumsum_(0)
    return INDICATORS[estimator]((1.0 - unit / rate) / temperature).sum(0)


def released_quantile(rate: Tensor) -> int:
    """The released number of arrivals, the 0.999 quantile of Poisson(largest rate)."""
    return arrivals_quantile(rate.detach().max().item())


def released_arrivals(model: IPVAE, x: Tensor, steps: int) -> list[int]:
    """The released table of arrivals in training, one number per step from that step's rates; takes a run."""
    rates = model.infer(x, steps, record=("log_rate",), seed=0).records["log_rate"].exp()
    return [released_quantile(rate) for rate in rates]


def _unit(x: Tensor) -> Tensor:
    """The relaxed step's argument, [-1, 1] to [0, 1]."""
    return (0.5 * x + 0.5).clamp(0.0, 1.0)


def _cubic(x: Tensor) -> Tensor:
    w = _unit(x)
    return w * w * (3.0 - 2.0 * w)


def _quintic(x: Tensor) -> Tensor:
    w = _unit(x)
    return w * w * w * (w * (6.0 * w - 15.0) + 10.0)


INDICATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "linear": _unit,
    "cubic": _cubic,
    "quintic": _quintic,
    "cosine": lambda x: 0.5 - 0.5 * torch.cos(math.pi * _unit(x)),
}
"""Arrivals (1 - t) / temperature to the part of each that counts."""
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fini2": lambda z, rate: 0.5 * (z + rate),
    "fini3": lambda z, rate: (5.0 * rate + 8.0 * z + z * (1.0 - z) / rate) / 12.0,
}
"""Hard counts and their rates to the slope of the counts."""
