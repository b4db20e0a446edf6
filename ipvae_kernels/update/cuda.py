"""The pointwise half of a step in the kernels for CUDA; as in ``eager.py``, float32, contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend.compiled import fill
from ..backend.cuda import launch, module
from . import structs

_GROUP = 64  # rows of a partial gradient: kUpdateGroup of csrc/common/args.h


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
    kernels, inhibition, out = module(), torch.exp(log_bias), torch.empty_like(log_rate)
    args = structs.forward(
        kernels, log_rate, log_rate_prior, drive, inhibition, leak, decay, clamp_u, clamp_du
    )
    kernels.cuda_update(fill(args, out=out), log_lr.data_ptr(), launch(log_rate))
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
    """Gradients of :func:`forward` with respect to its five tensors.

    For log_bias and log_lr the kernel sums groups of rows, and the groups are added up here.
    """
    kernels, inhibition, (rows, neurons) = module(), torch.exp(log_bias), log_rate.shape
    grads = torch.empty_like(log_rate), torch.empty_like(log_rate), torch.empty_like(log_rate)
    of_forward = structs.forward(
        kernels, log_rate, log_rate_prior, drive, inhibition, leak, decay, clamp_u, clamp_du
    )
    partial = log_rate.new_empty(kernels.cuda_update_grad_partials(of_forward))
    args = fill(structs.backward(kernels, of_forward, grad, grads), partial=partial)
    kernels.cuda_update_grad(args, log_lr.data_ptr(), launch(log_rate))
    groups = -(-rows // _GROUP)
    of_bias, of_lr = partial[: groups * neurons].view(groups, neurons), partial[groups * neurons :]
    return (*grads, of_bias.sum(0), of_lr.sum().view(log_lr.shape))
