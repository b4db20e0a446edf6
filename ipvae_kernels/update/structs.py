"""What the compiled kernels take of the pointwise half of a step; tensors are contiguous."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backend.compiled import fill


def forward(
    module: Any,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    inhibition: Tensor,
    leak: float,
    decay: float,
    clamp_u: float,
    clamp_du: float,
) -> Any:
    """Arguments of a step from log rates [N, K] and inhibition = exp(log_bias), [K]."""
    return fill(
        module.UpdateArgs(),
        n_rows=log_rate.shape[0],
        n_latents=log_rate.shape[1],
        leak=leak,
        decay=decay,
        clamp_u=clamp_u,
        clamp_du=clamp_du,
        log_rate=log_rate,
        log_rate_prior=log_rate_prior,
        drive=drive,
        inhibition=inhibition,
    )


def backward(module: Any, of_forward: Any, grad: Tensor, grads: tuple[Tensor, Tensor, Tensor]) -> Any:
    """Arguments of the gradient, to be written to ``grads``: log_rate's, log_rate_prior's and drive's."""
    args = fill(
        module.UpdateGradArgs(),
        grad=grad,
        grad_log_rate=grads[0],
        grad_log_rate_prior=grads[1],
        grad_drive=grads[2],
    )
    args.forward = of_forward
    return args
