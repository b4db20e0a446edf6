"""The pointwise half of a step through the compiled CPU kernels; signatures as in ``eager.py``, float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._native import fill, load


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
    args = _args(module, log_rate, log_rate_prior, drive, inhibition, log_lr, leak, clamp_u, clamp_du)
    module.update(fill(args, out=out), torch.get_num_threads())
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
    grad_log_bias, grad_log_lr = torch.empty_like(inhibition), torch.empty_like(log_lr)
    args = fill(
        module.UpdateGradArgs(),
        grad=grad,
        grad_log_rate=grads[0],
        grad_log_rate_prior=grads[1],
        grad_drive=grads[2],
    )
    args.forward = _args(module, log_rate, log_rate_prior, drive, inhibition, log_lr, leak, clamp_u, clamp_du)
    module.update_grad(args, grad_log_bias.data_ptr(), grad_log_lr.data_ptr(), torch.get_num_threads())
    return (*grads, grad_log_bias, grad_log_lr)


def _args(
    module: Any,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    inhibition: Tensor,
    log_lr: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
) -> Any:
    return fill(
        module.UpdateArgs(),
        n_rows=log_rate.shape[0],
        n_latents=log_rate.shape[1],
        learning_rate=float(torch.exp(log_lr)),
        leak=leak,
        clamp_u=clamp_u,
        clamp_du=clamp_du,
        log_rate=log_rate,
        log_rate_prior=log_rate_prior,
        drive=drive,
        inhibition=inhibition,
    )
