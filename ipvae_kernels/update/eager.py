"""The pointwise half of a step in plain PyTorch; the equations are in ``update/op.py``."""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = -8.0  # of the update and of the log rate


def soft_clamp(value: Tensor, ceiling: float) -> Tensor:
    """The ceiling c as c - softplus(c - v), written so that no digits cancel for v far below c."""
    smaller = torch.minimum(value, value.new_full((), ceiling))
    return smaller - torch.log1p(torch.exp(-(value - ceiling).abs()))


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
    """The new log rate [N, K] from log_rate, log_rate_prior, drive [N, K], log_bias [K] and log_lr []."""
    pre = torch.exp(log_lr) * (
        drive - torch.exp(log_bias) - leak * (log_rate - log_rate_prior) - decay * log_rate
    )
    du = soft_clamp(pre.clamp(min=FLOOR), clamp_du)
    return soft_clamp((log_rate + du).clamp(min=FLOOR), clamp_u)


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
    """Gradients of :func:`forward` with respect to its five tensors, given that of its result, [N, K]."""
    lr, bias = torch.exp(log_lr), torch.exp(log_bias)
    pre = lr * (drive - bias - leak * (log_rate - log_rate_prior) - decay * log_rate)
    capped = pre.clamp(min=FLOOR)
    moved = log_rate + soft_clamp(capped, clamp_du)
    grad_moved = grad * torch.sigmoid(clamp_u - moved.clamp(min=FLOOR)) * (moved >= FLOOR)
    grad_pre = grad_moved * torch.sigmoid(clamp_du - capped) * (pre >= FLOOR)
    grad_drive = lr * grad_pre
    grad_prior = leak * grad_drive
    return (
        grad_moved - grad_prior - decay * grad_drive,
        grad_prior,
        grad_drive,
        -bias * grad_drive.sum(0),
        (grad_pre * pre).sum(),
    )
