"""Poisson counts from log rates: hard (``poisson_sample``) and relaxed (``poisson_rsample``)."""

import math

import torch
from torch import Tensor

from .. import _transforms, checks
from ..backend import choice
from ..philox import DRAWS, KIND_ALONE, Stream
from . import eager, noise, registered
from .estimators import ESTIMATORS, is_hard
from .rates import log_rate_from

ARRIVALS_KEPT_MAX = 2**22 - 4  # and counts of a support: as many as the words of one draw allow
_TEMPERATURE_MAX = 1e6  # more than any draw can afford, and within the integers that count arrivals


def poisson_sample(
    log_rate: Tensor | None = None,
    *,
    seed: int | Tensor | None = None,
    draw: str = "alone",
    inner: int = 0,
    step: int = 0,
    sample_offset: int = 0,
    neuron_offset: int = 0,
    rate: Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    check: bool = True,
) -> Tensor:
    """Poisson counts of the rates exp(log_rate) + 1.1920929e-07; no gradient.

    The draw is a pure function of the seed, of what it is for (``draw``, ``inner``) and of where a number
    stands: of the step, of the number of the sample (its row, counted from ``sample_offset``) and of the
    neuron (``docs/design/randomness.md``). Where all are the same, so is the noise, by design: processes and
    batches that share a seed need different offsets, or they draw identical counts. A seed that is drawn is
    the rank's own where ``torch.distributed`` is initialised.

    A time step that is composed from this function, a decoder and :func:`log_rate_update` draws what
    ``infer`` draws: "update" for inner iteration 0, 1, ..., then "loss". With ``single_draw`` the update of
    step t takes the draw "loss" of step t - 1, and only step 0 has one of its own.

    Under ``torch.vmap`` with randomness="different", samples are numbered through all slices, the vmapped
    dimension first: the result is that of the call on the stacked tensor. "same" gives all slices the same
    draw, and torch's default, "error", is refused unless every slice has a seed of its own. A slice of shape
    [] is a sample of one neuron. What vmap slices neither in log_rate nor in the seed is drawn once.

    Args:
        log_rate: u, any shape, float32 or float64. The last dimension indexes neurons, the others, flattened
            in row-major order, samples. Or ``rate``, in its place.
        seed: int64 of shape [], an int, or None: drawn from torch's default generator.
        draw: which draw of a step this is: "update", of the counts that drive an update; "loss", the fresh
            counts of a step; or "alone", that of no rollout.
        inner: inner iteration of an update, 0..255.
        step: global time step, 0..2^32-1.
        sample_offset: global index of the first sample: of a batch, how many samples came before it.
        neuron_offset: global index of the first neuron, a multiple of 4: of a dictionary in parts.
        rate: the rates themselves, >= 0, in place of ``log_rate``; those below the floor 1.1920929e-07 are
            that.
        generator: draws the seed, in place of ``seed``.
        backend: "auto", "cpu", "cuda", "triton", "eager" or "autograd" (here the same as eager).
        check: raise where log_rate is not finite or its rate overflows; costs a pass over input and result.

    Returns:
        Counts, of the shape and dtype of the rates.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendError: a backend named cannot serve.
        RuntimeError: ``torch.vmap`` was not told whether its slices share one draw.
    """
    check = checks.flag("check", check)
    log_rate = log_rate_from(log_rate, rate, check)
    backend = choice.select(backend)
    seed = checks.seed(seed, log_rate.device, generator)
    rows = rows_of(log_rate)
    stream = _stream(draw, inner, step, sample_offset, neuron_offset, rows)
    # A view is not free: 6 of the 30 microseconds of a small draw.
    plain = rows.detach() if rows.requires_grad else rows
    counts: Tensor = registered.sample(plain, seed, *stream, backend, check)
    return counts if rows is log_rate else counts.view(log_rate.shape)


