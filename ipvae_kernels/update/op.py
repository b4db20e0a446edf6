"""The pointwise half of a step, for any decoder whose drive the caller computes."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .. import _transforms, checks
from ..backend import choice
from ..params import StepParams
from . import eager

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

_NAMES = ("log_rate", "log_rate_prior", "drive", "log_bias", "log_lr")
_OUT_OF_RANGE = "the step left the range of floating point numbers; are drive, log_bias, log_lr reasonable?"


def log_rate_update(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    params: StepParams,
    *,
    leak: float = 0.0,
    decay: float = 0.0,
    clamp_u: float = 10.0,
    clamp_du: float = 10.0,
    backend: str = "auto",
    check: bool = True,
) -> Tensor:
    """One natural-gradient step of the log rates, given the drive that a decoder makes of the residual.

    With softclamp(v, c) = c - softplus(c - v)::

        pre = exp(log_lr) (drive - exp(log_bias) - leak (log_rate - log_rate_prior) - decay log_rate)
        du  = softclamp(max(pre, -8), clamp_du)
        new = softclamp(max(log_rate + du, -8), clamp_u)

    Source: "Brain-like variational inference" (arXiv 2410.19315) and its released code.

    Args:
        log_rate: u, [..., K], float32 or float64.
        log_rate_prior: u at the start of the time step, [..., K].
        drive: minus the gradient of the reconstruction term; for a linear decoder
            Phi^T ((x - Phi z) / var), [..., K].
        params: anything with ``log_bias`` [K] and ``log_lr`` [].
        leak: weight of the pull towards the prior, >= 0 (beta_inner with several inner iterations).
        decay: weight of the pull towards a log rate of 0, >= 0; see :func:`ipvae_kernels.infer`.
        clamp_u: ceiling of the log rate, above -8.
        clamp_du: ceiling of its update, above -8.
        backend: "auto", "cpu", "cuda", "triton", "eager" or "autograd".
        check: raise where a tensor, the result or a gradient is not finite; costs a pass over each.

    Returns:
        The new log rate, [..., K]; differentiable in all five tensors, to any order and in forward mode:
        beyond the first derivative in plain PyTorch.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendError: a backend named cannot serve.
    """
    tensors = checks.full_precision(
        log_rate=log_rate,
        log_rate_prior=log_rate_prior,
        drive=drive,
        log_bias=params.log_bias,
        log_lr=params.log_lr,
    )
    log_rate, log_rate_prior, drive, log_bias, log_lr = tensors
    if log_rate.dim() == 0:
        raise ValueError("log_rate: expected shape [..., K], found []")
    checks.shape("log_rate_prior", log_rate_prior, log_rate.shape, "that of log_rate")
    checks.shape("drive", drive, log_rate.shape, "that of log_rate")
    checks.shape("log_bias", log_bias, log_rate.shape[-1:], "[K]")
    checks.shape("log_lr", log_lr, (), "[]")
    constants = (
        checks.number("leak", leak, 0.0),
        checks.number("decay", decay, 0.0),
        check_clamp("clamp_u", clamp_u),
        check_clamp("clamp_du", clamp_du),
    )
    check = checks.flag("check", check)
    backend = choice.select(backend)
    if backend == "autograd":
        if check:
            _check_finite(*tensors)
        new = eager.forward(log_rate, log_rate_prior, drive, log_bias, log_lr, *constants)
        if check:
            checks.finite_result(_OUT_OF_RANGE, log_rate=new)
        return new
    rows = (-1, log_rate.shape[-1]) if log_rate.numel() else (0, log_rate.shape[-1])
    wide = (tensor.reshape(rows) for tensor in (log_rate, log_rate_prior, drive))
    arguments = (*wide, log_bias, log_lr, _transforms.packed(*constants), backend, check)
    if not _transforms.differentiated(*tensors):
        return cast(Tensor, _update(*arguments).view(log_rate.shape))
    function = _Update if torch.compiler.is_compiling() else _UpdateForward
    return cast(Tensor, _transforms.apply(function, *arguments).view(log_rate.shape))


def check_clamp(name: str, value: object) -> float:
    """A ceiling: it lies above the floor."""
    return checks.number(name, value, eager.FLOOR, above=True)


def _check_finite(
    log_rate: Tensor, log_rate_prior: Tensor, drive: Tensor, log_bias: Tensor, log_lr: Tensor
) -> None:
    tensors = (log_rate, log_rate_prior, drive, log_bias, log_lr)
    checks.finite(**dict(zip(_NAMES, tensors, strict=True)))


def _update_kernel(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    constants: Tensor,
    backend: str,
    check: bool,
) -> Tensor:
    """The new log rate, [N, K]; the constants are leak, decay, clamp_u and clamp_du."""
    tensors = (log_rate, log_rate_prior, drive, log_bias, log_lr)
    if check:
        _check_finite(*tensors)
    module = choice.implementation(__package__, backend, log_rate)
    with _transforms.without_autocast(log_rate.device):
        new: Tensor = module.forward(*(tensor.contiguous() for tensor in tensors), *constants.tolist())
    if check:
        checks.finite_result(_OUT_OF_RANGE, log_rate=new)
    return new


def _update_backward_kernel(
    grad: Tensor,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    constants: Tensor,
    backend: str,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of log_rate, log_rate_prior, drive, log_bias and log_lr."""
    tensors = (grad, log_rate, log_rate_prior, drive, log_bias, log_lr)
    module = choice.implementation(__package__, backend, log_rate)
    with _transforms.without_autocast(log_rate.device):
        gradients: Gradients = module.backward(
            *(tensor.contiguous() for tensor in tensors), *constants.tolist()
        )
    if check and checks.is_finite(grad):
        names = (f"gradient of {name}" for name in _NAMES)
        checks.finite_result(_OUT_OF_RANGE, **dict(zip(names, gradients, strict=True)))
    return gradients


