"""The pointwise half of a step in the compiled kernels, CPU and CUDA; as in ``eager.py``, float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._native import fill, launch, load, on_cuda

_GROUP = 64  # rows of a partial gradient: kUpdateGroup of csrc/cpu/kernels.h


def forward(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
) -> Tensor:
    """The new log rate, [N, K]."""
    module, inhibition = load(), torch.exp(log_bias)
    log_rate, log_rate_prior, drive = log_rate.contiguous(), log_rate_prior.contiguous(), drive.contiguous()
    out = torch.empty_like(log_rate)
    args = fill(_args(module, log_rate, log_rate_prior, drive, inhibition, leak, clamp_u, clamp_du), out=out)
    if on_cuda(log_rate):
        module.cuda_update(args, log_lr.data_ptr(), launch(log_rate))
    else:
        module.update(fill(args, learning_rate=float(torch.exp(log_lr))), torch.get_num_threads())
    return out


def backward(
    grad: Tensor,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to its five tensors."""
    module, inhibition = load(), torch.exp(log_bias)
    log_rate, log_rate_prior, drive = log_rate.contiguous(), log_rate_prior.contiguous(), drive.contiguous()
    grad = grad.contiguous()
    grads = torch.empty_like(log_rate), torch.empty_like(log_rate), torch.empty_like(log_rate)
    args = fill(
        module.UpdateGradArgs(),
        grad=grad,
        grad_log_rate=grads[0],
        grad_log_rate_prior=grads[1],
        grad_drive=grads[2],
    )
    forward_args = _args(module, log_rate, log_rate_prior, drive, inhibition, leak, clamp_u, clamp_du)
    if on_cuda(log_rate):
        return *grads, *_cuda_backward(module, args, forward_args, log_rate, log_lr)
    args.forward = fill(forward_args, learning_rate=float(torch.exp(log_lr)))
    grad_log_bias, grad_log_lr = torch.empty_like(inhibition), torch.empty_like(log_lr)
    module.update_grad(args, grad_log_bias.data_ptr(), grad_log_lr.data_ptr(), torch.get_num_threads())
    return (*grads, grad_log_bias, grad_log_lr)


def _cuda_backward(
    module: Any, args: Any, forward_args: Any, log_rate: Tensor, log_lr: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of log_bias and log_lr: the kernel sums groups of rows, and the groups are added up here."""
    args.forward = forward_args
    partial, neurons = log_rate.new_empty(module.cuda_update_grad_partials(forward_args)), log_rate.shape[1]
    module.cuda_update_grad(fill(args, partial=partial), log_lr.data_ptr(), launch(log_rate))
    groups = -(-log_rate.shape[0] // _GROUP)
    of_bias, of_lr = partial[: groups * neurons].view(groups, neurons), partial[groups * neurons :]
    return of_bias.sum(0), of_lr.sum().view(log_lr.shape)


def _args(
    module: Any,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    inhibition: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
) -> Any:
    return fill(
        module.UpdateArgs(),
        n_rows=log_rate.shape[0],
        n_latents=log_rate.shape[1],
        leak=leak,
        clamp_u=clamp_u,
        clamp_du=clamp_du,
        log_rate=log_rate,
        log_rate_prior=log_rate_prior,
        drive=drive,
        inhibition=inhibition,
    )
