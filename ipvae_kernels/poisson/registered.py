"""The ops as torch knows them: tracing, vmap, and derivatives by autograd, torch.func and forward mode.

A draw z and its slope s = dz/du come from an op, the curvature ds/du from another, which draws once more.
``_Counts``, ``_Slope`` and ``_Curvature`` make z, s and ds/du functions of u for autograd, one from the next.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .. import _transforms, checks
from ..backend import choice
from ..philox import Stream
from . import eager
from .estimators import ESTIMATORS

_SURELY_FINITE = 80.0
TOO_MANY = "log_rate is so large that a draw has more than 2^21 expected arrivals or overflows"
_NO_THIRD = (
    "poisson_rsample has a first and a second derivative; for the third choose backend='autograd', which has "
    "all of them"
)
_WHERE = ", ".join(f"SymInt {name}" for name in Stream._fields)
_N_WHERE = len(Stream._fields)
_ROWS = ("log_rate", "counts")  # arguments that have a row for each sample
_LAW = "str estimator, SymInt? n_arrivals"


def rsample(log_rate: Tensor, *arguments: Any) -> Tensor:
    """Counts [B, K] of log rates [B, K], differentiable twice; the arguments are those of the op."""
    if torch.compiler.is_compiling():
        draw = _rsample
    elif _transforms.differentiated(log_rate):
        draw = _Counts.apply
    else:
        draw = _below_autograd
    counts: Tensor = draw(log_rate, *arguments)[0]
    return counts


def _below_autograd(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The op without what torch registered for autograd, which would enter Python again: 20 microseconds."""
    with torch._C._AutoDispatchBelowAutograd():
        results: tuple[Tensor, Tensor] = _rsample(*arguments)
    return results


def _sample_kernel(log_rate: Tensor, seed: Tensor, *arguments: Any) -> Tensor:
    """Hard counts, [B, K]; the arguments are the stream, backend and check."""
    *stream, backend, check = arguments
    late = log_rate.device.type in checks.LATE
    # Hard counts of such log rates are finite: a pass less, which is a tenth of a draw.
    check = check and (late or not checks.below(_SURELY_FINITE, log_rate))
    if check and not late:
        checks.finite(log_rate=log_rate)
    module = choice.implementation(__package__, backend, log_rate)
    counts: Tensor = module.sample(log_rate.contiguous(), seed, Stream(*stream))
    if check:
        _check_counts(counts, log_rate if late else None)
    return counts


def _check_counts(counts: Tensor, unseen: Tensor | None) -> None:
    """Refuses counts that are not finite, and log rates that have not been looked at."""
    if unseen is not None:
        checks.finite_together(TOO_MANY, {"log_rate": unseen}, {"counts": counts})
    elif not checks.below(math.inf, counts):
        checks.finite_result(TOO_MANY, counts=counts)