def _like(log_rate: Tensor, *_: Any) -> Tensor:
    return log_rate.new_empty(log_rate.shape)


def _all_like(grad: Tensor, *arguments: Any) -> Gradients:
    a, b, c, d, e = (tensor.new_empty(tensor.shape) for tensor in arguments[:5])
    return a, b, c, d, e


_ARGUMENTS = (
    "Tensor log_rate, Tensor log_rate_prior, Tensor drive, Tensor log_bias, Tensor log_lr, Tensor constants, "
    "str backend, bool check"
)
_update = _transforms.define(
    "log_rate_update", f"({_ARGUMENTS}) -> Tensor", _update_kernel, _like, _transforms.each_row
)
_update_backward = _transforms.define(
    "log_rate_update_backward",
    f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _update_backward_kernel,
    _all_like,
    _transforms.each_row,
)


def _tangent(function: Callable[..., Any], ctx: Any, tangents: Sequence[Tensor | None]) -> Any:
    """Forward mode, and by it all higher derivatives, of the same function in plain PyTorch."""
    *tensors, constants = ctx.saved_tensors
    numbers = _transforms.unpacked(constants)
    # Forward mode copies a tangent into the layout of its primal, and an expanded one (the gradient of a sum)
    # has no room for it.
    tensors = [tensor.contiguous() for tensor in tensors]
    given = [
        torch.zeros_like(tensor) if tangent is None else tangent
        for tensor, tangent in zip(tensors, tangents, strict=False)
    ]
    return torch.func.jvp(lambda *primals: function(*primals, *numbers), tuple(tensors), tuple(given))[1]


class _Update(torch.autograd.Function):
    """The step and its gradient by hand, as ``torch.compile`` traces it: without a rule for forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        log_rate: Tensor,
        log_rate_prior: Tensor,
        drive: Tensor,
        log_bias: Tensor,
        log_lr: Tensor,
        constants: Tensor,
        backend: str,
        check: bool,
    ) -> Any:
        return _update(log_rate, log_rate_prior, drive, log_bias, log_lr, constants, backend, check)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.backend, ctx.check = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        arguments = (grad, *ctx.saved_tensors, ctx.backend, ctx.check)
        if torch.compiler.is_compiling():
            return *_update_backward(*arguments), None, None, None
        return *_transforms.apply(_UpdateBackward, *arguments), None, None, None


class _UpdateForward(_Update):
    """The same with forward mode."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Update.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:6])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _tangent(eager.forward, ctx, tangents[:5])


class _UpdateBackward(torch.autograd.Function):
    """The gradient; its own derivatives are those of the eager backward, which is plain PyTorch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _update_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *tensors, constants = ctx.saved_tensors
        numbers = _transforms.unpacked(constants)
        pull = torch.func.vjp(lambda *primals: eager.backward(*primals, *numbers), *tensors)[1]
        return *pull(grads), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _tangent(eager.backward, ctx, tangents[:6])
