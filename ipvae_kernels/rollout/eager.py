"""T steps in plain PyTorch: one driver over a cell and a decoder, and a backward by hand for a linear one.

Symbols and equations: "Brain-like variational inference" (arXiv 2410.19315), and ``rollout/op.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..poisson.eager import Noise, PhiloxNoise
from . import schedule
from .cells import Cell, Draw, make_cell
from .config import RolloutConfig
from .decoders import Decoded, Decoder, LinearDecoder


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
    x: Tensor, decoder: Decoder, log_sigma: Tensor, cell: Cell, state: Tensor, cfg: RolloutConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """The halves of the loss, recon and kl [T, B], and the final state, differentiable by autograd."""
    recon, kl = [], []
    for step in run(x, decoder, log_sigma, cell, state, cfg):
        state = step.states[-1]
        recon.append(reconstruction_loss(step.errors[-1], log_sigma))
        kl.append(cell.kl(state, step.states[0]).sum(-1))
    return torch.stack(recon), torch.stack(kl), state


def infer(
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    log_rate: Tensor,
    seed: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    record_every: int,
) -> list[Tensor]:
    """Inference with hard counts, without gradient.

    Args:
        x: [B, M] or [T, B, M].
        dictionary: [M, K].
        log_sigma: [M].
        log_bias: [K].
        log_lr: []; Gaussian cells [2].
        log_rate: state before the first step, [B, K]; Gaussian cells [2, B, K].
        seed: int64, [].
        cfg: constants.
        record: names of :data:`RECORDS`.
        record_every: global step t is recorded where (t + 1) % record_every == 0.

    Returns:
        The final state, then the records in canonical order, each [R, ...].
    """
    cell = make_cell(log_bias, log_lr, PhiloxNoise(seed), cfg)
    return record_run(x, LinearDecoder(dictionary), log_sigma, cell, log_rate, cfg, record, record_every)


Trace = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""What :func:`elbo` returns: recon [T, B], kl [T, B], log_rate [B, K], and for the backward
path [T n_inner + 1, B, K], counts and slopes [T, n_inner + 1, B, K], errors [T, n_inner + 1, B, M] and
drives [T n_inner, B, K]. Gaussian cells: log_rate and path hold states [2, B, K], counts the activated
latents, slopes the standard normals."""


def elbo(
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    log_rate: Tensor,
    seed: Tensor,
    cfg: RolloutConfig,
) -> Trace:
    """Both halves of the loss at every step, and what their gradient needs. Shapes as in :func:`infer`."""
    return elbo_with(PhiloxNoise(seed), x, dictionary, log_sigma, log_bias, log_lr, log_rate, cfg)


def elbo_with(
    noise: Noise,
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    log_rate: Tensor,
    cfg: RolloutConfig,
) -> Trace:
    """:func:`elbo` with the draws of any source."""
    cell = make_cell(log_bias, log_lr, noise, cfg)
    batch, (pixels, neurons) = x.shape[-2], dictionary.shape
    updates, draws = cfg.steps * cfg.n_inner, (cfg.steps, cfg.n_inner + 1, batch)
    recon, kl = x.new_empty((cfg.steps, batch)), x.new_empty((cfg.steps, batch))
    path, drives = x.new_empty((updates + 1, *log_rate.shape)), x.new_empty((updates, batch, neurons))
    counts, slopes = x.new_empty((*draws, neurons)), x.new_empty((*draws, neurons))
    errors = x.new_empty((*draws, pixels))
    path[0] = log_rate
    for t, step in enumerate(run(x, LinearDecoder(dictionary), log_sigma, cell, log_rate, cfg)):
        first = t * cfg.n_inner
        for j, draw in enumerate(step.draws):
            counts[t, j], slopes[t, j], errors[t, j] = draw.code, draw.memo, step.errors[j]
        for j, drive in enumerate(step.drives):
            path[first + j + 1], drives[first + j] = step.states[j + 1], drive
        recon[t] = reconstruction_loss(step.errors[-1], log_sigma)
        kl[t] = cell.kl(step.states[-1], step.states[0]).sum(-1)
    return recon, kl, path[-1].clone(), path, counts, slopes, errors, drives


