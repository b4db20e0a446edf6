// The estimators of a differentiable count: their formulas, and what tells them apart. To add one: here, a row of the
// table in Python, and its twin in ipvae_kernels/poisson/relaxation.py.
#pragma once

#include "math.h"

IPVAE_BEGIN

// In the order of the table in ipvae_kernels/poisson/estimators.py, with which a test compares names and half widths.
enum Estimator : int { kHard, kSigmoid, kLinear, kCubic, kQuintic, kCosine, kFini2, kFini3 };
constexpr const char* kEstimatorNames[] = {"hard", "sigmoid", "linear", "cubic", "quintic", "cosine", "fini2", "fini3"};

IPVAE_HD constexpr bool uses_arrivals(Estimator e) { return e >= kSigmoid && e <= kCosine; }

template <Estimator kind> struct Is {
    static constexpr Estimator value = kind;
};

// Calls function(Is<kind>{}) for the estimator at hand: the one place that tells them apart at run time.
template <class Function> IPVAE_HD void visit(Estimator e, Function function) {
    switch (e) {
        case kHard: return function(Is<kHard>{});
        case kSigmoid: return function(Is<kSigmoid>{});
        case kLinear: return function(Is<kLinear>{});
        case kCubic: return function(Is<kCubic>{});
        case kQuintic: return function(Is<kQuintic>{});
        case kCosine: return function(Is<kCosine>{});
        case kFini2: return function(Is<kFini2>{});
        case kFini3: return function(Is<kFini3>{});
    }
}

// Half width of the indicator: f is 1 above it and 0 below minus it, to float32 rounding.
IPVAE_HD constexpr float half_width(Estimator e) { return e == kSigmoid ? 17.f : 1.f; }

template <class F> struct Indicated {
    F value, derivative;
};

// f(x) and f'(x) of the soft indicator of x > 0.
template <Estimator kind, class F> IPVAE_HD Indicated<F> indicator(F x) {
    if constexpr (kind == kSigmoid) {
        // Beyond 80 nothing changes but that denormal numbers slow the CPU down tenfold.
        F q = exp(-min_keep_nan(abs(x), splat<F>(80.f))), inv = reciprocal(1.f + q);
        return {x > splat<F>(0.f) ? inv : q * inv, q * inv * inv};
    } else {
        F w = min_keep_nan(max_keep_nan(0.5f * x + 0.5f, splat<F>(0.f)), splat<F>(1.f));
        F wc = 1.f - w;
        if constexpr (kind == kLinear) {
            auto inside = (w > splat<F>(0.f)) & (w < splat<F>(1.f));
            return {w, inside ? splat<F>(0.5f) : splat<F>(0.f)};
        } else if constexpr (kind == kCubic) {
            return {w * w * (3.f - 2.f * w), 3.f * w * wc};
        } else if constexpr (kind == kQuintic) {
            return {w * w * w * (w * (6.f * w - 15.f) + 10.f), 15.f * w * w * wc * wc};
        } else {
            static_assert(kind == kCosine, "an estimator without an indicator");
            F y = w - 0.5f;
            F slope = 0.785398163f * cospi(y);  // cos(pi y) is not exactly 0 at the ends; w (1 - w) is
            return {0.5f + 0.5f * sinpi(y), w * wc > splat<F>(0.f) ? slope : splat<F>(0.f)};
        }
    }
}

// Surrogate slopes dz/du of a hard count (He and Wu, finite-order relaxation).
template <Estimator kind, class F> IPVAE_HD F surrogate_slope(F count, F rate) {
    if constexpr (kind == kFini2) {
        return 0.5f * (count + rate);
    } else {
        static_assert(kind == kFini3, "an estimator without a surrogate slope");
        constexpr float twelfth = 1.f / 12;
        return 5.f * twelfth * rate + count * (8.f * rate + 1.f - count) * (twelfth / rate);
    }
}

IPVAE_END
