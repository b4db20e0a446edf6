"""T steps in plain PyTorch: one driver over a cell and a decoder, and a backward by hand for a linear one.

Symbols and equations: "Brain-like variational inference" (arXiv 2410.19315), and ``rollout/op.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..cells import Cell, Draw, make_cell
from ..poisson.noise import Noise, PhiloxNoise
from . import schedule
from .config import RolloutConfig
from .decoders import Decoded, Decoder, LinearDecoder
from .problem import Forward, Inputs, Trajectory, Upstream


class Step(NamedTuple):
    """One time step.

    Attributes:
        states: the n_inner + 1 states from the prior to the posterior.
        draws: n_inner draws for the updates, then the fresh one if it was asked for.
        errors: x - mean of each draw, [B, M].
        drives: of each update, [B, K]; see ``decoders.py``.
    """

    states: list[Tensor]
    draws: list[Draw]
    errors: list[Tensor]
    drives: list[Tensor]


def run(
    x: Tensor,
    decoder: Decoder,
    log_sigma: Tensor,
    cell: Cell,
    state: Tensor,
    cfg: RolloutConfig,
    fresh: bool = True,
) -> Iterator[Step]:
    """Drives a cell through ``cfg.steps`` steps.

    Args:
        x: [B, M], or [T, B, M] with a frame per step.
        decoder: of codes [B, K].
        log_sigma: [M].
        cell: the model.
        state: its state before the first step.
        cfg: constants; sizes, ``single_draw`` and the indices of the noise are used here.
        fresh: take the fresh draw of each step, which the loss needs.
    """
    precision = torch.exp(-2.0 * log_sigma)
    kept: Draw | None = None
    for t in range(cfg.steps):
        frame = x[t] if x.dim() == 3 else x
        step = Step([state], [], [], [])
        for j in range(cfg.n_inner):
            draw = cell.draw(state, schedule.update_stream(cfg, t, j)) if kept is None else kept
            decoded = decoder(draw.code)
            error = residual(frame, decoded)
            drive = decoded.drive(error * precision)
            state = cell.update(state, step.states[0], drive, draw)
            step.states.append(state)
            step.draws.append(draw)
            step.errors.append(error)
            step.drives.append(drive)
        if fresh:
            draw = cell.draw(state, schedule.loss_stream(cfg, t))
            step.draws.append(draw)
            step.errors.append(residual(frame, decoder(draw.code)))
            kept = draw if cfg.single_draw else None
        yield step


def residual(frame: Tensor, decoded: Decoded) -> Tensor:
    """The input less its mean, [B, M]."""
    checks.shape("mean of the decoder", decoded.mean, frame.shape, "[B, M] of x")
    return frame - decoded.mean


def reconstruction_loss(error: Tensor, log_sigma: Tensor) -> Tensor:
    """Gaussian negative log-likelihood summed over pixels, nats [B], of errors [B, M], log_sigma [M]."""
    scaled = error * torch.exp(-log_sigma)
    return 0.5 * scaled.square().sum(-1) + (log_sigma.sum() + 0.5 * math.log(2.0 * math.pi) * error.shape[-1])


RECORDS: dict[str, Callable[[Step, Cell, Tensor, Tensor], Tensor]] = {
    "log_rate": lambda step, cell, x, log_sigma: step.states[-1],
    "counts": lambda step, cell, x, log_sigma: step.draws[-1].code,
    "reconstruction": lambda step, cell, x, log_sigma: x - step.errors[-1],
    "recon": lambda step, cell, x, log_sigma: reconstruction_loss(step.errors[-1], log_sigma),
    "kl": lambda step, cell, x, log_sigma: cell.kl(step.states[-1], step.states[0]).sum(-1),
    "squared_error": lambda step, cell, x, log_sigma: step.errors[-1].square().sum(-1),
    "spikes": lambda step, cell, x, log_sigma: step.draws[-1].code.sum(-1),
    "zeros": lambda step, cell, x, log_sigma: (step.draws[-1].code == 0).to(x.dtype).mean(-1),
}
"""What can be recorded of a step, in canonical order."""

KL_PER_NEURON = "kl_per_neuron"
LOSS_RECORDS = ("log_rate", "counts", "reconstruction", KL_PER_NEURON)
"""What can be recorded of a step of the loss."""

WITHOUT_DRAW = ("log_rate", "kl")
"""The records that need no fresh draw."""


def record_run(
    x: Tensor,
    decoder: Decoder,
    log_sigma: Tensor,
    cell: Cell,
    state: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    record_every: int,
) -> list[Tensor]:
    """The final state, then the records asked for in canonical order, each [R, ...]."""
    names = [name for name in RECORDS if name in record]
    sizes = torch.Size((x.shape[-1], state.shape[-1]))
    shapes = record_shapes(x.shape[-2], sizes, state.shape)
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    fresh = any(name not in WITHOUT_DRAW for name in names)
    for t, step in enumerate(run(x, decoder, log_sigma, cell, state, cfg, fresh)):
        state = step.states[-1]
        if (cfg.step + t + 1) % record_every == 0:
            for name in names:
                rows[name].append(RECORDS[name](step, cell, x[t] if x.dim() == 3 else x, log_sigma))
    stacked = [torch.stack(rows[name]) if rows[name] else x.new_empty((0, *shapes[name])) for name in names]
    return [state, *stacked]


def record_shapes(batch: int, dictionary: torch.Size, state: torch.Size) -> dict[str, tuple[int, ...]]:
    """The shape of each record of one step."""
    pixels, neurons = dictionary
    wide = {"log_rate": tuple(state), "counts": (batch, neurons), "reconstruction": (batch, pixels)}
    return {name: wide.get(name, (batch,)) for name in RECORDS}


def elbo_autograd(
    x: Tensor,
    decoder: Decoder,
    log_sigma: Tensor,
    cell: Cell,
    state: Tensor,
    cfg: RolloutConfig,
    record: Sequence[str] = (),
) -> tuple[Tensor, ...]:
    """The halves of the loss, recon and kl [T, B], the final state, and records; all differentiable."""
    recon, kl = [], []
    rows: dict[str, list[Tensor]] = {name: [] for name in record}
    for t, step in enumerate(run(x, decoder, log_sigma, cell, state, cfg)):
        state = step.states[-1]
        divergence = cell.kl(state, step.states[0])
        recon.append(reconstruction_loss(step.errors[-1], log_sigma))
        kl.append(divergence.sum(-1))
        for name, row in rows.items():
            known = name == KL_PER_NEURON
            row.append(
                divergence if known else RECORDS[name](step, cell, x[t] if x.dim() == 3 else x, log_sigma)
            )
    return torch.stack(recon), torch.stack(kl), state, *map(torch.stack, rows.values())


def infer(
    inputs: Inputs, seed: Tensor, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
) -> list[Tensor]:
    """Inference with hard counts, without gradient.

    Args:
        inputs: the tensors.
        seed: int64, [].
        cfg: constants.
        record: names of :data:`RECORDS`.
        record_every: global step t is recorded where (t + 1) % record_every == 0.

    Returns:
        The final state, then the records in canonical order, each [R, ...].
    """
    cell, decoder = _cell(inputs, PhiloxNoise(seed), cfg), LinearDecoder(inputs.dictionary)
    return record_run(inputs.x, decoder, inputs.log_sigma, cell, inputs.log_rate, cfg, record, record_every)


def elbo(inputs: Inputs, seed: Tensor, cfg: RolloutConfig) -> Forward:
    """Both halves of the loss at every step, and what their gradient needs."""
    return elbo_with(PhiloxNoise(seed), inputs, cfg)


def elbo_with(noise: Noise, inputs: Inputs, cfg: RolloutConfig) -> Forward:
    """:func:`elbo` with the draws of any source."""
    x, log_sigma = inputs.x, inputs.log_sigma
    cell, decoder = _cell(inputs, noise, cfg), LinearDecoder(inputs.dictionary)
    recon, kl = x.new_empty((cfg.steps, x.shape[-2])), x.new_empty((cfg.steps, x.shape[-2]))
    kept = Trajectory.empty(inputs, cfg)
    kept.path[0] = inputs.log_rate
    for t, step in enumerate(run(x, decoder, log_sigma, cell, inputs.log_rate, cfg)):
        first = t * cfg.n_inner
        for j, draw in enumerate(step.draws):
            kept.counts[t, j], kept.slopes[t, j], kept.errors[t, j] = draw.code, draw.memo, step.errors[j]
        for j, drive in enumerate(step.drives):
            kept.path[first + j + 1], kept.drives[first + j] = step.states[j + 1], drive
        recon[t] = reconstruction_loss(step.errors[-1], log_sigma)
        kl[t] = cell.kl(step.states[-1], step.states[0]).sum(-1)
    return Forward(recon, kl, kept.path[-1].clone(), kept)


class Recorded(NamedTuple):
    """Gradients from above of parts of a :class:`Trajectory`, by its names; None where there is none."""

    path: Tensor | None = None
    counts: Tensor | None = None
    errors: Tensor | None = None


def elbo_backward(
    upstream: Upstream,
    inputs: Inputs,
    trajectory: Trajectory,
    cfg: RolloutConfig,
    recorded: Recorded | None = None,
) -> Inputs:
    """Gradients of :func:`elbo` through all steps, by hand; no random numbers are needed.

    Per draw one product with the dictionary and, per update, one with its transpose; the gradient of the
    dictionary is gathered over time into two large products at the end.

    Args:
        upstream: gradients from above.
        inputs: those of :func:`elbo`.
        trajectory: what it returned.
        cfg: constants.
        recorded: gradients from above of the trajectory itself.

    Returns:
        The gradient of each input.
    """
    n, of_path, of_counts, of_errors = cfg.n_inner, *(recorded or Recorded())
    no_seed = inputs.log_lr.new_zeros((), dtype=torch.int64)  # nothing is drawn
    cell, dictionary = _cell(inputs, PhiloxNoise(no_seed), cfg), inputs.dictionary
    precision = torch.exp(-2.0 * inputs.log_sigma)
    path, counts, slopes, errors, drives = trajectory
    grad_errors, grad_drives = torch.empty_like(errors), torch.empty_like(drives)
    grad_bias, grad_lr = torch.zeros_like(inputs.log_bias), torch.zeros_like(inputs.log_lr)
    grad = upstream.grad_log_rate
    if of_path is not None:
        grad = grad + of_path[-1]
    for t in reversed(range(cfg.steps)):
        first = t * n
        prior = path[first]
        # The loss: recon through the fresh draw, kl through posterior and prior.
        grad_errors[t, n] = upstream.grad_recon[t].unsqueeze(-1) * errors[t, n] * precision
        posterior = path[first + n]
        kl_posterior, kl_prior = cell.kl_backward(posterior, prior)
        of_kl = upstream.grad_kl[t].unsqueeze(-1)
        to_code = _to_code(grad_errors, of_errors, of_counts, dictionary, t, n)
        grad = (
            grad + of_kl * kl_posterior + cell.draw_backward(to_code, posterior, counts[t, n], slopes[t, n])
        )
        grad_prior = of_kl * kl_prior
        for j in reversed(range(n)):
            i = first + j
            drawn = (counts[t, j], slopes[t, j])
            grad, to_prior, grad_drives[i], to_bias, to_lr = cell.update_backward(
                grad, path[i], prior, drives[i], *drawn
            )
            grad_errors[t, j] = (grad_drives[i] @ dictionary.T) * precision
            to_code = _to_code(grad_errors, of_errors, of_counts, dictionary, t, j)
            grad = grad + cell.draw_backward(to_code, path[i], *drawn)
            if of_path is not None:
                grad = grad + of_path[i]
            grad_prior = grad_prior + to_prior
            grad_bias += to_bias
            grad_lr += to_lr
        grad = grad + grad_prior
    gathered = gather(upstream.grad_recon, inputs, trajectory, grad_errors, grad_drives, cfg, of_errors)
    return gathered._replace(log_bias=grad_bias, log_lr=grad_lr, log_rate=grad)


def _to_code(
    grad_errors: Tensor,
    of_errors: Tensor | None,
    of_counts: Tensor | None,
    dictionary: Tensor,
    t: int,
    j: int,
) -> Tensor:
    """The gradient of a draw's code, [B, K], through its residual and from above."""
    grad_error = grad_errors[t, j] if of_errors is None else grad_errors[t, j] + of_errors[t, j]
    to_code = -(grad_error @ dictionary)
    return to_code if of_counts is None else to_code + of_counts[t, j]


