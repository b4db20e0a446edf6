"""A whole rollout, or a whole backward, in one launch of the compiled kernels for CUDA.

Signatures as in ``eager.py``; float32. Torch's allocator keeps the memory of tensors made here for the stream
that they were made on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend.compiled import fill
from ..backend.cuda import launch, module, plan
from . import structs
from .config import RolloutConfig
from .eager import Trace


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
    """Inference with hard counts: the final log rate, then the records in canonical order."""
    x, log_rate, *parameters = structs.contiguous(x, log_rate, dictionary, log_sigma, log_bias, log_lr)
    args, results = structs.infer(module(), x, dictionary, log_rate, cfg, record, record_every)
    _run(args, parameters, seed, x)
    return results


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
    """Both halves of the loss at every step, and what their gradient needs."""
    x, log_rate, *parameters = structs.contiguous(x, log_rate, dictionary, log_sigma, log_bias, log_lr)
    args, trace = structs.elbo(module(), x, dictionary, log_rate, cfg)
    _run(args, parameters, seed, x)
    return trace


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
    """Gradients of x, dictionary, log_sigma, log_bias, log_lr and of the initial log rate."""
    kernels, (x, *parameters) = module(), structs.contiguous(x, dictionary, log_sigma, log_bias, log_lr)
    grad_recon, grad_kl, grad_log_rate = structs.contiguous(grad_recon, grad_kl, grad_log_rate)
    grad_x, grad_initial = torch.empty_like(x), torch.empty_like(grad_log_rate)
    args = structs.backward(kernels, (grad_recon, grad_kl, grad_log_rate), grad_x, grad_initial)
    args.forward = structs.trajectory(
        structs.rollout(kernels, x, dictionary, path[0], cfg), path, counts, slopes, errors, drives
    )
    grads = _parameter_gradients(args, parameters, counts, errors, drives, cfg)
    return (grad_x, *grads, grad_initial)  # type: ignore[return-value]


def _run(args: Any, parameters: Sequence[Tensor], seed: Tensor, x: Tensor) -> None:
    kernels, (layout, workspace) = module(), _layout(args, False, x)
    of_parameters = structs.parameters(kernels, parameters)
    kernels.cuda_rollout(args, of_parameters, seed.data_ptr(), layout, workspace.data_ptr(), launch(x))


def _layout(args: Any, backward: bool, like: Tensor) -> tuple[Any, Tensor]:
    """The plan of a rollout, and the workspace it needs."""
    layout = plan(args, backward, like.device)
    return layout, like.new_empty(layout.workspace_bytes, dtype=torch.uint8)


def _parameter_gradients(
    args: Any,
    parameters: Sequence[Tensor],
    counts: Tensor,
    errors: Tensor,
    drives: Tensor,
    cfg: RolloutConfig,
) -> list[Tensor]:
    """Gradients of dictionary, log_sigma, log_bias and log_lr; the others are written by the kernel.

    The kernel leaves the gradients of errors and drives, from which that of the dictionary is formed by two
    large products in torch, and sums over each tile, which are added up here: both in a fixed order.
    """
    kernels, (dictionary, log_sigma, _, log_lr) = module(), parameters
    pixels, neurons = dictionary.shape
    layout, workspace = _layout(args.forward, True, errors)
    grad_errors, grad_drives = torch.empty_like(errors), torch.empty_like(drives)
    sizes = [pixels, neurons, log_lr.numel() * layout.team]
    partial = errors.new_empty((layout.tiles, sum(sizes)))
    fill(args, grad_errors=grad_errors, grad_drives=grad_drives, partial=partial)
    of_parameters = structs.parameters(kernels, parameters)
    kernels.cuda_rollout_grad(args, of_parameters, layout, workspace.data_ptr(), launch(errors))
    of_sigma, of_bias, of_lr = (part.sum(0) for part in torch.split(partial, sizes, 1))
    weighted = (errors[:, : cfg.n_inner] * torch.exp(-2.0 * log_sigma)).flatten(0, 2)
    of_dictionary = weighted.T @ grad_drives.flatten(0, 1)
    of_dictionary -= grad_errors.flatten(0, 2).T @ counts.flatten(0, 2)
    return [of_dictionary, of_sigma, of_bias, of_lr.view(-1, layout.team).sum(1).view(log_lr.shape)]
