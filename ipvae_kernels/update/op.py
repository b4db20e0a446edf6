"""The pointwise half of a step, for any decoder whose drive the caller computes.

With softclamp(v, c) = c - softplus(c - v):

    pre = exp(log_lr) (drive - exp(log_bias) - leak (log_rate - log_rate_prior))
    du  = softclamp(max(pre, -8), clamp_du)
    new = softclamp(max(log_rate + du, -8), clamp_u)
"""

import torch
from torch import Tensor

from .. import _backends, _checks
from ..params import StepParams
from . import eager

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def log_rate_update(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    params: StepParams,
    *,
    leak: float = 0.0,
    clamp_u: float = 10.0,
    clamp_du: float = 10.0,
    backend: str = "auto",
    check: bool = True,
) -> Tensor:
    """One natural-gradient step of the log rates; the equations are in this module's docstring.

    Source: "Brain-like variational inference" (arXiv 2410.19315) and its released code.

    Args:
        log_rate: u, [..., K], float32 or float64.
        log_rate_prior: u at the start of the time step, [..., K].
        drive: minus the gradient of the reconstruction term; for a linear decoder
            Phi^T ((x - Phi z) / var), [..., K].
        params: anything with ``log_bias`` [K] and ``log_lr`` [].
        leak: weight of the pull towards the prior, >= 0 (beta_inner with several inner iterations).
        clamp_u: ceiling of the log rate, above -8.
        clamp_du: ceiling of its update, above -8.
        backend: "auto", "native", "triton", "eager" or "autograd".
        check: raise where a tensor is not finite; costs a pass over each.

    Returns:
        The new log rate, [..., K]; differentiable in all five tensors.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendError: a backend named cannot serve.
    """
    tensors = _checks.full_precision(
        log_rate=log_rate,
        log_rate_prior=log_rate_prior,
        drive=drive,
        log_bias=params.log_bias,
        log_lr=params.log_lr,
    )
    log_rate, log_rate_prior, drive, log_bias, log_lr = tensors
    if log_rate.dim() == 0:
        raise ValueError("log_rate: expected shape [..., K], found []")
    _checks.shape("log_rate_prior", log_rate_prior, log_rate.shape, "that of log_rate")
    _checks.shape("drive", drive, log_rate.shape, "that of log_rate")
    _checks.shape("log_bias", log_bias, log_rate.shape[-1:], "[K]")
    _checks.shape("log_lr", log_lr, (), "[]")
    constants = (
        _checks.number("leak", leak, 0.0),
        check_clamp("clamp_u", clamp_u),
        check_clamp("clamp_du", clamp_du),
    )
    check = _checks.flag("check", check)
    backend = _backends.select(backend)
    if backend == "autograd":
        if check:
            _check_finite(log_rate, log_rate_prior, drive, log_bias, log_lr)
        return eager.forward(log_rate, log_rate_prior, drive, log_bias, log_lr, *constants)
    rows = (-1, log_rate.shape[-1]) if log_rate.numel() else (0, log_rate.shape[-1])
    wide = (tensor.reshape(rows) for tensor in (log_rate, log_rate_prior, drive))
    new: Tensor = _update(*wide, log_bias, log_lr, *constants, backend, check)
    return new.view(log_rate.shape)


def check_clamp(name: str, value: object) -> float:
    """A ceiling: it lies above the floor."""
    return _checks.number(name, value, eager.FLOOR, above=True)


def _check_finite(
    log_rate: Tensor, log_rate_prior: Tensor, drive: Tensor, log_bias: Tensor, log_lr: Tensor
) -> None:
    _checks.finite(
        log_rate=log_rate, log_rate_prior=log_rate_prior, drive=drive, log_bias=log_bias, log_lr=log_lr
    )


@torch.library.custom_op("ipvae_kernels::log_rate_update", mutates_args=())
def _update(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
    backend: str,
    check: bool,
) -> Tensor:
    """The new log rate, [N, K]."""
    if check:
        _check_finite(log_rate, log_rate_prior, drive, log_bias, log_lr)
    tensors = (tensor.contiguous() for tensor in (log_rate, log_rate_prior, drive, log_bias, log_lr))
    new: Tensor = _backends.implementation(__package__, backend, log_rate).forward(
        *tensors, leak, clamp_u, clamp_du
    )
    return new


@_update.register_fake
def _(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
    backend: str,
    check: bool,
) -> Tensor:
    return log_rate.new_empty(log_rate.shape)


@torch.library.custom_op("ipvae_kernels::log_rate_update_backward", mutates_args=())
def _update_backward(
    grad: Tensor,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of log_rate, log_rate_prior, drive, log_bias and log_lr."""
    tensors = (tensor.contiguous() for tensor in (grad, log_rate, log_rate_prior, drive, log_bias, log_lr))
    gradients: Gradients = _backends.implementation(__package__, backend, log_rate).backward(
        *tensors, leak, clamp_u, clamp_du
    )
    return gradients


@_update_backward.register_fake
def _(
    grad: Tensor,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    clamp_u: float,
    clamp_du: float,
    backend: str,
) -> Gradients:
    like = (log_rate, log_rate_prior, drive, log_bias, log_lr)
    a, b, c, d, e = (tensor.new_empty(tensor.shape) for tensor in like)
    return a, b, c, d, e


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:5])
    ctx.constants = inputs[5:9]


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return *_update_backward(grad, *ctx.saved_tensors, *ctx.constants), *(None,) * 5


_update.register_autograd(_backward, setup_context=_save)

for _op in ("log_rate_update", "log_rate_update_backward"):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"ipvae_kernels::{_op}", _device, torch.float32)
