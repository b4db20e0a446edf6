"""A whole rollout, or a whole backward, in one call of the compiled kernels for the CPU.

Signatures as in ``eager.py``; float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend.compiled import fill, load
from ..backend.cpu import unsigned_seed
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
    args, results = structs.infer(load(), x, dictionary, log_rate, cfg, record, record_every)
    _run(args, parameters, seed)
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
    args, trace = structs.elbo(load(), x, dictionary, log_rate, cfg)
    _run(args, parameters, seed)
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
    module, (x, *parameters) = load(), structs.contiguous(x, dictionary, log_sigma, log_bias, log_lr)
    grad_recon, grad_kl, grad_log_rate = structs.contiguous(grad_recon, grad_kl, grad_log_rate)
    grad_x, grad_initial = torch.empty_like(x), torch.empty_like(grad_log_rate)
    args = structs.backward(module, (grad_recon, grad_kl, grad_log_rate), grad_x, grad_initial)
    args.forward = structs.trajectory(
        structs.rollout(module, x, dictionary, path[0], cfg), path, counts, slopes, errors, drives
    )
    grads = [torch.empty_like(parameter) for parameter in parameters]
    outputs = fill(module.ParameterGrads(), **dict(zip(structs.PARAMETERS, grads, strict=True)))
    module.rollout_grad(args, structs.parameters(module, parameters), outputs, torch.get_num_threads())
    return (grad_x, *grads, grad_initial)  # type: ignore[return-value]


def _run(args: Any, parameters: Sequence[Tensor], seed: Tensor) -> None:
    module = load()
    fill(args, seed=unsigned_seed(seed))
    module.rollout(args, structs.parameters(module, parameters), torch.get_num_threads())
