"""Poisson counts from log rates: hard (``poisson_sample``) and relaxed (``poisson_rsample``)."""

import math

import torch
from torch import Tensor

from .. import _backends, _checks
from ..philox import KIND_ALONE, Stream
from . import eager

_SURELY_FINITE = 80.0
_TEMPERATURE_MAX = 1e6  # more than any draw can afford, and within the integers that count arrivals
_TOO_MANY = "log_rate is so large that a draw has more than 2^21 expected arrivals or overflows"


def poisson_sample(
    log_rate: Tensor,
    *,
    seed: int | Tensor | None = None,
    step: int = 0,
    sample_offset: int = 0,
    backend: str = "auto",
    check: bool = True,
) -> Tensor:
    """Poisson counts of the rates exp(log_rate) + 1.1920929e-07; no gradient.

    The draw is a pure function of the seed and of where a number stands (``docs/randomness.md``).

    Args:
        log_rate: u, any shape, float32 or float64. The last dimension indexes neurons, the others, flattened
            in row-major order, samples.
        seed: int64 of shape [], an int, or None: drawn from torch's default generator.
        step: global time step, 0..2^32-1.
        sample_offset: global index of the first sample.
        backend: "auto", "native", "triton", "eager" or "autograd" (here the same as eager).
        check: raise where log_rate is not finite or its rate overflows; costs a pass over input and result.

    Returns:
        Counts, of the shape and dtype of log_rate.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendError: a backend named cannot serve.
    """
    (log_rate,) = _checks.full_precision(log_rate=log_rate)
    check = _checks.flag("check", check)
    backend = _backends.select(backend)
    seed = _checks.seed(seed, log_rate.device)
    rows = _rows(log_rate)
    step, sample_offset = _checks.stream(step, 1, sample_offset, rows.shape[0])
    counts: Tensor = _sample(rows.detach(), seed, step, sample_offset, backend, check)
    return counts.view(log_rate.shape)


def poisson_rsample(
    log_rate: Tensor,
    *,
    estimator: str = "cubic",
    temperature: float = 0.1,
    n_arrivals: int | None = None,
    seed: int | Tensor | None = None,
    step: int = 0,
    sample_offset: int = 0,
    upper_bound: int | None = None,
    backend: str = "auto",
    check: bool = True,
) -> Tensor:
    """Poisson counts that are differentiable with respect to the log rate.

    Args:
        log_rate: u, any shape, float32 or float64; indexed as in :func:`poisson_sample`.
        estimator: of exponential arrival times (t_i = (E_1 + ... + E_i) / rate, count = sum_i f((1 - t_i) /
            temperature)) the indicator f: "sigmoid", "linear", "cubic", "quintic" or "cosine" ("A
            hitchhiker's guide to Poisson gradient estimation"); "fini2", "fini3": hard counts with a gradient
            that is unbiased for polynomials of degree 2, 3 (He and Wu, "Extending pathwise gradients to
            discrete random variables via finite-order relaxation"); "gumbel": Gumbel-softmax over the counts
            below ``upper_bound``, by autograd; "hard": hard counts with zero gradient.
        temperature: of the relaxation, >= 0; at 0 the counts are hard and their gradient zero. "fini2",
            "fini3" and "hard" have none and ignore it.
        n_arrivals: keep the first n arrivals only, as the released code does; None keeps all.
        seed: int64 of shape [], an int, or None: drawn from torch's default generator.
        step: global time step, 0..2^32-1.
        sample_offset: global index of the first sample.
        upper_bound: for "gumbel": number of counts in the support; None takes the 1 - 1e-3 quantile at the
            largest rate.
        backend: "auto", "native", "triton", "eager" or "autograd"; "gumbel" is always served by autograd.
        check: raise where log_rate or the result is not finite; costs a pass over each.

    Returns:
        Counts, of the shape and dtype of log_rate.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendError: a backend named cannot serve.
    """
    (log_rate,) = _checks.full_precision(log_rate=log_rate)
    temperature, n_arrivals = check_estimator(estimator, temperature, n_arrivals)
    if upper_bound is not None:
        upper_bound = _checks.integer("upper_bound", upper_bound, 1, 2**22 - 4)
    check = _checks.flag("check", check)
    backend = _backends.select(backend)
    seed = _checks.seed(seed, log_rate.device)
    rows = _rows(log_rate)
    step, sample_offset = _checks.stream(step, 1, sample_offset, rows.shape[0])
    if backend == "autograd" or estimator == "gumbel":
        _backends.refuse_compiled(backend, "the gumbel estimator is served by autograd alone")
        if check:
            _checks.finite(log_rate=log_rate)
        stream, noise = Stream(KIND_ALONE, 0, step, sample_offset), eager.PhiloxNoise(seed)
        counts = eager.differentiable_draw(
            rows, noise, stream, estimator, temperature, n_arrivals, upper_bound=upper_bound
        )
        if check:
            _checks.finite_result(_TOO_MANY, counts=counts)
    else:
        counts, _ = _rsample(
            rows, seed, step, sample_offset, estimator, temperature, n_arrivals, backend, check
        )
    return counts.view(log_rate.shape)