def elbo_backward(
    grad_recon: Tensor,
    grad_kl: Tensor,
    grad_log_rate: Tensor,
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    path: Tensor,
    counts: Tensor,
    slopes: Tensor,
    errors: Tensor,
    drives: Tensor,
    cfg: RolloutConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`elbo` through all steps, by hand; no random numbers are needed.

    Per draw one product with the dictionary and, per update, one with its transpose; the gradient of the
    dictionary is gathered over time into two large products at the end.

    Upstream gradients ``grad_recon`` and ``grad_kl`` are [T, B], ``grad_log_rate`` is like a state; the
    inputs are those of :func:`elbo`, and path, counts, slopes, errors and drives what it returned
    (:data:`Trace`).

    Returns:
        Gradients of x, dictionary, log_sigma, log_bias, log_lr and of the initial log rate.
    """
    n = cfg.n_inner
    no_seed = log_lr.new_zeros((), dtype=torch.int64)  # nothing is drawn
    cell = make_cell(log_bias, log_lr, PhiloxNoise(no_seed), cfg)
    precision = torch.exp(-2.0 * log_sigma)
    grad_errors, grad_drives = torch.empty_like(errors), torch.empty_like(drives)
    grad_bias, grad_lr = torch.zeros_like(log_bias), torch.zeros_like(log_lr)
    grad = grad_log_rate
    for t in reversed(range(cfg.steps)):
        first = t * n
        prior = path[first]
        # The loss: recon through the fresh draw, kl through posterior and prior.
        grad_errors[t, n] = grad_recon[t].unsqueeze(-1) * errors[t, n] * precision
        posterior = path[first + n]
        kl_posterior, kl_prior = cell.kl_backward(posterior, prior)
        upstream = grad_kl[t].unsqueeze(-1)
        to_code = -(grad_errors[t, n] @ dictionary)
        grad = (
            grad
            + upstream * kl_posterior
            + cell.draw_backward(to_code, posterior, counts[t, n], slopes[t, n])
        )
        grad_prior = upstream * kl_prior
        for j in reversed(range(n)):
            i = first + j
            drawn = (counts[t, j], slopes[t, j])
            grad, to_prior, grad_drives[i], to_bias, to_lr = cell.update_backward(
                grad, path[i], prior, drives[i], *drawn
            )
            grad_errors[t, j] = (grad_drives[i] @ dictionary.T) * precision
            grad = grad + cell.draw_backward(-(grad_errors[t, j] @ dictionary), path[i], *drawn)
            grad_prior = grad_prior + to_prior
            grad_bias += to_bias
            grad_lr += to_lr
        grad = grad + grad_prior
    gathered = gather(grad_recon, x, precision, counts, errors, grad_errors, grad_drives, cfg)
    return (*gathered, grad_bias, grad_lr, grad)


def gather(
    grad_recon: Tensor,
    x: Tensor,
    precision: Tensor,
    counts: Tensor,
    errors: Tensor,
    grad_errors: Tensor,
    grad_drives: Tensor,
    cfg: RolloutConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, dictionary and log_sigma from those of all errors and drives, all steps at once."""
    n = cfg.n_inner
    weighted = (errors[:, :n] * precision).flatten(0, 2)
    grad_dictionary = weighted.T @ grad_drives.flatten(0, 1) - grad_errors.flatten(0, 2).T @ counts.flatten(
        0, 2
    )
    # var enters the loss once and each drive once; both are linear in 1 / var = exp(-2 log_sigma).
    shares = (grad_errors * errors).sum(2)
    grad_sigma = grad_recon.sum() - shares[:, n].sum(0) - 2.0 * shares[:, :n].sum((0, 1))
    grad_x = grad_errors.sum(1)
    return grad_x if x.dim() == 3 else grad_x.sum(0), grad_dictionary, grad_sigma
