// Poisson counts from Philox words. docs/design/randomness.md is the specification.
#pragma once

#include "philox.h"

IPVAE_BEGIN

constexpr float kRateFloor = 1.1920929e-07f;   // the released code adds float32's epsilon to every rate
constexpr float kInversionMax = 10.f;          // PTRS is valid from here on
constexpr int kInversionSteps = 64;            // P(count > 64 | rate 10) is below 1e-29
constexpr float kHugeRate = 281474976710656.f; // 2^48: the standard deviation is below a rounding of float32
constexpr float kNaN = NAN;

template <class F> IPVAE_HD F rate_of(F log_rate) { return exp(log_rate) + kRateFloor; }

// d rate / d log rate
template <class F> IPVAE_HD F rate_slope(F rate) { return rate - kRateFloor; }

// Inversion on the survival side for rates below kInversionMax: the count is the number of k >= 0 with v < P(Z > k). A
// search stands at `count`, with p = P(Z = count) and survival = P(Z > count).
template <class F> struct Inversion {
    F v, rate, p, survival, count;
};

template <class F> IPVAE_HD Inversion<F> start_inversion(F v, F rate) {
    ExpPair<F> e = exp_pair(-rate);
    return {v, rate, e.exp, -e.expm1, rate - rate};  // 0, or NaN
}

// From a count of k - 1 on to k, where it is at least that.
template <class F> IPVAE_HD void advance(Inversion<F>& s, float inverse_k) {
    s.count = s.v < s.survival ? s.count + 1.f : s.count;
    s.p = s.p * (s.rate * inverse_k);
    s.survival = s.survival - s.p;
}

IPVAE_HD float count_by_inversion(float rate, uint32_t word) {
    Inversion<float> search = start_inversion(uniform<float>(word), rate);
    for (int k = 1; k <= kInversionSteps && search.v < search.survival; ++k) advance(search, 1.f / static_cast<float>(k));
    return search.count;
}

// log P(Z = k) for k >= 1 in Loader's form (Fast and accurate computation of binomial probabilities, 2000): no term is
// larger than the result, so float32 stays accurate at large counts.
template <class F> IPVAE_HD F log_pmf(F k, F rate) {
    F diff = k - rate, v = diff / (k + rate), q = v * v;
    F near = diff * v + 2.f * k * v * q * (1.f / 3 + q * (1.f / 5 + q * (1.f / 7 + q * (1.f / 9))));
    F deviance = q < splat<F>(0.01f) ? near : k * log(k / rate) - diff;
    // log k! - (k + 1/2) log k + k - log(2 pi) / 2, whose series is short of digits for k < 4
    F i = 1.f / k, i2 = i * i;
    F stirling = i * (1.f / 12 - i2 * (1.f / 360 - i2 * (1.f / 1260)));
    stirling = k < splat<F>(4.f) ? splat<F>(2.76779257e-2f) : stirling;
    stirling = k < splat<F>(3.f) ? splat<F>(4.13406959e-2f) : stirling;
    stirling = k < splat<F>(2.f) ? splat<F>(8.10614668e-2f) : stirling;
    return -deviance - stirling - 0.5f * log(6.28318531f * k);
}

// Hoermann's transformed rejection PTRS for rates of kInversionMax and more; what comes out below is not a count.
template <class F>
IPVAE_HD F counts_by_rejection(F rate, const Stream& stream, lane_u<F> neuron, lane_u<F> sample) {
    F b = 0.931f + 2.53f * square_root(rate), a = -0.059f + 0.02483f * b;
    F inv_alpha = 1.1239f + 1.1328f / (b - 3.4f), v_r = 0.9277f - 3.6224f / (b - 2.f);
    F count = rate;
    auto pending = (rate >= splat<F>(kInversionMax)) & (rate < splat<F>(kHugeRate));
    for (uint32_t block = 1; block <= 32 && any(pending); ++block) {
        Words<lane_u<F>> words = own_words(stream, neuron, sample, block);
        for (int j = 0; j < 4; j += 2) {
            F low = uniform<F>(words.w[j]), high = uniform<F>(~words.w[j]);
            F us = min_keep_nan(low, high), v = uniform<F>(words.w[j + 1]);
            F k = round_down((2.f * a / us + b) * (low - 0.5f) + rate + 0.43f);
            auto accepted = (us >= splat<F>(0.07f)) & (v <= v_r);
            auto looked_at = pending & !accepted & (k >= splat<F>(0.f)) & ((us >= splat<F>(0.013f)) | (v <= us));
            if (any(looked_at)) {
                F ratio = log(v * inv_alpha / (a / (us * us) + b));
                F log_p = k < splat<F>(1.f) ? -rate : log_pmf(max_keep_nan(k, splat<F>(1.f)), rate);
                accepted = accepted | (looked_at & (ratio <= log_p));
            }
            count = (pending & accepted) ? k : count;
            pending = pending & !accepted;
        }
    }
    return pending ? round_down(rate) : count;
}

// Element `which` of four, by selection: on a GPU an array with a variable index would lie in memory.
template <class T> IPVAE_HD T pick(const T (&four)[4], uint32_t which) {
    return which < 2 ? (which == 0 ? four[0] : four[1]) : (which == 2 ? four[2] : four[3]);
}

// The hard count of one neuron.
IPVAE_HD float hard_count(float rate, const Stream& stream, uint32_t neuron) {
    if (rate < kInversionMax) return count_by_inversion(rate, pick(shared_words<uint32_t>(stream, neuron >> 2).w, neuron & 3));
    return counts_by_rejection<float>(rate, stream, neuron, stream.sample);
}

IPVAE_END