def check_estimator(
    estimator: object, temperature: object, n_arrivals: object | None
) -> tuple[float, int | None]:
    """Checks the arguments that say how counts are drawn; returns temperature and n_arrivals."""
    _checks.choice("estimator", estimator, eager.ESTIMATORS)
    limit = None if n_arrivals is None else _checks.integer("n_arrivals", n_arrivals, 1, 2**22 - 4)
    return _checks.number("temperature", temperature, 0.0, _TEMPERATURE_MAX), limit


def _rows(log_rate: Tensor) -> Tensor:
    """[B, K]: samples by neurons."""
    if log_rate.dim() == 0:
        return log_rate.view(1, 1)
    return log_rate.reshape(math.prod(log_rate.shape[:-1]), log_rate.shape[-1])


@torch.library.custom_op("ipvae_kernels::poisson_sample", mutates_args=())
def _sample(
    log_rate: Tensor, seed: Tensor, step: int, sample_offset: int, backend: str, check: bool
) -> Tensor:
    # Hard counts of such log rates are finite: a pass less, which is a tenth of a draw.
    check = check and not _checks.below(_SURELY_FINITE, log_rate)
    if check:
        _checks.finite(log_rate=log_rate)
    stream = Stream(KIND_ALONE, 0, step, sample_offset)
    counts: Tensor = _backends.implementation(__package__, backend, log_rate).sample(
        log_rate.contiguous(), seed, stream
    )
    if check:
        _checks.finite_result(_TOO_MANY, counts=counts)
    return counts


@_sample.register_fake
def _(log_rate: Tensor, seed: Tensor, step: int, sample_offset: int, backend: str, check: bool) -> Tensor:
    return log_rate.new_empty(log_rate.shape)


@torch.library.custom_op("ipvae_kernels::poisson_rsample", mutates_args=())
def _rsample(
    log_rate: Tensor,
    seed: Tensor,
    step: int,
    sample_offset: int,
    estimator: str,
    temperature: float,
    n_arrivals: int | None,
    backend: str,
    check: bool,
) -> tuple[Tensor, Tensor]:
    """Counts and their slopes d count / d log_rate, [B, K] each."""
    if check:
        _checks.finite(log_rate=log_rate)
    stream = Stream(KIND_ALONE, 0, step, sample_offset)
    module = _backends.implementation(__package__, backend, log_rate)
    counts, slope = module.rsample(log_rate, seed, stream, estimator, temperature, n_arrivals)
    if check:
        _checks.finite_result(_TOO_MANY, counts=counts)
    return counts, slope


@_rsample.register_fake
def _(
    log_rate: Tensor,
    seed: Tensor,
    step: int,
    sample_offset: int,
    estimator: str,
    temperature: float,
    n_arrivals: int | None,
    backend: str,
    check: bool,
) -> tuple[Tensor, Tensor]:
    return log_rate.new_empty(log_rate.shape), log_rate.new_empty(log_rate.shape)


def _save_slope(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(output[1])
    ctx.set_materialize_grads(False)  # else autograd makes zeros for the slopes


def _rsample_backward(ctx, grad_counts, _grad_slope):  # type: ignore[no-untyped-def]
    (slope,) = ctx.saved_tensors
    return None if grad_counts is None else grad_counts * slope, *(None,) * 8


_rsample.register_autograd(_rsample_backward, setup_context=_save_slope)

for _op in ("poisson_sample", "poisson_rsample"):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(f"ipvae_kernels::{_op}", _device, torch.float32)
