// exp, expm1, log and the soft clamp without branches, for any lane type, so that CPU and GPU agree.
//
// Polynomials are minimax fits (Lawson's iteration at 200 Chebyshev nodes, in double). Largest errors against float64,
// over the ranges named, are measured by tests/ipvae_kernels/test_native.py and stated there.
#pragma once

#include "target.h"

IPVAE_BEGIN

template <class F> IPVAE_HD F abs(F a) { return from_bits(bits(a) & 0x7FFFFFFFu); }

// v 2^n for an integer n in [-151, 129], in two factors, so that n = 128 (infinite only after rounding) and denormal
// results come out right.
template <class F> IPVAE_HD F times_power_of_two(F v, F n) {
    lane_i<F> whole = (lane_i<F>)bits(n + 12582912.f) - 0x4B400000, half = whole >> 1;
    return v * from_bits((lane_u<F>)((half + 127) << 23)) * from_bits((lane_u<F>)((whole - half + 127) << 23));
}

// exp(x) and expm1(x) from one reduction x = n log 2 + r: expm1(x) = 2^n expm1(r) + (2^n - 1).
template <class F> struct ExpPair {
    F exp, expm1;
};

template <class F> IPVAE_HD ExpPair<F> exp_pair(F x) {
    constexpr float log2e = 1.44269504f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
    constexpr float round_magic = 12582912.f;  // 1.5 * 2^23: adding and subtracting it rounds to an integer
    // Outside [-103.9, 88.8] the result is 0 or infinite anyway.
    x = max_keep_nan(min_keep_nan(x, splat<F>(89.f)), splat<F>(-104.f));
    F n = (x * log2e + round_magic) - round_magic;
    F r = (x - n * ln2_hi) - n * ln2_lo;
    // In pairs (Estrin): the shorter chain lets more of them overlap.
    F r2 = r * r;
    F p = ((1.99156231e-4f * r + 1.39420456e-3f) * r2 + (8.33327044e-3f * r + 4.16663438e-2f)) * r2 + (0.166666672f * r + 0.5f);
    F em1 = r + r2 * p;
    F scale = times_power_of_two(splat<F>(1.f), n);
    ExpPair<F> out;
    out.exp = times_power_of_two(em1 + 1.f, n);
    // scale - 1 is inexact only where it rounds to -1 or to scale, and em1 is then below its rounding.
    out.expm1 = n < splat<F>(128.f) ? em1 * scale + (scale - 1.f) : out.exp;
    return out;
}

template <class F> IPVAE_HD F exp(F x) { return exp_pair(x).exp; }
template <class F> IPVAE_HD F expm1(F x) { return exp_pair(x).expm1; }

// log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1]
template <class F> IPVAE_HD F log1p_core(F f) {
    F p = 6.91261813e-2f * f - 0.117886446f;
    p = p * f + 0.118735291f;
    p = p * f - 0.123845719f;
    p = p * f + 0.142186165f;
    p = p * f - 0.166692376f;
    p = p * f + 0.20002228f;
    p = p * f - 0.249999866f;
    p = p * f + 0.333333105f;
    F f2 = f * f;
    return f - (0.5f * f2 - f2 * f * p);
}

constexpr float kLn2 = 0.693147182f;

// log(x) for normal x > 0
template <class F> IPVAE_HD F log(F x) {
    // Exponent e and mantissa m in [sqrt(1/2), sqrt(2)).
    lane_u<F> u = bits(x) - 0x3F3504F3u;
    lane_i<F> e = (lane_i<F>)u >> 23;
    F m = from_bits((u & 0x007FFFFFu) + 0x3F3504F3u);
    F ef = to_float(e);
    return ef * 0.693359375f + (log1p_core(m - 1.f) - ef * 2.12194440e-4f);
}

// log(1 + q) for q in [0, 1]: (1 + q) / 2 = 1 + (q - 1) / 2 exactly. Log rates and updates lie far below their ceilings,
// which leaves q below 1/64 in almost every vector: then four terms of the series do (the fifth is 1.2e-8 of the sum).
template <class F> IPVAE_HD F log1p_unit(F q) {
    if (!any(q >= splat<F>(0.015625f))) return q - q * q * (0.5f - q * (0.333333333f - q * 0.25f));
    auto low = q < splat<F>(0.414f);
    F f = low ? q : 0.5f * (q - 1.f);
    return log1p_core(f) + (low ? splat<F>(0.f) : splat<F>(kLn2));
}

// c - softplus(c - v), the soft ceiling of v at c, and its derivative sigmoid(c - v). Written as
// min(v, c) - log(1 + e^-|v - c|): no digits cancel for v far below c.
template <class F> struct SoftClamp {
    F value, slope;
};

template <class F> IPVAE_HD SoftClamp<F> soft_clamp(F v, float c) {
    F room = c - v;
    F q = exp(-abs(room)), inv = reciprocal(1.f + q);
    SoftClamp<F> out;
    out.value = min_keep_nan(v, splat<F>(c)) - log1p_unit(q);
    out.slope = room > splat<F>(0.f) ? inv : q * inv;
    return out;
}

// sin(pi y) and cos(pi y) for |y| <= 1/2
template <class F> IPVAE_HD F sinpi(F y) {
    F q = y * y;
    return y * ((((7.76594058e-2f * q - 0.598292172f) * q + 2.55007768f) * q - 5.1677103f) * q + 3.14159274f);
}
template <class F> IPVAE_HD F cospi(F y) {
    F q = y * y;
    return 1.f + q * (((0.220080659f * q - 1.33209383f) * q + 4.05845118f) * q - 4.93479538f);
}

IPVAE_END
