"""Poisson counts and relaxed counts of a tile of log rates: the text of ``csrc/common`` in Triton.

A Triton program is one control flow for its whole tile. So searches run until the last neuron of the tile is
done, and rare paths (rates of 10 and more, many arrivals) are skipped by a tile that does not need them.
"""

import triton
import triton.language as tl

from ...poisson.estimators import COMPILED, half_width
from .math import any_of, cospi, exp, exp_pair, log, sinpi
from .philox import BLOCKS, complement, exponential, first_words, own_words, uniform

HARD = tl.constexpr(COMPILED.index("hard"))
SIGMOID = tl.constexpr(COMPILED.index("sigmoid"))
LINEAR = tl.constexpr(COMPILED.index("linear"))
CUBIC = tl.constexpr(COMPILED.index("cubic"))
QUINTIC = tl.constexpr(COMPILED.index("quintic"))
COSINE = tl.constexpr(COMPILED.index("cosine"))
FINI2 = tl.constexpr(COMPILED.index("fini2"))
FINI3 = tl.constexpr(COMPILED.index("fini3"))
EXPECTED = tl.constexpr(-1)  # no estimator: the rate in place of a count

_WIDE = tl.constexpr(half_width("sigmoid"))  # of the indicator; of the others 1
_RATE_FLOOR = tl.constexpr(1.1920929e-07)
_INVERSION_MAX = tl.constexpr(10.0)
_INVERSION_STEPS = tl.constexpr(64)
_UNROLL = tl.constexpr(4)  # steps of the search between two looks at the whole tile
_HUGE_RATE = tl.constexpr(281474976710656.0)
_TRIAL_BLOCKS = tl.constexpr(32)  # of two trials each
_SATURATED = tl.constexpr(0x80000000)  # kind + 8, in the counter's high word
_SATURATED_MIN = tl.constexpr(8.0)
_ARRIVALS_MAX = tl.constexpr(2097152.0)
_STRETCH = tl.constexpr(64)  # blocks of arrivals after which new sums are started


@triton.jit
def rate_of(log_rate):
    """The rate of a log rate, floored as in the released code."""
    return exp(log_rate) + _RATE_FLOOR


@triton.jit
def _by_inversion(rate, word):
    """Counts of rates < 10: the number of k with v < P(count > k)."""
    v = uniform(word)
    p, survival = exp_pair(-rate)
    survival = -survival
    count = rate - rate  # 0, or NaN
    k = 0
    while (k < _INVERSION_STEPS) & any_of(v < survival):
        for _ in tl.static_range(_UNROLL):
            k += 1
            count = tl.where(v < survival, count + 1.0, count)
            p = p * (rate * (1.0 / k))
            survival = survival - p
    return count


@triton.jit
def _log_pmf(k, rate):
    """log P(count = k) for k >= 1 in Loader's form: no term is larger than the result."""
    difference = k - rate
    v = difference / (k + rate)
    q = v * v
    near = difference * v + 2.0 * k * v * q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9))))
    deviance = tl.where(tl.abs(v) < 0.1, near, k * log(k / rate) - difference)
    i = 1.0 / k
    i2 = i * i
    # log k! - (k + 1/2) log k + k - log(2 pi) / 2, whose series is short of digits for k < 4
    stirling = i * (1.0 / 12 - i2 * (1.0 / 360 - i2 * (1.0 / 1260)))
    stirling = tl.where(k < 4.0, 2.76779257e-2, stirling)
    stirling = tl.where(k < 3.0, 4.13406959e-2, stirling)
    stirling = tl.where(k < 2.0, 8.10614668e-2, stirling)
    return -deviance - stirling - 0.5 * log(6.28318531 * k)


@triton.jit
def _trial(rate, count, searching, word_u, word_v):
    """One trial of Hoermann's transformed rejection PTRS for the neurons still searching."""
    b = 0.931 + 2.53 * tl.sqrt_rn(rate)
    a = -0.059 + 0.02483 * b
    inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
    squeeze = 0.9277 - 3.6224 / (b - 2.0)
    low = uniform(word_u)
    us = tl.minimum(low, uniform(complement(word_u)))
    v = uniform(word_v)
    k = tl.floor((2.0 * a / us + b) * (low - 0.5) + rate + 0.43)
    log_p = tl.where(k < 1.0, -rate, _log_pmf(tl.maximum(k, 1.0), rate))
    inside = (k >= 0.0) & ~((us < 0.013) & (v > us))
    accept = ((us >= 0.07) & (v <= squeeze)) | (
        inside & (log(v * inverse_alpha / (a / (us * us) + b)) <= log_p)
    )
    return tl.where(searching & accept, k, count), searching & ~accept