def poisson_rsample(
    log_rate: Tensor | None = None,
    *,
    estimator: str = "cubic",
    temperature: float = 0.1,
    n_arrivals: int | None = None,
    seed: int | Tensor | None = None,
    draw: str = "alone",
    inner: int = 0,
    step: int = 0,
    sample_offset: int = 0,
    neuron_offset: int = 0,
    upper_bound: int | None = None,
    rate: Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: str = "auto",
    check: bool = True,
) -> Tensor:
    """Poisson counts that are differentiable with respect to the log rate.

    Noise is named by the seed, the step, the sample and the neuron, also under ``torch.vmap``: see
    :func:`poisson_sample`. First and second derivatives are there for autograd, ``torch.func`` and forward
    mode; in the second derivative of "fini2" and "fini3" the count moves with u as its slope says. Higher
    derivatives, and with them everything that autograd can do, need ``backend="autograd"``.

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
        draw: which draw of a step this is, like the four that follow: see :func:`poisson_sample`.
        inner: inner iteration of an update.
        step: global time step.
        sample_offset: global index of the first sample.
        neuron_offset: global index of the first neuron.
        upper_bound: for "gumbel": number of counts in the support; None takes the 1 - 1e-3 quantile at the
            largest rate.
        rate: the rates themselves, in place of ``log_rate``, with the gradient; as in :func:`poisson_sample`.
        generator: draws the seed, in place of ``seed``.
        backend: "auto", "cpu", "cuda", "triton", "eager" or "autograd"; "gumbel" is served by autograd alone.
        check: raise where log_rate or the result is not finite; costs a pass over each.

    Returns:
        Counts, of the shape and dtype of the rates.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendError: a backend named cannot serve; under ``torch.vmap`` that is "autograd", most often.
        RuntimeError: ``torch.vmap`` was not told whether its slices share one draw.
        NotImplementedError: a third derivative, in its backward.
    """
    check = checks.flag("check", check)
    log_rate = log_rate_from(log_rate, rate, check)
    temperature, n_arrivals = check_estimator(estimator, temperature, n_arrivals)
    if upper_bound is not None:
        upper_bound = checks.integer("upper_bound", upper_bound, 1, ARRIVALS_KEPT_MAX)
    backend = choice.select(backend)
    seed = checks.seed(seed, log_rate.device, generator)
    rows = rows_of(log_rate)
    stream = _stream(draw, inner, step, sample_offset, neuron_offset, rows)
    if backend == "autograd" or estimator == "gumbel":
        choice.refuse_compiled(backend, "the gumbel estimator is served by autograd alone")
        fixed = upper_bound is not None and estimator == "gumbel" and not is_hard("gumbel", temperature)
        seed = _transforms.one_draw("poisson_rsample", fixed, seed, log_rate)
        if check:
            checks.finite(log_rate=log_rate)
        counts = eager.differentiable_draw(
            rows, noise.PhiloxNoise(seed), Stream(*stream), estimator, temperature, n_arrivals, upper_bound
        )
        if check:
            checks.finite_result(registered.TOO_MANY, counts=counts)
    else:
        tau = _transforms.packed(temperature)
        counts = registered.rsample(rows, seed, tau, *stream, estimator, n_arrivals, backend, check)
    return counts if rows is log_rate else counts.view(log_rate.shape)


def check_estimator(
    estimator: object, temperature: object, n_arrivals: object | None
) -> tuple[float, int | None]:
    """Checks the arguments that say how counts are drawn; returns temperature and n_arrivals."""
    checks.choice("estimator", estimator, ESTIMATORS)
    limit = None if n_arrivals is None else checks.integer("n_arrivals", n_arrivals, 0, ARRIVALS_KEPT_MAX)
    return checks.number("temperature", temperature, 0.0, _TEMPERATURE_MAX), limit


def _stream(
    draw: str, inner: object, step: object, sample_offset: object, neuron_offset: object, rows: Tensor
) -> tuple[int, ...]:
    """The fields of the :class:`Stream` of a draw from log rates [B, K], checked."""
    samples, neurons = rows.shape
    kind = KIND_ALONE if draw == "alone" else DRAWS[checks.choice("draw", draw, DRAWS)]
    inner = checks.integer("inner", inner, 0, 255)
    if inner and draw != "update":
        raise ValueError(
            f"inner: expected 0 with draw={draw!r}, which has no inner iterations; found {inner}"
        )
    step, sample_offset = checks.stream(step, 1, sample_offset, samples)
    return kind, inner, step, sample_offset, checks.neuron_offset(neuron_offset, neurons)


def rows_of(log_rate: Tensor) -> Tensor:
    """[B, K]: samples by neurons."""
    if log_rate.dim() == 2:
        return log_rate
    if log_rate.dim() == 0:
        return log_rate.view(1, 1)
    return log_rate.reshape(math.prod(log_rate.shape[:-1]), log_rate.shape[-1])
