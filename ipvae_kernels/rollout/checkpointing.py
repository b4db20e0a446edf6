"""Long unrolls in bounded memory: the trajectory of a few steps at a time, from checkpoints of the state.

Noise is a pure function of its indices, so steps that are run again draw the same counts, bit for bit. A
forward keeps the state at the start of each segment; the backward takes the segments from last to first, runs
each once more and differentiates it.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from ..cells import CELLS
from .config import RolloutConfig
from .eager import Trace

TRAJECTORY_BYTES = 64 * 2**20
"""The trajectory kept at once, unless a single step is larger. T = 16 at B 200, K 512, M 256 keeps 46 MB and
runs nothing twice; T = 128 at B 100, K 512, M 784 needs 4 segments (docs/design/ops.md)."""


def steps_kept(cfg: RolloutConfig, x: Tensor, dictionary: Tensor) -> int:
    """Steps whose trajectory is kept at once, at least 1; of ``cfg``, ``n_inner`` and ``cell`` count."""
    batch, (pixels, neurons) = x.shape[-2], dictionary.shape
    draws, updates, states = cfg.n_inner + 1, cfg.n_inner, len(CELLS[cfg.cell].states)
    numbers = batch * (draws * (2 * neurons + pixels) + updates * (1 + states) * neurons)
    return max(1, TRAJECTORY_BYTES // max(1, numbers * x.element_size()))


def elbo(
    module: ModuleType,
    x: Tensor,
    parameters: list[Tensor],
    log_rate: Tensor,
    seed: Tensor,
    cfg: RolloutConfig,
    steps: int,
) -> Trace:
    """``module.elbo`` by segments of ``steps``.

    With one segment it is ``module.elbo``, whole trajectory included; with more, ``path`` holds the state at
    the start of each, and the rest of the trajectory is empty.
    """
    if steps >= cfg.steps:
        whole: Trace = module.elbo(x, *parameters, log_rate, seed, cfg)
        return whole
    recon, kl, checkpoints = [], [], []
    for part, frames in parts(x, cfg, steps):
        checkpoints.append(log_rate)
        part_recon, part_kl, log_rate, *rest = module.elbo(frames, *parameters, log_rate, seed, part)
        recon.append(part_recon)
        kl.append(part_kl)
        empty = [tensor.new_empty((0, *tensor.shape[1:])) for tensor in rest[1:]]
        del rest  # before the next segment takes its own
    return torch.cat(recon), torch.cat(kl), log_rate, torch.stack(checkpoints), *empty


def elbo_backward(
    module: ModuleType,
    grads: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    parameters: list[Tensor],
    seed: Tensor,
    trajectory: list[Tensor],
    cfg: RolloutConfig,
    steps: int,
) -> tuple[Tensor, ...]:
    """Gradients as of ``module.elbo_backward``, from what :func:`elbo` returned.

    Args:
        module: of the backend that serves.
        grads: upstream gradients of recon and kl, [T, B], and of the final state.
        x: [B, M] or [T, B, M].
        parameters: dictionary, log_sigma, log_bias, log_lr.
        seed: int64, [].
        trajectory: path, counts, slopes, errors, drives.
        cfg: constants.
        steps: of a segment.
    """
    if steps >= cfg.steps:
        whole: tuple[Tensor, ...] = module.elbo_backward(*grads, x, *parameters, *trajectory, cfg)
        return whole
    grad_recon, grad_kl, grad = grads
    checkpoints = trajectory[0]
    grad_frames: list[Tensor] = []
    totals: list[Tensor] = []
    for i, (part, frames) in reversed(list(enumerate(parts(x, cfg, steps)))):
        rows = slice(part.step - cfg.step, part.step - cfg.step + part.steps)
        _, _, _, *again = module.elbo(frames, *parameters, checkpoints[i], seed, part)
        grad_x, *of_parameters, grad = module.elbo_backward(
            grad_recon[rows], grad_kl[rows], grad, frames, *parameters, *again, part
        )
        del again
        grad_frames.append(grad_x)
        totals = [a + b for a, b in zip(totals, of_parameters, strict=True)] if totals else of_parameters
    grad_x = torch.cat(grad_frames[::-1]) if x.dim() == 3 else torch.stack(grad_frames).sum(0)
    return grad_x, *totals, grad


def parts(x: Tensor, cfg: RolloutConfig, steps: int) -> Iterator[tuple[RolloutConfig, Tensor]]:
    """The constants and the input of each segment."""
    for begin in range(0, cfg.steps, steps):
        end = min(begin + steps, cfg.steps)
        yield cfg._replace(steps=end - begin, step=cfg.step + begin), x[begin:end] if x.dim() == 3 else x