@triton.jit
def _by_rejection(rate, k0, k1, sample, step, high, neuron):
    """Counts of rates >= 10; smaller ones are left alone."""
    count = tl.where(rate < _HUGE_RATE, tl.floor(rate), rate)
    searching = (rate >= _INVERSION_MAX) & (rate < _HUGE_RATE)
    rate = tl.where(searching, rate, _INVERSION_MAX)
    block = 1
    while (block <= _TRIAL_BLOCKS) & any_of(searching):
        a, b, c, d = own_words(k0, k1, sample, step, high, neuron, block)
        count, searching = _trial(rate, count, searching, a, b)
        count, searching = _trial(rate, count, searching, c, d)
        block += 1
    return count


@triton.jit
def _hard(rate, k0, k1, sample, step, high, first, N: tl.constexpr):
    """Hard counts of rates [R, N]."""
    large = rate >= _INVERSION_MAX
    word = first_words(k0, k1, sample, step, high, first, N)
    count = _by_inversion(tl.where(large, 0.0, rate), word)
    if any_of(large):
        neuron = (first + tl.arange(0, N)).to(tl.uint32)[None, :]
        count = tl.where(large, _by_rejection(rate, k0, k1, sample, step, high, neuron), count)
    return count


@triton.jit
def _indicator(x, ESTIMATOR: tl.constexpr):
    """f(x) and f'(x) of the soft indicator of x > 0."""
    if ESTIMATOR == SIGMOID:
        positive = x > 0.0
        q = exp(tl.where(positive, -x, x))
        inverse = 1.0 / (1.0 + q)
        value = tl.where(positive, inverse, q * inverse)
        derivative = q * inverse * inverse
    else:
        w = 0.5 * x + 0.5
        w = tl.where(w < 0.0, 0.0, w)
        w = tl.where(w > 1.0, 1.0, w)
        wc = 1.0 - w
        if ESTIMATOR == LINEAR:
            value = w
            derivative = tl.where((w > 0.0) & (w < 1.0), 0.5, 0.0)
        elif ESTIMATOR == CUBIC:
            value = w * w * (3.0 - 2.0 * w)
            derivative = 3.0 * w * wc
        elif ESTIMATOR == QUINTIC:
            value = w * w * w * (w * (6.0 * w - 15.0) + 10.0)
            derivative = 15.0 * w * w * wc * wc
        else:
            tl.static_assert(ESTIMATOR == COSINE)
            value = 0.5 + 0.5 * sinpi(w - 0.5)
            # cos(pi y) is not exactly 0 at the ends; w (1 - w) is
            derivative = tl.where(w * wc > 0.0, 0.785398163 * cospi(w - 0.5), 0.0)
    return value, derivative


@triton.jit
def _within(elapsed, lead, half, left, LIMITED: tl.constexpr):
    """Which arrivals count: those within the window and, where their number is limited, while any is left."""
    within = elapsed <= lead + half
    if LIMITED:
        within = within & (left > 0.0)
    return within


@triton.jit
def _arrive(
    word,
    inverse_rate,
    lead,
    half,
    inverse_temperature,
    elapsed,
    left,
    count,
    slope,
    LIMITED: tl.constexpr,
    ESTIMATOR: tl.constexpr,
):
    """One more arrival of every neuron: its share of count and slope, where it comes within the window."""
    elapsed = elapsed + exponential(word) * inverse_rate
    counted = _within(elapsed, lead, half, left, LIMITED)
    early = lead - elapsed
    value, derivative = _indicator(early * inverse_temperature, ESTIMATOR)
    count = count + tl.where(counted, value, 0.0)
    slope = slope + tl.where(counted, derivative * (1.0 - early), 0.0)
    if LIMITED:
        left = left - 1.0
    return elapsed, left, count, slope


