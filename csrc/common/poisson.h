// Poisson counts, hard and relaxed, from Philox words. docs/randomness.md is the specification.
#pragma once

#include "philox.h"

IPVAE_BEGIN

constexpr float kRateFloor = 1.1920929e-07f;   // the released code adds float32's epsilon to every rate
constexpr float kInversionMax = 10.f;          // PTRS is valid from here on
constexpr int kInversionSteps = 64;            // P(count > 64 | rate 10) is below 1e-29
constexpr float kHugeRate = 281474976710656.f; // 2^48: the standard deviation is below a rounding of float32
constexpr float kSaturatedMin = 8.f;           // mean saturated count from which they are drawn at once
constexpr float kMaxArrivals = 2097152.f;      // 2^21, half of what the words of one draw allow
constexpr float kNaN = NAN;

template <class F> IPVAE_HD F rate_of(F log_rate) { return exp(log_rate) + kRateFloor; }

// Inversion on the survival side for rates < 10: the count is the number of k with v < P(Z > k). n at a time: each step of
// the search waits for the one before, so several searches go side by side.
template <int n, class F> IPVAE_HD void counts_by_inversion(const F* rate, const lane_u<F>* word, F* count) {
    F v[n], p[n], survival[n];
    for (int i = 0; i < n; ++i) {
        v[i] = uniform<F>(word[i]);
        ExpPair<F> e = exp_pair(-rate[i]);
        p[i] = e.exp;
        survival[i] = -e.expm1;
        count[i] = rate[i] - rate[i];  // 0, or NaN
    }
    for (int k = 1; k <= kInversionSteps; ++k) {
        auto going = v[0] < survival[0];
        for (int i = 1; i < n; ++i) going = going | (v[i] < survival[i]);
        if (!any(going)) break;
        float inverse = 1.f / static_cast<float>(k);
        for (int i = 0; i < n; ++i) {
            count[i] = v[i] < survival[i] ? count[i] + 1.f : count[i];
            p[i] = p[i] * (rate[i] * inverse);
            survival[i] = survival[i] - p[i];
        }
    }
}

IPVAE_HD float count_by_inversion(float rate, uint32_t word) {
    float count;
    counts_by_inversion<1>(&rate, &word, &count);
    return count;
}

// log P(Z = k) for k >= 1 in Loader's form (Fast and accurate computation of binomial probabilities, 2000): no term is
// larger than the result, so float32 stays accurate at large counts.
IPVAE_HD float log_pmf(float k, float rate) {
    float diff = k - rate, v = diff / (k + rate), deviance;
    if (v < 0.1f && v > -0.1f) {
        float q = v * v;
        deviance = diff * v + 2.f * k * v * q * (1.f / 3 + q * (1.f / 5 + q * (1.f / 7 + q * (1.f / 9))));
    } else {
        deviance = k * log(k / rate) - diff;
    }
    // log k! - (k + 1/2) log k + k - log(2 pi) / 2, whose series is short of digits for k < 4
    constexpr float first[] = {0.f, 8.10614668e-2f, 4.13406959e-2f, 2.76779257e-2f};
    float i = 1.f / k, i2 = i * i;
    float stirling = k < 4.f ? first[static_cast<int>(k)] : i * (1.f / 12 - i2 * (1.f / 360 - i2 * (1.f / 1260)));
    return -deviance - stirling - 0.5f * log(6.28318531f * k);
}

// Hoermann's transformed rejection PTRS for rate >= 10.
IPVAE_HD float count_by_rejection(float rate, const Stream& stream, uint32_t neuron) {
    if (!(rate < kHugeRate)) return rate;
    float b = 0.931f + 2.53f * ::sqrtf(rate), a = -0.059f + 0.02483f * b;
    float inv_alpha = 1.1239f + 1.1328f / (b - 3.4f), v_r = 0.9277f - 3.6224f / (b - 2.f);
    for (uint32_t block = 1; block <= 32; ++block) {
        Words<uint32_t> words = own_words(stream, neuron, block);
        for (int j = 0; j < 4; j += 2) {
            float low = uniform<float>(words.w[j]), high = uniform<float>(~words.w[j]);
            float us = low < high ? low : high, v = uniform<float>(words.w[j + 1]);
            float k = ::floorf((2.f * a / us + b) * (low - 0.5f) + rate + 0.43f);
            if (us >= 0.07f && v <= v_r) return k;
            if (k < 0.f || (us < 0.013f && v > us)) continue;
            float accept = log(v * inv_alpha / (a / (us * us) + b));
            if (accept <= (k < 1.f ? -rate : log_pmf(k, rate))) return k;
        }
    }
    return ::floorf(rate);
}

enum Estimator : int { kHard, kSigmoid, kLinear, kCubic, kQuintic, kCosine, kFini2, kFini3 };

IPVAE_HD constexpr bool uses_arrivals(Estimator e) { return e >= kSigmoid && e <= kCosine; }

// Half width of the indicator: f is 1 above it and 0 below minus it, to float32 rounding.
IPVAE_HD constexpr float half_width(Estimator e) { return e == kSigmoid ? 17.f : 1.f; }

template <class F> struct Indicated {
    F value, derivative;
};

// f(x) and f'(x) of the soft indicator of x > 0.
template <Estimator kind, class F> IPVAE_HD Indicated<F> indicator(F x) {
    if constexpr (kind == kSigmoid) {
        auto positive = x > splat<F>(0.f);
        F q = exp(positive ? -x : x), inv = 1.f / (1.f + q);
        return {positive ? inv : q * inv, q * inv * inv};
    } else {
        F w = 0.5f * x + 0.5f;
        w = w < splat<F>(0.f) ? splat<F>(0.f) : w;
        w = w > splat<F>(1.f) ? splat<F>(1.f) : w;
        F wc = 1.f - w;
        if constexpr (kind == kLinear) {
            auto inside = (w > splat<F>(0.f)) & (w < splat<F>(1.f));
            return {w, inside ? splat<F>(0.5f) : splat<F>(0.f)};
        } else if constexpr (kind == kCubic) {
            return {w * w * (3.f - 2.f * w), 3.f * w * wc};
        } else if constexpr (kind == kQuintic) {
            return {w * w * w * (w * (6.f * w - 15.f) + 10.f), 15.f * w * w * wc * wc};
        } else {
            F y = w - 0.5f;
            F slope = 0.785398163f * cospi(y);  // cos(pi y) is not exactly 0 at the ends; w (1 - w) is
            return {0.5f + 0.5f * sinpi(y), w * wc > splat<F>(0.f) ? slope : splat<F>(0.f)};
        }
    }
}

// The window of arrival times that need looking at: f = 1 before 1 - half, f = 0 after 1 + half.
struct Window {
    float half, inv_temperature;
};
IPVAE_HD Window make_window(Estimator e, float temperature) {
    return {half_width(e) * temperature, 1.f / temperature};
}

// Surrogate slopes dz/du of a hard count (He and Wu, finite-order relaxation).
template <Estimator kind, class F> IPVAE_HD F surrogate_slope(F count, F rate) {
    if constexpr (kind == kFini2) {
        return 0.5f * (count + rate);
    } else {
        constexpr float twelfth = 1.f / 12;
        return 5.f * twelfth * rate + count * (8.f * rate + 1.f - count) * (twelfth / rate);
    }
}

IPVAE_END
