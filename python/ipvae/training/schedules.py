"""Schedules of the released training code, as pure functions of the optimizer step (0-based) and their total.

A pure function needs no state in a checkpoint: a resumed run is where it would have been.
"""

from __future__ import annotations

import math

from ipvae_kernels import checks


def temperature(
    step: int, total: int, *, start: float = 1.0, stop: float = 0.01, portion: float = 0.5
) -> float:
    """Temperature of relaxed counts: linear from `start` to `stop` over `portion`, then `stop`."""
    step, total, (portion,) = _checked(step, total, portion=portion)
    start, stop = checks.number("start", start), checks.number("stop", stop)
    return _ramp(step, 0, math.ceil(portion * total), start, stop)


def beta(
    step: int,
    total: int,
    *,
    final: float,
    low: float = 1e-4,
    anneal_portion: float = 0.1,
    const_portion: float = 0.001,
) -> float:
    """Weight of the KL: `low` for `const_portion`, a linear rise over `anneal_portion`, then `final`."""
    step, total, (anneal_portion, const_portion) = _checked(
        step, total, anneal_portion=anneal_portion, const_portion=const_portion
    )
    final, low = checks.number("final", final), checks.number("low", low)
    first = math.ceil(const_portion * total)
    return _ramp(step, first, math.ceil((const_portion + anneal_portion) * total), low, final)


def eps(step: int, total: int, *, anneal_portion: float = 0.1, const_portion: float = 0.001) -> float:
    """Opening of the soft clamps, 0 (tight) to 1 (final), annealed like `beta`."""
    return beta(step, total, final=1.0, low=0.0, anneal_portion=anneal_portion, const_portion=const_portion)


def warming_up(step: int, total: int, *, portion: float = 0.005) -> bool:
    """Whether `step` belongs to the warm-up, in which the gradient is clipped at three times the norm."""
    step, total, (portion,) = _checked(step, total, portion=portion)
    return step / total < portion


def learning_rate(
    step: int, total: int, *, peak: float, low: float = 1e-5, warmup_portion: float = 0.005
) -> float:
    """Learning rate: linear warm-up from 0, then half a cosine from `peak` to `low`.

    The released code chains its cosine to the last warm-up value, peak (W - 1)/W after W warm-up steps,
    instead of to `peak`: at the paper's sizes (W = 600 and more) rates differ by less than 0.2 %, but a run
    of fewer than 400 steps would never leave 0 there. This function starts the cosine at `peak`.
    """
    step, total, (warmup_portion,) = _checked(step, total, warmup_portion=warmup_portion)
    peak, low = checks.number("peak", peak), checks.number("low", low)
    if warming_up(step, total, portion=warmup_portion):
        return peak * (step / total) / warmup_portion
    warmup = _warmup_steps(total, warmup_portion)
    period = total * (1.0 - warmup_portion)
    phase = min((step - warmup) / period, 1.0) if period > 0 else 1.0
    return low + (peak - low) * (1.0 + math.cos(math.pi * phase)) / 2.0


def _checked(step: int, total: int, **portions: float) -> tuple[int, int, list[float]]:
    """Step, total and the portions as plain numbers.

    Raises:
        TypeError, ValueError: unless step >= 0, total >= 1 and portions are in [0, 1].
    """
    plain = [checks.number(name, value, 0.0, 1.0) for name, value in portions.items()]
    return checks.integer("step", step, 0, 2**53), checks.integer("total", total, 1, 2**53), plain


def _ramp(step: int, first: int, stop: int, low: float, high: float) -> float:
    """`low` before `first`, ``linspace(low, high, stop - first)`` from there, `high` from `stop` on."""
    if step < first:
        return low
    if step >= stop:
        return high
    n = stop - first
    if step == stop - 1 and n > 1:
        return high
    return low + (step - first) * ((high - low) / max(n - 1, 1))


def _warmup_steps(total: int, portion: float) -> int:
    """The number of steps with ``step / total < portion``, by that very comparison, rounding included."""
    guess = math.ceil(portion * total)
    if guess > 0 and not warming_up(guess - 1, total, portion=portion):
        return guess - 1
    return guess + 1 if warming_up(guess, total, portion=portion) else guess
