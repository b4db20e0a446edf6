"""What a contestant is given, and what it gives back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from ipvae import IPVAE, PVAE
from ipvae.experiments import baseline
from torch import Tensor, nn

from . import states
from .cases import Case

SAMPLED_STEPS = 16
UNIFORM = (-8.0, 4.0)
# Weights must stay what they are while a training step is timed again and again.
LR, WEIGHT_DECAY, GRAD_CLIP, BETA = 1e-7, 3e-4, 300.0, 12.0


class Unavailable(Exception):
    """A contestant cannot run here, or not this case; the message says why."""


@dataclass(frozen=True)
class Settings:
    """How to run.

    Attributes:
        device: "cpu" or "cuda".
        threads: of the CPU.
        seconds: time budget of a case, all contestants together, without preparation and memory.
        updates: optimiser steps behind the states.
        state_dir: cache of the states.
        backends: of `ipvae_kernels`, to run as contestants.
        reference: a checkout of the authors' code; None: they do not take part.
        memory: whether peak memory is measured, which takes a process and a run per row.
        without: contestants to leave out.
    """

    device: str = "cpu"
    threads: int = 1
    seconds: float = 10.0
    updates: int = states.UPDATES["quick"]
    state_dir: Path = field(default_factory=states.cache_dir)
    backends: tuple[str, ...] = ("cpu",)
    reference: Path | None = None
    memory: bool = True
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A case with its data.

    Attributes:
        case: what to do.
        model: parameters; contestants that change them take `copy_model`.
        x: inputs, [B, M]; empty for sampling.
        log_rate: of sampling cases, of the case's shape; else empty.
        arrivals: the released number of arrivals at each step of training, [T]; for sampling, [1].
        nonzero: share of hard counts that are not 0.
        rate: mean hard count.
        device: where all of it lies.
        amortised: the P-VAE of a case of that op; else None.
    """

    case: Case
    model: IPVAE
    x: Tensor
    log_rate: Tensor
    arrivals: list[int]
    nonzero: float
    rate: float
    device: str
    amortised: PVAE | None = None

    def copy_model(self) -> IPVAE:
        """A model of the contestant's own."""
        return copy.deepcopy(self.model)


Output = dict[str, Tensor]
"""Tensors by name.

Rollouts: "recon" and "kl" [T, B], nats, "log_rate" [B, K]; in training "gradient" of the dictionary, [M, K].
Sampling: "counts", of the case's shape, and, with an estimator, "gradient" of the log rates, the same.
"""


@dataclass(frozen=True)
class Prepared:
    """A contestant ready to run.

    Attributes:
        run: runs the case once, with new noise.
        problem: what it runs; of the authors' code with another estimator than the case has.
        note: what a reader of the row must know.
        compile_seconds: None where nothing was compiled.
    """

    run: Callable[[], Output]
    problem: Problem
    note: str = ""
    compile_seconds: float | None = None


class Optimiser:
    """Backward, clipped gradient, Adamax, as in the released recipe.

    Args:
        model: its parameters are optimised, at a learning rate that leaves them all but unchanged.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        on_gpu = self.parameters[0].is_cuda  # where a CUDA graph may capture the step
        self.adamax = torch.optim.Adamax(self.parameters, lr=LR, weight_decay=WEIGHT_DECAY, capturable=on_gpu)

    def step(self, loss: Tensor) -> None:
        """One optimiser step down a loss []."""
        self.adamax.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, GRAD_CLIP)
        self.adamax.step()


def watched(model: IPVAE) -> Tensor:
    """The weights by whose gradient contestants are compared, those next to the pixels: [M, ...]."""
    layers = [] if model.decoder is None else [m for m in model.decoder.modules() if isinstance(m, nn.Linear)]
    return layers[-1].weight if layers else model.layer.phi.weight


def upstream(problem: Problem) -> Tensor:
    """The gradient that relaxed counts receive in sampling cases: fixed, standard normal, [B, K]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(problem.case.shape, generator=generator).to(problem.device)[: len(problem.log_rate)]


def make(case: Case, settings: Settings, tell: Callable[[str], None] = lambda _: None) -> Problem:
    """The problem of a case; trains its state where that is not cached."""
    sampling = case.op in ("sample", "rsample")
    state = states.load(
        "paper" if case.state == "uniform" else case.state, settings.updates, settings.state_dir, tell
    )
    if sampling:
        log_rate = _sampled_log_rates(state, case)
        rate = log_rate.exp()
        arrivals = [baseline.released_quantile(rate)]
        nonzero, mean = float(-torch.expm1(-rate).mean()), float(rate.mean())
        x = state.x[:0]
    else:
        log_rate, x = torch.empty(0), state.x[: case.batch]
        arrivals = baseline.released_arrivals(state.model, x, case.steps) if case.op == "train" else []
        nonzero, mean = states.nonzero(state.model, x, case.steps)
    model = copy.deepcopy(state.model).to(settings.device)
    model.config = replace(model.config, drive=case.drive)
    device = settings.device
    amortised = None
    if case.op == "amortised":
        trained = states.amortised(case.state, settings.updates, settings.state_dir)
        amortised = copy.deepcopy(trained).to(device)
        nonzero, mean = states.nonzero(trained, x, 1)
    return Problem(case, model, x.to(device), log_rate.to(device), arrivals, nonzero, mean, device, amortised)


def _sampled_log_rates(state: states.State, case: Case) -> Tensor:
    """Log rates of the case's shape: those of neurons after some steps of inference, or uniform ones."""
    size = case.shape[0] * case.shape[1]
    if case.state == "uniform":
        low, high = UNIFORM
        return low + (high - low) * torch.rand(case.shape, generator=torch.Generator().manual_seed(0))
    rows = -(-size // state.model.config.n_latents)
    u = state.model.infer(state.x[:rows], SAMPLED_STEPS, seed=0).state.log_rate
    return u.flatten()[:size].reshape(case.shape).clone()
