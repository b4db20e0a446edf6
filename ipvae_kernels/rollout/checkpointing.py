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
from .problem import Inputs, Trajectory, Upstream

TRAJECTORY_BYTES = 64 * 2**20
"""The trajectory kept at once, unless a single step is larger. T = 16 at B 200, K 512, M 256 keeps 46 MB and
runs nothing twice; T = 128 at B 100, K 512, M 784 needs 4 segments (docs/design/ops.md)."""


def steps_kept(cfg: RolloutConfig, x: Tensor, dictionary: Tensor) -> int:
    """Steps whose trajectory is kept at once, at least 1; of ``cfg``, ``n_inner`` and ``cell`` count."""
    batch, (pixels, neurons) = x.shape[-2], dictionary.shape
    draws, updates, states = cfg.n_inner + 1, cfg.n_inner, len(CELLS[cfg.cell].states)
    numbers = batch * (draws * (2 * neurons + pixels) + updates * (1 + states) * neurons)
    return max(1, TRAJECTORY_BYTES // max(1, numbers * x.element_size()))


def elbo(module: ModuleType, inputs: Inputs, seed: Tensor, cfg: RolloutConfig, steps: int) -> Trace:
    """``module.elbo`` by segments of ``steps``.

    With one segment it is ``module.elbo``, whole trajectory included; with more, ``path`` holds the state at
    the start of each, and the rest of the trajectory is empty.
    """
    if steps >= cfg.steps:
        whole: Trace = module.elbo(*inputs, seed, cfg)
        return whole
    recon, kl, checkpoints, log_rate = [], [], [], inputs.log_rate
    for part, frames in parts(inputs.x, cfg, steps):
        checkpoints.append(log_rate)
        segment = inputs._replace(x=frames, log_rate=log_rate)
        part_recon, part_kl, log_rate, *rest = module.elbo(*segment, seed, part)
        recon.append(part_recon)
        kl.append(part_kl)
        empty = [tensor.new_empty((0, *tensor.shape[1:])) for tensor in rest[1:]]
        del rest  # before the next segment takes its own
    return torch.cat(recon), torch.cat(kl), log_rate, torch.stack(checkpoints), *empty


def elbo_backward(
    module: ModuleType,
    upstream: Upstream,
    inputs: Inputs,
    trajectory: Trajectory,
    seed: Tensor,
    cfg: RolloutConfig,
    steps: int,
) -> tuple[Tensor, ...]:
    """Gradients as of ``module.elbo_backward``, from what :func:`elbo` returned.

    Args:
        module: of the backend that serves.
        upstream: gradients from above.
        inputs: of the forward.
        trajectory: of the forward.
        seed: int64, [].
        cfg: constants.
        steps: of a segment.
    """
    if steps >= cfg.steps:
        whole: tuple[Tensor, ...] = module.elbo_backward(*upstream, *inputs[:-1], *trajectory, cfg)
        return whole
    x, grad = inputs.x, upstream.grad_log_rate
    grad_frames: list[Tensor] = []
    totals: list[Tensor] = []
    for i, (part, frames) in reversed(list(enumerate(parts(x, cfg, steps)))):
        rows = slice(part.step - cfg.step, part.step - cfg.step + part.steps)
        segment = inputs._replace(x=frames, log_rate=trajectory.path[i])
        _, _, _, *again = module.elbo(*segment, seed, part)
        above = Upstream(upstream.grad_recon[rows], upstream.grad_kl[rows], grad)
        grad_x, *of_parameters, grad = module.elbo_backward(*above, *segment[:-1], *again, part)
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
