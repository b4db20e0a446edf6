"""exp, expm1, log and the soft clamp in float32: the text of ``csrc/common/math.h`` in Triton.

The polynomials are those of the compiled kernels, not Triton's ``tl.exp`` (which on a GPU is 2^x of a rounded
product, 5e-7 off at x = -8), so that every backend compares its draws with the same thresholds.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.44269504)
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)
_LN2 = tl.constexpr(0.693147182)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds to an integer
_SQRT_HALF = tl.constexpr(0x3F3504F3)  # the bits of sqrt(1/2)


@triton.jit
def any_of(mask):
    """Whether any element of a tile is true."""
    return tl.max(mask.to(tl.int32)) > 0


@triton.jit
def max_keep_nan(value, low):
    """The larger of value and the number low; NaN stays."""
    return tl.where(value < low, low, value)


@triton.jit
def exp_pair(x):
    """exp(x) and expm1(x) from one reduction x = n log 2 + r."""
    x = tl.where(x > 89.0, 89.0, x)
    x = tl.where(x < -104.0, -104.0, x)
    shifted = x * _LOG2E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = (((1.99156231e-4 * r + 1.39420456e-3) * r + 8.33327044e-3) * r + 4.16663438e-2) * r + 0.166666672
    p = p * r + 0.5
    em1 = r + r * r * p
    # 2^n in two factors, so that n = 128 and denormal results come out right.
    ni = shifted.to(tl.int32, bitcast=True) - 0x4B400000
    half = ni >> 1
    s1 = ((half + 127) << 23).to(tl.float32, bitcast=True)
    s2 = ((ni - half + 127) << 23).to(tl.float32, bitcast=True)
    scale = s1 * s2
    exp = (em1 + 1.0) * s1 * s2
    return exp, tl.where(n < 128.0, em1 * scale + (scale - 1.0), exp)


@triton.jit
def exp(x):
    """The exponential."""
    value, _ = exp_pair(x)
    return value


@triton.jit
def _log1p_core(f):
    """log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1]."""
    p = 6.91261813e-2 * f - 0.117886446
    p = p * f + 0.118735291
    p = p * f - 0.123845719
    p = p * f + 0.142186165
    p = p * f - 0.166692376
    p = p * f + 0.20002228
    p = p * f - 0.249999866
    p = p * f + 0.333333105
    f2 = f * f
    return f - (0.5 * f2 - f2 * f * p)


@triton.jit
def _split(x):
    """Exponent e and mantissa m - 1 of x = 2^e m, m in [sqrt(1/2), sqrt(2))."""
    bits = x.to(tl.int32, bitcast=True) - _SQRT_HALF
    mantissa = ((bits & 0x007FFFFF) + _SQRT_HALF).to(tl.float32, bitcast=True)
    return (bits >> 23).to(tl.float32), mantissa - 1.0


@triton.jit
def _join(e, f):
    return e * _LN2_HIGH + (_log1p_core(f) + e * _LN2_LOW)


@triton.jit
def log(x):
    """The logarithm of normal numbers above 0."""
    e, f = _split(x)
    return _join(e, f)


@triton.jit
def minus_log1m(v, complement):
    """-log(1 - v) of v in (0, 1), given 1 - v as well; full relative precision at both ends."""
    low = v < 0.25
    e, f = _split(complement)
    return -_join(tl.where(low, 0.0, e), tl.where(low, -v, f))


@triton.jit
def _log1p_unit(q):
    """log(1 + q) for q in [0, 1]: (1 + q) / 2 = 1 + (q - 1) / 2 exactly."""
    low = q < 0.414
    return _log1p_core(tl.where(low, q, 0.5 * (q - 1.0))) + tl.where(low, 0.0, _LN2)


@triton.jit
def soft_clamp(v, ceiling):
    """c - softplus(c - v) and its derivative sigmoid(c - v), with no digits cancelled for v far below c."""
    room = ceiling - v
    below = room > 0.0
    q = exp(tl.where(below, -room, room))
    inverse = 1.0 / (1.0 + q)
    value = tl.where(v > ceiling, ceiling, v) - _log1p_unit(q)
    return value, tl.where(below, inverse, q * inverse)


@triton.jit
def sinpi(y):
    """sin(pi y) for |y| <= 1/2."""
    q = y * y
    return y * ((((7.76594058e-2 * q - 0.598292172) * q + 2.55007768) * q - 5.1677103) * q + 3.14159274)


@triton.jit
def cospi(y):
    """cos(pi y) for |y| <= 1/2."""
    q = y * y
    return 1.0 + q * (((0.220080659 * q - 1.33209383) * q + 4.05845118) * q - 4.93479538)
