"""The ops as torch knows them: tracing, vmap, and derivatives by autograd, torch.func and forward mode.

A draw z and its slope s = dz/du come from an op, the curvature ds/du from another, which draws once more.
``_Counts``, ``_Slope`` and ``_Curvature`` make z, s and ds/du functions of u for autograd, one from the next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks, _library
from ..philox import KIND_ALONE, Stream
from . import eager

_SURELY_FINITE = 80.0
TOO_MANY = "log_rate is so large that a draw has more than 2^21 expected arrivals or overflows"
_NO_THIRD = (
    "poisson_rsample has a first and a second derivative; for the third choose backend='autograd', which has "
    "all of them"
)
_WHERE = "Tensor seed, int step, int sample_offset"
_LAW = "str estimator, float temperature, int? n_arrivals"


def rsample(log_rate: Tensor, *arguments: Any) -> Tensor:
    """Counts [B, K] of log rates [B, K], differentiable twice; the arguments are those of the op."""
    draw = _Counts.apply if _library.transformed() else _rsample
    counts: Tensor = draw(log_rate, *arguments)[0]
    return counts


def _sample_kernel(
    log_rate: Tensor, seed: Tensor, step: int, sample_offset: int, backend: str, check: bool
) -> Tensor:
    """Hard counts, [B, K]."""
    # Hard counts of such log rates are finite: a pass less, which is a tenth of a draw.
    check = check and not _checks.below(_SURELY_FINITE, log_rate)
    if check:
        _checks.finite(log_rate=log_rate)
    stream = Stream(KIND_ALONE, 0, step, sample_offset)
    module = _backends.implementation(__package__, backend, log_rate)
    counts: Tensor = module.sample(log_rate.contiguous(), seed, stream)
    if check:
        _checks.finite_result(TOO_MANY, counts=counts)
    return counts


def _rsample_kernel(
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
        _checks.finite_result(TOO_MANY, counts=counts)
    return counts, slope


def _curvature_kernel(log_rate: Tensor, seed: Tensor, step: int, sample_offset: int, *law: Any) -> Tensor:
    """The slopes' derivatives d slope / d log_rate, [B, K]; by eager code, whichever backend drew."""
    return eager.curvature(log_rate, seed, Stream(KIND_ALONE, 0, step, sample_offset), *law)


def _like(log_rate: Tensor, *_: Any) -> Tensor:
    return log_rate.new_empty(log_rate.shape)


def _two_like(log_rate: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like(log_rate), _like(log_rate)


def _stacked(op: Any, info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
    """The rule of vmap: one call, on the rows of all slices, so that each has noise of its own."""
    if in_dims[1] is not None:
        raise ValueError(
            "seed: expected one seed for all slices of vmap, found one for each; the draws of slices differ "
            "by themselves, since their samples are numbered one after the other"
        )
    _, seed, step, sample_offset, *_ = arguments
    size = info.batch_size
    wide = [
        _library.rows_first(value, dim, size) if isinstance(value, Tensor) and value is not seed else value
        for value, dim in zip(arguments, in_dims, strict=True)
    ]
    rows, neurons = wide[0].shape
    _checks.stream(step, 1, sample_offset, rows)
    results = op(*wide)
    if isinstance(results, Tensor):
        return results.view(size, rows // size, neurons), 0
    return tuple(result.view(size, rows // size, neurons) for result in results), (0,) * len(results)


sample = _library.define(
    "poisson_sample",
    f"(Tensor log_rate, {_WHERE}, str backend, bool check) -> Tensor",
    _sample_kernel,
    _like,
    _stacked,
)
_rsample = _library.define(
    "poisson_rsample",
    f"(Tensor log_rate, {_WHERE}, {_LAW}, str backend, bool check) -> (Tensor, Tensor)",
    _rsample_kernel,
    _two_like,
    _stacked,
)
_curvature_op = _library.define(
    "poisson_curvature",
    f"(Tensor log_rate, {_WHERE}, {_LAW}, Tensor? counts) -> Tensor",
    _curvature_kernel,
    _like,
    _stacked,
)


class _Counts(torch.autograd.Function):
    """Counts and slopes; the counts are differentiable."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_rate: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """See ``_rsample_kernel``."""
        results: tuple[Tensor, Tensor] = _rsample(log_rate, *arguments)
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps the slopes, and what their derivative needs."""
        log_rate, seed, *constants = inputs
        counts, slope = output
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)  # else autograd makes zeros for the slopes
        ctx.constants = constants[:5]
        kept = (log_rate, slope, seed, counts if constants[2].startswith("fini") else None)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        """The gradient of the log rate."""
        return None if grad is None else grad * _slope(*ctx.saved_tensors, *ctx.constants), *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> tuple[Tensor, None]:
        """The tangent of the counts."""
        return _library.forward_product(tangent, _slope, *ctx.saved_tensors, *ctx.constants), None


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
        log_rate, _, seed, counts, *ctx.constants = inputs
        ctx.save_for_backward(log_rate, seed, counts)
        ctx.save_for_forward(log_rate, seed, counts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the log rate."""
        return grad * _curvature(*ctx.saved_tensors, *ctx.constants), *(None,) * 8

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """The tangent of the slopes."""
        return _library.forward_product(tangent, _curvature, *ctx.saved_tensors, *ctx.constants)


class _Curvature(torch.autograd.Function):
    """The curvature, which refuses to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(log_rate: Tensor, seed: Tensor, counts: Tensor | None, *constants: Any) -> Tensor:
        """See ``_curvature_kernel``."""
        result: Tensor = _curvature_op(log_rate, seed, *constants, counts)
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


def _slope(log_rate: Tensor, slope: Tensor, seed: Tensor, counts: Tensor | None, *constants: Any) -> Tensor:
    if not (torch.is_grad_enabled() or _library.transformed()):
        return slope
    if counts is not None:
        counts = counts.detach()  # that the count moves with u is part of the curvature
    result: Tensor = _Slope.apply(log_rate, slope, seed, counts, *constants)  # type: ignore[no-untyped-call]
    return result


def _curvature(*arguments: Any) -> Tensor:
    result: Tensor = _Curvature.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


torch.library.register_autograd(_rsample, _Counts.backward, setup_context=_Counts.setup_context)


def refuse_vmap(log_rate: Tensor) -> None:
    """For what vmap would give the same noise in every slice.

    Raises:
        NotImplementedError: vmap takes slices of ``log_rate``.
    """
    _Unsliced.apply(log_rate.detach())  # type: ignore[no-untyped-call]


class _Unsliced(torch.autograd.Function):
    """Its input, which vmap must not slice."""

    @staticmethod
    def forward(log_rate: Tensor) -> Tensor:
        """The log rates."""
        return log_rate.view_as(log_rate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keeps nothing."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], log_rate: Tensor) -> None:
        """Refuses."""
        raise NotImplementedError(
            "vmap over log_rate is served by every backend but 'autograd', and for every estimator but "
            "'gumbel'; call those on the stacked tensor"
        )