def gather(
    grad_recon: Tensor,
    inputs: Inputs,
    trajectory: Trajectory,
    grad_errors: Tensor,
    grad_drives: Tensor,
    cfg: RolloutConfig,
    of_errors: Tensor | None = None,
) -> Inputs:
    """Gradients of x, dictionary and log_sigma from those of all errors and drives, all steps at once.

    In their places among the inputs; those of the others are left to the caller. ``of_errors`` are gradients
    of the errors from above, which do not pass the variance.
    """
    n, errors, counts = cfg.n_inner, trajectory.errors, trajectory.counts
    weighted = (errors[:, :n] * torch.exp(-2.0 * inputs.log_sigma)).flatten(0, 2)
    # var enters the loss once and each drive once; both are linear in 1 / var = exp(-2 log_sigma).
    shares = (grad_errors * errors).sum(2)
    grad_sigma = grad_recon.sum() - shares[:, n].sum(0) - 2.0 * shares[:, :n].sum((0, 1))
    if of_errors is not None:
        grad_errors = grad_errors + of_errors
    grad_dictionary = weighted.T @ grad_drives.flatten(0, 1) - grad_errors.flatten(0, 2).T @ counts.flatten(
        0, 2
    )
    grad_x = grad_errors.sum(1)
    grad_x = grad_x if inputs.x.dim() == 3 else grad_x.sum(0)
    return inputs._replace(x=grad_x, dictionary=grad_dictionary, log_sigma=grad_sigma)


def _cell(inputs: Inputs, noise: Noise, cfg: RolloutConfig) -> Cell:
    return make_cell(inputs.log_bias, inputs.log_lr, noise, cfg)
