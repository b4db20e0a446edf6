"""A whole rollout, or a whole backward, in one launch of the compiled kernels for CUDA.

Signatures as in ``eager.py``; tensors are contiguous and float32. Torch's allocator keeps the memory of
tensors made here for the stream that they were made on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend.compiled import fill
from ..backend.cuda import launch, module, plan
from . import structs
from .config import RolloutConfig
from .problem import Forward, Inputs, Trajectory, Upstream


def infer(
    inputs: Inputs, seed: Tensor, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
) -> list[Tensor]:
    """Inference with hard counts: the final log rate, then the records in canonical order."""
    args, results = structs.infer(module(), inputs, cfg, record, record_every)
    _run(args, inputs, seed)
    return results


def elbo(inputs: Inputs, seed: Tensor, cfg: RolloutConfig) -> Forward:
    """Both halves of the loss at every step, and what their gradient needs."""
    args, results = structs.elbo(module(), inputs, cfg)
    _run(args, inputs, seed)
    return results


def elbo_backward(upstream: Upstream, inputs: Inputs, trajectory: Trajectory, cfg: RolloutConfig) -> Inputs:
    """The gradient of each input.

    The kernel writes those of x and of the first state. Of errors and drives it leaves the gradients, from
    which that of the dictionary is formed by two large products in torch; of the other parameters it leaves
    sums over each tile, which are added up here: both in a fixed order.
    """
    kernels, log_lr = module(), inputs.log_lr
    pixels, neurons = inputs.dictionary.shape
    written = inputs._replace(x=torch.empty_like(inputs.x), log_rate=torch.empty_like(inputs.log_rate))
    args = structs.backward(kernels, upstream, inputs, trajectory, written, cfg)
    layout, workspace = _layout(args.forward, True, inputs.x)
    grad_errors, grad_drives = torch.empty_like(trajectory.errors), torch.empty_like(trajectory.drives)
    sizes = [pixels, neurons, log_lr.numel() * layout.team]
    partial = inputs.x.new_empty((layout.tiles, sum(sizes)))
    fill(args, grad_errors=grad_errors, grad_drives=grad_drives, partial=partial)
    of_parameters = structs.parameters(kernels, inputs)
    kernels.cuda_rollout_grad(args, of_parameters, layout, workspace.data_ptr(), launch(inputs.x))
    of_sigma, of_bias, of_lr = (part.sum(0) for part in torch.split(partial, sizes, 1))
    precision = torch.exp(-2.0 * inputs.log_sigma)
    weighted = (trajectory.errors[:, : cfg.n_inner] * precision).flatten(0, 2)
    of_dictionary = weighted.T @ grad_drives.flatten(0, 1)
    of_dictionary -= grad_errors.flatten(0, 2).T @ trajectory.counts.flatten(0, 2)
    return written._replace(
        dictionary=of_dictionary,
        log_sigma=of_sigma,
        log_bias=of_bias,
        log_lr=of_lr.view(-1, layout.team).sum(1).view(log_lr.shape),
    )


def _run(args: Any, inputs: Inputs, seed: Tensor) -> None:
    kernels, (layout, workspace) = module(), _layout(args, False, inputs.x)
    of_parameters = structs.parameters(kernels, inputs)
    kernels.cuda_rollout(args, of_parameters, seed.data_ptr(), layout, workspace.data_ptr(), launch(inputs.x))


def _layout(args: Any, backward: bool, like: Tensor) -> tuple[Any, Tensor]:
    """The plan of a rollout, and the workspace it needs."""
    layout = plan(args, backward, like.device)
    return layout, like.new_empty(layout.workspace_bytes, dtype=torch.uint8)