def _rsample_kernel(
    log_rate: Tensor, seed: Tensor, temperature: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Counts and their slopes d count / d log_rate, [B, K] each; the temperature is packed, [1].

    The other arguments are the stream, estimator, n_arrivals, backend and check.
    """
    *stream, estimator, n_arrivals, backend, check = arguments
    late = log_rate.device.type in checks.LATE
    # The shorter look first: a small draw feels every call of Python.
    if check and not late and not checks.below(math.inf, log_rate):
        checks.finite(log_rate=log_rate)
    module = choice.implementation(__package__, backend, log_rate)
    counts, slope = module.rsample(log_rate, seed, Stream(*stream), estimator, temperature.item(), n_arrivals)
    if check:
        _check_counts(counts, log_rate if late else None)
    return counts, slope


def _curvature_kernel(
    log_rate: Tensor, seed: Tensor, temperature: Tensor, counts: Tensor | None, *arguments: Any
) -> Tensor:
    """The slopes' derivatives d slope / d log_rate, [B, K]; by eager code, whichever backend drew."""
    *stream, estimator, n_arrivals = arguments
    tau = temperature.item()
    return eager.curvature(log_rate, seed, Stream(*stream), estimator, tau, n_arrivals, counts)


def _like(log_rate: Tensor, *_: Any) -> Tensor:
    return log_rate.new_empty(log_rate.shape)


def _two_like(log_rate: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(log_rate), _like(log_rate)


def _rule(
    public: str, op: Any, info: Any, in_dims: tuple[int | None, ...], *arguments: Any
) -> tuple[Any, Any]:
    """The rule of ``torch.vmap`` for an op of a public function.

    Rows that are samples of their own are drawn in one call, which numbers them one after the other.
    """
    if not _transforms.shift_of_rows(public, info.randomness, in_dims[1] is not None):
        return _transforms.each_row(op, info, in_dims, *arguments)
    size, names = info.batch_size, [argument.name for argument in op._schema.arguments]
    wide = [
        _transforms.rows_first(value, dim, size) if name in _ROWS and value is not None else value
        for name, value, dim in zip(names, arguments, in_dims, strict=True)
    ]
    log_rate, dim = arguments[0], in_dims[0]
    rows = log_rate.shape[-2] if dim is None else log_rate.movedim(dim, 0).shape[1]
    step, sample_offset = (arguments[names.index(name)] for name in ("step", "sample_offset"))
    checks.stream(step, 1, sample_offset, size * rows)
    results, shape = op(*wide), (size, rows, wide[0].shape[1])
    if isinstance(results, Tensor):
        return results.view(shape), 0
    return tuple(result.view(shape) for result in results), (0,) * len(results)


sample = _transforms.define(
    "poisson_sample",
    f"(Tensor log_rate, Tensor seed, {_WHERE}, str backend, bool check) -> Tensor",
    _sample_kernel,
    _like,
    functools.partial(_rule, "poisson_sample"),
)
_rsample = _transforms.define(
    "poisson_rsample",
    f"(Tensor log_rate, Tensor seed, Tensor temperature, {_WHERE}, {_LAW}, str backend, bool check) "
    "-> (Tensor, Tensor)",
    _rsample_kernel,
    _two_like,
    functools.partial(_rule, "poisson_rsample"),
)
_curvature_op = _transforms.define(
    "poisson_curvature",
    f"(Tensor log_rate, Tensor seed, Tensor temperature, Tensor? counts, {_WHERE}, {_LAW}) -> Tensor",
    _curvature_kernel,
    _like,
    functools.partial(_rule, "poisson_rsample"),
)


class _Counts(torch.autograd.Function):
    """Counts and slopes; the counts are differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_rate: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """See ``_rsample_kernel``."""
        return _below_autograd(log_rate, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps the slopes, and what their derivative needs."""
        log_rate, seed, temperature, *constants = inputs
        counts, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)  # else autograd makes zeros for the slopes
        ctx.constants = constants[: _N_WHERE + 2]  # with estimator and n_arrivals
        estimator = constants[_N_WHERE]
        kept = (log_rate, slope, seed, temperature, counts if ESTIMATORS[estimator].order else None)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """The gradient of the log rate."""
        none = (None,) * (_N_WHERE + 6)
        return None if grad is None else grad * _slope(*ctx.saved_tensors, *ctx.constants), *none

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        """The tangent of the counts."""
        return _transforms.forward_product(tangent, _slope, *ctx.saved_tensors, *ctx.constants), None


class _Slope(torch.autograd.Function):
    """The slopes as they are, but differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_rate: Tensor, slope: Tensor, *arguments: Any) -> Tensor:
        """The slopes."""
        return slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps what the curvature needs."""
        log_rate, _, *others = inputs
        kept, ctx.constants = (log_rate, *others[:3]), others[3:]
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the log rate."""
        return grad * _curvature(*ctx.saved_tensors, *ctx.constants), *(None,) * (_N_WHERE + 6)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """The tangent of the slopes."""
        return _transforms.forward_product(tangent, _curvature, *ctx.saved_tensors, *ctx.constants)


class _Curvature(torch.autograd.Function):
    """The curvature, which refuses to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        """See ``_curvature_kernel``."""
        result: Tensor = _curvature_op(*arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        """Refuses."""
        raise NotImplementedError(_NO_THIRD)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> None:
        """Refuses."""
        raise NotImplementedError(_NO_THIRD)


def _slope(
    log_rate: Tensor, slope: Tensor, seed: Tensor, temperature: Tensor, counts: Tensor | None, *constants: Any
) -> Tensor:
    if not (torch.is_grad_enabled() or _transforms.transformed()):
        return slope
    if counts is not None:
        counts = counts.detach()  # that the count moves with u is part of the curvature
    result: Tensor = _transforms.apply(_Slope, log_rate, slope, seed, temperature, counts, *constants)
    return result


def _curvature(*arguments: Any) -> Tensor:
    result: Tensor = _transforms.apply(_Curvature, *arguments)
    return result


torch.library.register_autograd(_rsample, _Counts.backward, setup_context=_Counts.setup_context)