@triton.jit
def _relaxed(
    u,
    rate,
    k0,
    k1,
    sample,
    step,
    high,
    first,
    temperature,
    n_arrivals,
    N: tl.constexpr,
    ESTIMATOR: tl.constexpr,
):
    """Relaxed counts and their slopes, [R, N].

    Time is kept relative to the start of the window and, where arrivals are many, of the current stretch.
    """
    LIMITED: tl.constexpr = n_arrivals is not None
    half = (_WIDE if ESTIMATOR == SIGMOID else 1.0) * temperature
    inverse_temperature = 1.0 / temperature
    zero = tl.zeros_like(rate)
    saturated = zero
    lead = zero + 1.0
    busy = rate * (1.0 - half) >= _SATURATED_MIN
    if any_of(busy):
        means = tl.where(busy, rate * (1.0 - half), 0.0)
        many = _hard(means, k0, k1, sample, step, high | _SATURATED, first, N)
        if LIMITED:
            many = tl.minimum(many, n_arrivals)
        saturated = tl.where(busy, many, 0.0)
        lead = tl.where(busy, half, 1.0)
    # Too many arrivals for the words of a draw (or NaN, or an infinite rate): NaN, and nothing to go on with.
    poison = tl.where((lead + half) * rate <= _ARRIVALS_MAX, zero, float("nan"))
    saturated += poison
    inverse_rate = 1.0 / rate
    word = first_words(k0, k1, sample, step, high, first, N)
    left = n_arrivals - saturated if LIMITED else inverse_temperature  # there unused
    elapsed, left, count, slope = _arrive(
        word,
        inverse_rate,
        lead,
        half,
        inverse_temperature,
        poison,
        left,
        zero,
        poison,
        LIMITED,
        ESTIMATOR,
    )
    neuron = (first + tl.arange(0, N)).to(tl.uint32)[None, :]
    total, total_slope = zero, zero  # of the stretches before
    block = 1
    while (block < BLOCKS) & any_of(_within(elapsed, lead, half, left, LIMITED)):
        a, b, c, d = own_words(k0, k1, sample, step, high, neuron, block)
        for lane in range(4):  # not unrolled: four arrivals side by side take registers that others need
            word = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
            elapsed, left, count, slope = _arrive(
                word,
                inverse_rate,
                lead,
                half,
                inverse_temperature,
                elapsed,
                left,
                count,
                slope,
                LIMITED,
                ESTIMATOR,
            )
        if block % _STRETCH == 0:
            total += count
            total_slope += slope
            lead -= elapsed
            elapsed, count, slope = zero, zero, zero
        block += 1
    # _ARRIVALS_MAX keeps draws far from the end of their words; none may use those of another draw.
    count = tl.where(_within(elapsed, lead, half, left, LIMITED), float("nan"), count)
    slope = (total_slope + slope) * (inverse_temperature * (exp(u) * inverse_rate))
    return saturated + (total + count), slope


@triton.jit
def draw(
    u, k0, k1, sample, step, high, first, temperature, n_arrivals, N: tl.constexpr, ESTIMATOR: tl.constexpr
):
    """Counts and slopes d count / d log rate of log rates u, [R, N].

    Args:
        u: log rates of the neurons first .. first + N - 1, float32 [R, N].
        k0: the stream, as all four that follow; see ``philox.py``.
        k1: of the key.
        sample: uint32 [R, 1].
        step: uint32.
        high: uint32.
        first: a multiple of 4.
        temperature: float32.
        n_arrivals: float32, or None.
        N: a multiple of 4.
        ESTIMATOR: one of the constants above.
    """
    rate = rate_of(u)
    if ESTIMATOR == EXPECTED:
        count = rate
        slope = rate - _RATE_FLOOR
    elif ESTIMATOR == HARD or ESTIMATOR >= FINI2:
        count = _hard(rate, k0, k1, sample, step, high, first, N)
        slope = tl.zeros_like(rate)
        if ESTIMATOR == FINI2:
            slope = 0.5 * (count + rate)
        elif ESTIMATOR == FINI3:
            slope = 0.416666667 * rate + count * (8.0 * rate + 1.0 - count) * (0.0833333333 / rate)
        else:
            tl.static_assert(ESTIMATOR == HARD)
    else:
        count, slope = _relaxed(
            u, rate, k0, k1, sample, step, high, first, temperature, n_arrivals, N, ESTIMATOR
        )
    return count, slope
