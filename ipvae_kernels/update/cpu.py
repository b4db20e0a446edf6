"""The pointwise half of a step in the kernels for the CPU; as in ``eager.py``, float32, contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend.compiled import fill, load
from . import structs


def forward(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    decay: float,
    clamp_u: float,
    clamp_du: float,
) -> Tensor:
    """The new log rate, [N, K]."""
    module, inhibition, out = load(), torch.exp(log_bias), torch.empty_like(log_rate)
    args = structs.forward(
        module, log_rate, log_rate_prior, drive, inhibition, leak, decay, clamp_u, clamp_du
    )
    fill(args, out=out, learning_rate=float(torch.exp(log_lr)))
    module.update(args, torch.get_num_threads())
    return out


def backward(
    grad: Tensor,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    decay: float,
    clamp_u: float,
    clamp_du: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to its five tensors."""
    module, inhibition = load(), torch.exp(log_bias)
    grads = torch.empty_like(log_rate), torch.empty_like(log_rate), torch.empty_like(log_rate)
    grad_log_bias, grad_log_lr = torch.empty_like(inhibition), torch.empty_like(log_lr)
    of_forward = structs.forward(
        module, log_rate, log_rate_prior, drive, inhibition, leak, decay, clamp_u, clamp_du
    )
    fill(of_forward, learning_rate=float(torch.exp(log_lr)))
    args = structs.backward(module, of_forward, grad, grads)
    module.update_grad(args, grad_log_bias.data_ptr(), grad_log_lr.data_ptr(), torch.get_num_threads())
    return (*grads, grad_log_bias, grad_log_lr)
