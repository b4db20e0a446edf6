"""A stand-in for the authors' code: its classes, attributes and loop, written anew and small, with our noise.

Acceleration knows their objects by names and attributes, so these let it be tested where their code is not at
hand; test_accelerate.py runs the same tests on theirs where it is.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ipvae_kernels.poisson.eager import differentiable_draw
from ipvae_kernels.poisson.noise import PhiloxNoise
from ipvae_kernels.rollout import schedule
from ipvae_kernels.rollout.config import RolloutConfig


class Poisson:
    def __init__(self, log_rate: Tensor, temp: float, n_exp: int | str, n_exp_p: float, clamp: None) -> None:
        self.log_rate, self.temp = log_rate, temp
        self.rate = log_rate.exp() + torch.finfo(torch.float32).eps
        self.n_exp = 99 if n_exp == "infer" else int(n_exp)


class Normal(torch.distributions.Normal):
    def __init__(self, loc: Tensor, log_scale: Tensor, temp: float, clamp: None) -> None:
        super().__init__(loc, log_scale.exp().expand_as(loc), validate_args=False)


class _Dictionary(nn.Module):
    def __init__(self, m: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(m, k))

    def forward(self, z: Tensor, transpose: bool = False) -> Tensor:
        return z @ (self.weight if transpose else self.weight.T)


class _StochasticLayer(nn.Module):
    seed: Tensor  # of the noise, which the test sets

    def __init__(self, m: int, k: int, cfg: Any) -> None:
        super().__init__()
        self.input_dim, self.latent_dim, self._cfg = m, k, cfg
        self.t_total = cfg.t_train * cfg.n_iters_outer
        self.activation: Any = None
        self.phi = _Dictionary(m, k)
        self.dec_log_sigma = nn.Parameter(0.1 * torch.randn(1, m))
        self.log_bias = nn.Parameter(torch.full((1, k), -3.0))
        self.log_lr = nn.ParameterList([nn.Parameter(torch.full((1,), -1.0))])
        self.u_init = nn.ParameterList([nn.Parameter(0.5 * torch.randn(1, k) - 1.0)])
        for name, value in (("temp", 1.0), ("beta_inner", cfg.beta_inner), ("eps", 1.0)):
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("n_exp", torch.full((self.t_total,), 10, dtype=torch.int32))
        self.time = self.n_updates = self.drawn = 0
        self.u: Any = None
        self.u_prior: Any = None
        self.samples = self.posterior = self.conditional = None

    def forward(self, x: Tensor, temp: float | None = None) -> None:
        if self.time == 0 or self.u is None:
            self.reset_state(len(x))
        self.u_prior = self.u
        for inner in range(self._cfg.n_iters_inner):
            self.n_updates += 1
            change = -self.grad_free_energy(x, inner, temp) * self.log_lr[0].exp()
            self.u = (self.softclamp(self.u[0] + self.softclamp(change, "du"), "u"),)

    infer_grad = forward

    def grad_recon_term(self, x: Tensor, inner: int, temp: float | None) -> Tensor:
        self.update_inference_state(temp, inner)
        error = (x - self.phi(self.samples)) * torch.exp(-2.0 * self.get_dec_log_sigma())
        return -self.phi(error, transpose=True)

    def generate(self, temp: float | None = None) -> None:
        self.update_inference_state(temp, None)
        self.conditional = Normal(self.phi(self.samples), self.get_dec_log_sigma(), 1.0, None)

    def update_inference_state(self, temp: float | None, inner: int | None) -> None:
        cfg, t = RolloutConfig(steps=1, n_inner=self._cfg.n_iters_inner), self.drawn
        loss = inner is None
        stream = schedule.loss_stream(cfg, t) if inner is None else schedule.update_stream(cfg, t, inner)
        tau = float(self.temp if temp is None else temp)
        cut = int(self.n_exp[self.time]) if self.time < len(self.n_exp) else None
        self.samples = differentiable_draw(self.u[0], PhiloxNoise(self.seed), stream, "sigmoid", tau, cut)
        self.posterior = self.get_dist()
        self.drawn += loss

    def loss_recon(self, x: Tensor, mode: str = "prob") -> Tensor:
        if mode == "prob":
            return -self.conditional.log_prob(x).sum(-1)
        return (x - self.conditional.loc).square().sum(-1)

    def reset_state(self, batch: int) -> None:
        self.u = tuple(u0.expand(batch, -1) for u0 in self.u_init)
        self.time = self.n_updates = self.drawn = 0

    def get_dec_log_sigma(self) -> Tensor:
        return 3.45 * torch.tanh(self.dec_log_sigma / 3.45)

    def get_c(self, which: str, idx: int | None = None) -> Tensor:
        return 2.0 + self.eps * (getattr(self._cfg, f"clamp_{which}") - 2.0)


class PoissonLayer(_StochasticLayer):
    def grad_kl_term(self) -> Tensor:
        return self.u[0] - self.u_prior[0]

    def grad_free_energy(self, x: Tensor, inner: int, temp: float | None) -> Tensor:
        grad = self.grad_recon_term(x, inner, temp) + self.log_bias.exp()
        return grad + self.beta_inner * self.grad_kl_term() if self._cfg.n_iters_inner > 1 else grad

    def softclamp(self, x: Tensor, which: str) -> Tensor:
        c = self.get_c(which)
        return c - nn.functional.softplus(c - x.clamp(min=-8.0))

    def get_dist(self) -> Poisson:
        n_exp = self.n_exp[self.time] if self.time < len(self.n_exp) else "infer"
        return Poisson(log_rate=self.u[0], temp=self.temp.clone(), n_exp=n_exp, n_exp_p=1e-3, clamp=None)

    def loss_kl(self) -> Tensor:
        du = self.u[0] - self.u_prior[0]
        return self.u[0].exp() * (1.0 + du.exp() * (du - 1.0))


class _IterativeVAE(nn.Module):
    layer: Any

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg

    def forward(self, x: Tensor, temp: float | None = None, return_extras: Any = None) -> dict[str, Any]:
        self.layer(x, temp=temp)
        self.layer.generate(temp=temp)
        output = {
            "loss_kl": self.layer.loss_kl(),
            "loss_recon": self.layer.loss_recon(x),
            "posterior": self.layer.posterior,
        }
        return self._add_extras(x, output, return_extras) if return_extras else output

    @torch.no_grad()
    def _add_extras(self, x: Tensor, output: dict[str, Any], items: list[str]) -> dict[str, Any]:
        layer = self.layer
        made = {
            "u": lambda: layer.u[0], "du": lambda: layer.u[0] - layer.u_prior[0],
            "samples": lambda: layer.samples, "recon": lambda: layer.conditional.loc,
            "mse": lambda: layer.loss_recon(x, mode="mse"),
        }  # fmt: skip
        return {**output, **{name: made[name]().detach() for name in items}}

    def detach_inference_state(self) -> None:
        layer = self.layer
        layer.u = tuple(
            u0.expand_as(u) + (u - u0).detach() for u0, u in zip(layer.u_init, layer.u, strict=True)
        )

    def update_time(self, t: int) -> None:
        self.layer.time = t


class IPVAE(_IterativeVAE):
    def __init__(self, cfg: Any, m: int = 12, k: int = 20) -> None:
        super().__init__(cfg)
        self.layer = PoissonLayer(m, k, cfg)


class Feeder:
    """Frames that are made when they are asked for, from random numbers in order."""

    def __init__(self, x: Tensor, moves: bool) -> None:
        self.x, self.moves, self.generator = x, moves, torch.Generator().manual_seed(8)

    def __getitem__(self, t: int) -> Tensor:
        return self.get_frame(t)

    def get_frame(self, t: int) -> Tensor:
        noise = torch.randn(self.x.shape, generator=self.generator) if self.moves else None
        return self.x.flatten(1) if noise is None else self.x + noise


class BaseTrainer:
    def __init__(self, model: Any, moves: bool) -> None:
        self.model, self.model_ema, self.moves = model, None, moves

    def get_feeder(self, x: Tensor | None = None, **options: Any) -> Feeder:
        assert x is not None
        return Feeder(x, self.moves)


def settings(**changes: Any) -> SimpleNamespace:
    """A configuration of theirs, as far as it is looked at."""
    usual = {
        "t_train": 4, "n_iters_outer": 1, "n_iters_inner": 1, "beta_inner": 1.0, "clamp_u": 10.0,
        "clamp_du": 10.0, "inf_type": "grad", "dec_type": "lin", "n_latents": [20], "fit_prior": True,
        "track_stats": False,
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **changes})
