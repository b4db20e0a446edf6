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
from .problem import PARAMETERS, Forward, Inputs, Trajectory, Upstream

TRAJECTORY_BYTES = 64 * 2**20
"""The trajectory kept at once, unless a single step is larger. T = 16 at B 200, K 512, M 256 keeps 46 MB and
runs nothing twice; T = 128 at B 100, K 512, M 784 needs 4 segments (docs/design/ops.md)."""


def steps_kept(cfg: RolloutConfig, inputs: Inputs) -> int:
    """Steps whose trajectory is kept at once, at least 1; of ``cfg``, ``n_inner`` and ``cell`` count."""
    batch, (pixels, neurons) = inputs.x.shape[-2], inputs.dictionary.shape
    draws, updates, states = cfg.n_inner + 1, cfg.n_inner, len(CELLS[cfg.cell].states)
    numbers = batch * (draws * (2 * neurons + pixels) + updates * (1 + states) * neurons)
    return max(1, TRAJECTORY_BYTES // max(1, numbers * inputs.x.element_size()))


def elbo(module: ModuleType, inputs: Inputs, seed: Tensor, cfg: RolloutConfig, steps: int) -> Forward:
    """``module.elbo`` by segments of ``steps``.

    With one segment it is ``module.elbo``, whole trajectory included; with more, ``path`` holds the state at
    the start of each, and the rest of the trajectory is empty.
    """
    if steps >= cfg.steps:
        whole: Forward = module.elbo(inputs, seed, cfg)
        return whole
    recon, kl, checkpoints, log_rate = [], [], [], inputs.log_rate
    for part, frames in parts(inputs.x, cfg, steps):
        checkpoints.append(log_rate)
        # Of each its trajectory is dropped before the next takes its own.
        of_part, kl_part, log_rate = module.elbo(inputs._replace(x=frames, log_rate=log_rate), seed, part)[:3]
        recon.append(of_part)
        kl.append(kl_part)
    kept = Trajectory.empty(inputs, cfg._replace(steps=0))._replace(path=torch.stack(checkpoints))
    return Forward(torch.cat(recon), torch.cat(kl), log_rate, kept)


def elbo_backward(
    module: ModuleType,
    upstream: Upstream,
    inputs: Inputs,
    trajectory: Trajectory,
    seed: Tensor,
    cfg: RolloutConfig,
    steps: int,
) -> Inputs:
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
        whole: Inputs = module.elbo_backward(upstream, inputs, trajectory, cfg)
        return whole
    x, grad = inputs.x, upstream.grad_log_rate
    frames_grads: list[Tensor] = []
    totals: Inputs | None = None
    for i, (part, frames) in reversed(list(enumerate(parts(x, cfg, steps)))):
        rows = slice(part.step - cfg.step, part.step - cfg.step + part.steps)
        segment = inputs._replace(x=frames, log_rate=trajectory.path[i])
        above = Upstream(upstream.grad_recon[rows], upstream.grad_kl[rows], grad)
        again = module.elbo(segment, seed, part).trajectory
        new = module.elbo_backward(above, segment, again, part)
        del again
        frames_grads.append(new.x)
        grad = new.log_rate
        if totals is None:
            totals = new
        else:
            sums = {name: getattr(totals, name) + getattr(new, name) for name in PARAMETERS}
            totals = totals._replace(**sums)
    assert totals is not None  # there is at least one segment
    grad_x = torch.cat(frames_grads[::-1]) if x.dim() == 3 else torch.stack(frames_grads).sum(0)
    return totals._replace(x=grad_x, log_rate=grad)


def parts(x: Tensor, cfg: RolloutConfig, steps: int) -> Iterator[tuple[RolloutConfig, Tensor]]:
    """The constants and the input of each segment."""
    for begin in range(0, cfg.steps, steps):
        end = min(begin + steps, cfg.steps)
        yield cfg._replace(steps=end - begin, step=cfg.step + begin), x[begin:end] if x.dim() == 3 else x
