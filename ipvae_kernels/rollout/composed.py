"""T steps with any decoder: the sampling and update ops of a backend, and the decoder's own code between.

The driver is that of ``eager.py``, and autograd differentiates it. Records, streams and state are those of
the fused rollouts, so a linear module gives what they give, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import _transforms
from ..backend import choice
from ..cells import CELLS, Cell, Draw, PoissonCell, make_cell
from ..philox import Stream
from ..poisson import registered as poisson
from ..poisson.noise import PhiloxNoise
from ..update.op import log_rate_update
from . import checkpointing, eager
from .config import RolloutConfig
from .decoders import Decoder, LinearDecoder
from .task import Task


class OpsCell(PoissonCell):
    """The iterative Poisson VAE by the ops of a backend; states are log rates [B, K].

    Args:
        log_bias: [K].
        log_lr: [].
        seed: int64, [].
        cfg: constants.
        backend: of the ops.
    """

    def __init__(
        self, log_bias: Tensor, log_lr: Tensor, seed: Tensor, cfg: RolloutConfig, backend: str
    ) -> None:
        super().__init__(log_bias, log_lr, PhiloxNoise(seed), cfg, differentiable=True)
        self.seed, self.backend = seed, backend

    def counts(self, state: Tensor, stream: Stream) -> Draw:
        """Counts of the log rates."""
        cfg = self.cfg
        if not torch.is_grad_enabled() and cfg.estimator == "hard":
            counts = poisson.sample(state, self.seed, *stream, self.backend, False)
        else:
            tau = _transforms.packed(cfg.temperature)
            how = (cfg.estimator, cfg.n_arrivals, self.backend, False)
            counts = poisson.rsample(state, self.seed, tau, *stream, *how)
        return Draw(counts, counts, counts)

    def update(self, state: Tensor, prior: Tensor, drive: Tensor, draw: Draw) -> Tensor:
        """The pointwise step of ``log_rate_update``."""
        cfg = self.cfg
        return log_rate_update(
            state, prior, drive, self, leak=cfg.leak, decay=cfg.decay, clamp_u=cfg.clamp_u,
            clamp_du=cfg.clamp_du, backend=self.backend, check=False,
        )  # fmt: skip


def cell_of(log_bias: Tensor, log_lr: Tensor, seed: Tensor, cfg: RolloutConfig, backend: str) -> Cell:
    """The cell that ``cfg`` names, by the ops of a backend where there are any for it."""
    if CELLS[cfg.cell].counts:
        return OpsCell(log_bias, log_lr, seed, cfg, backend)
    choice.refuse_compiled(backend, "with a decoder of your own, Gaussian models run in plain PyTorch")
    return make_cell(log_bias, log_lr, PhiloxNoise(seed), cfg, differentiable=True)


def by_autograd(backend: str, cfg: RolloutConfig) -> bool:
    """Whether plain differentiable PyTorch serves the call; refuses a compiled backend named for it."""
    if cfg.estimator == "gumbel":
        choice.refuse_compiled(backend, "the gumbel estimator is served by autograd alone")
        return True
    return backend == "autograd"


def parts(task: Task) -> tuple[Tensor, Decoder, Tensor]:
    """Input, decoder and log_sigma for a driver in Python."""
    x, dictionary, log_sigma, *_ = task.tensors
    return x, task.decoder or LinearDecoder(dictionary), log_sigma


def cell_for(op: str, task: Task, backend: str) -> Cell:
    """The cell of a task for a driver in Python; ``op`` is who asks, for messages."""
    if not by_autograd(backend, task.cfg):
        return cell_of(task.tensors.log_bias, task.tensors.log_lr, task.seed, task.cfg, backend)
    seed = _transforms.one_draw(op, not CELLS[task.cfg.cell].counts, task.seed, *task.tensors)
    return make_cell(
        task.tensors.log_bias, task.tensors.log_lr, PhiloxNoise(seed), task.cfg, differentiable=True
    )


def plain_cell(task: Task) -> Cell:
    """The cell of a task for its equations alone: it draws nothing that counts."""
    return make_cell(task.tensors.log_bias, task.tensors.log_lr, PhiloxNoise(task.seed), task.cfg)


def elbo(
    x: Tensor,
    decoder: Decoder,
    log_sigma: Tensor,
    cell: Cell,
    state: Tensor,
    cfg: RolloutConfig,
    kept: int | None,
    record: Sequence[str] = (),
) -> tuple[Tensor, ...]:
    """The halves of the loss, recon and kl [T, B], the final state, and records; differentiable by autograd.

    Args:
        x: [B, M] or [T, B, M].
        decoder: of codes [B, K].
        log_sigma: [M].
        cell: the model.
        state: its state before the first step.
        cfg: constants.
        kept: keep the graph of so many steps at a time, and run them once more in the backward; None: of all.
        record: names of ``eager.LOSS_RECORDS``; with any, all is kept.
    """
    if kept is None or kept >= cfg.steps or record:
        return eager.elbo_autograd(x, decoder, log_sigma, cell, state, cfg, record)
    recon, kl = [], []
    for part, frames in checkpointing.parts(x, cfg, kept):
        arguments = (frames, decoder, log_sigma, cell, state, part)
        of_part, kl_part, state = checkpoint(eager.elbo_autograd, *arguments, use_reentrant=False)
        recon.append(of_part)
        kl.append(kl_part)
    return torch.cat(recon), torch.cat(kl), state
