// Poisson draws of four neighbouring neurons, which share the Philox block of their first words.
//
// The arithmetic is that of csrc/cpu/draw.h, one neuron after the other instead of packed vectors, so counts are equal.
#pragma once

#include "thread.cuh"

#include "../common/poisson.h"

IPVAE_BEGIN

struct DrawOptions {
    Estimator estimator;
    float temperature;
    float n_arrivals;  // infinity: untruncated
};

// Element `which` of four, read and written by selection: an array with a variable index would lie in memory. Loops over
// neurons that hold a whole sampler are not unrolled, since four copies would not fit the instruction cache.
template <class T> IPVAE_DEVICE T pick(const T (&four)[4], uint32_t which) {
    return which < 2 ? (which == 0 ? four[0] : four[1]) : (which == 2 ? four[2] : four[3]);
}
IPVAE_DEVICE void put(Quad& q, uint32_t which, float value) {
    IPVAE_UNROLL for (uint32_t j = 0; j < 4; ++j) q.v[j] = j == which ? value : q.v[j];
}

// Four searches side by side: each step of one waits for the step before.
IPVAE_DEVICE Quad hard_counts(const Stream& stream, uint32_t neuron, const Quad& rate) {
    Words<uint32_t> words = shared_words<uint32_t>(stream, neuron >> 2);
    Inversion<float> search[4];
    IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
        // Rates beyond inversion, and NaN, search nothing.
        float v = rate.v[j] < kInversionMax ? uniform<float>(words.w[j]) : 2.f;
        search[j] = start_inversion(v, rate.v[j]);
    }
    for (int k = 1; k <= kInversionSteps; ++k) {
        bool going = false;
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) going |= search[j].v < search[j].survival;
        if (!going) break;
        float inverse = 1.f / static_cast<float>(k);
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) advance(search[j], inverse);
    }
    Quad counts;
    bool large = false;
    IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
        counts.v[j] = search[j].count;
        large |= !(rate.v[j] < kInversionMax);
    }
    if (large) {
        IPVAE_NO_UNROLL for (uint32_t j = 0; j < 4; ++j) {
            float r = pick(rate.v, j);
            if (!(r < kInversionMax)) put(counts, j, counts_by_rejection<float>(r, stream, neuron + j, stream.sample));
        }
    }
    return counts;
}

// Arrivals of one neuron. Time is kept as what has elapsed since the first moment that matters, `lead` before time 1: gaps
// vanish in the rounding of a time near 1, but not in that of a time within the window.
struct Arrivals {
    float lead, elapsed, remaining, count, slope;
    float total, total_slope;  // of the stretches before

    IPVAE_DEVICE bool active(const Window& window) const { return elapsed <= lead + window.half && remaining > 0.f; }
};

template <Estimator kind>
IPVAE_DEVICE void arrive(uint32_t word, float inv_rate, const Window& window, Arrivals& a) {
    a.elapsed = a.elapsed + exponential<float>(word) * inv_rate;
    bool counted = a.active(window);
    a.remaining = a.remaining - 1.f;
    float early = a.lead - a.elapsed;  // 1 - t
    Indicated<float> f = indicator<kind>(early * window.inv_temperature);
    a.count = a.count + (counted ? f.value : 0.f);
    a.slope = a.slope + (counted ? f.derivative * (1.f - early) : 0.f);
}

IPVAE_DEVICE void start_stretch(Arrivals& a) {
    a.total += a.count;
    a.total_slope += a.slope;
    a.lead -= a.elapsed;
    a.elapsed = a.count = a.slope = 0.f;
}

template <Estimator kind>
IPVAE_DEVICE void relaxed_count(const DrawOptions& o, const Stream& stream, uint32_t neuron, uint32_t first_word, float rate,
                                float& count, float& slope) {
    Window window = make_window(kind, o.temperature);
    Arrivals a{1.f, 0.f, o.n_arrivals, 0.f, 0.f, 0.f, 0.f};
    float taken = 0.f, mean = rate * (1.f - window.half);
    if (mean >= kSaturatedMin) {
        // Arrivals so early that each counts as one, all at once; the rest starts half a window before time 1.
        Stream own = saturated(stream);
        float drawn = mean < kInversionMax
                          ? count_by_inversion(mean, pick(shared_words<uint32_t>(own, neuron >> 2).w, neuron & 3))
                          : counts_by_rejection<float>(mean, own, neuron, own.sample);
        taken = drawn < a.remaining ? drawn : a.remaining;
        a.remaining = a.remaining - taken;
        a.lead = window.half;
    }
    count = slope = kNaN;
    // Too many arrivals for the words of a draw, an infinite rate, or NaN.
    if (!((a.lead + window.half) * rate <= kMaxArrivals)) return;
    float inv_rate = reciprocal(rate);
    arrive<kind>(first_word, inv_rate, window, a);
    for (uint32_t block = 1; a.active(window); ++block) {
        if (block == kBlocks) return;
        Words<uint32_t> words = own_words<uint32_t>(stream, neuron, stream.sample, block);
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) arrive<kind>(words.w[j], inv_rate, window, a);
        if (block % kStretch == 0) start_stretch(a);
    }
    count = taken + (a.total + a.count);
    slope = (a.total_slope + a.slope) * (window.inv_temperature * ((rate - kRateFloor) * reciprocal(rate)));
}

template <Estimator kind>
IPVAE_DEVICE void relaxed_counts(const DrawOptions& o, const Stream& stream, uint32_t neuron, const Quad& rate, Quad& count,
                                 Quad& slope) {
    Words<uint32_t> words = shared_words<uint32_t>(stream, neuron >> 2);
    IPVAE_NO_UNROLL for (uint32_t j = 0; j < 4; ++j) {
        float c, s;
        relaxed_count<kind>(o, stream, neuron + j, pick(words.w, j), pick(rate.v, j), c, s);
        put(count, j, c);
        put(slope, j, s);
    }
}

// Counts, and slopes d count / d log rate (zero for hard ones), of neurons `neuron` .. `neuron` + 3, a multiple of 4.
IPVAE_DEVICE void draw_counts(const DrawOptions& o, const Stream& stream, uint32_t neuron, const Quad& rate, Quad& count,
                              Quad& slope) {
    count = slope = quad(0.f);
    switch (o.estimator) {
        case kSigmoid: return relaxed_counts<kSigmoid>(o, stream, neuron, rate, count, slope);
        case kLinear: return relaxed_counts<kLinear>(o, stream, neuron, rate, count, slope);
        case kCubic: return relaxed_counts<kCubic>(o, stream, neuron, rate, count, slope);
        case kQuintic: return relaxed_counts<kQuintic>(o, stream, neuron, rate, count, slope);
        case kCosine: return relaxed_counts<kCosine>(o, stream, neuron, rate, count, slope);
        default: break;
    }
    count = hard_counts(stream, neuron, rate);
    IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
        if (o.estimator == kFini2) slope.v[j] = surrogate_slope<kFini2>(count.v[j], rate.v[j]);
        if (o.estimator == kFini3) slope.v[j] = surrogate_slope<kFini3>(count.v[j], rate.v[j]);
    }
}

IPVAE_END
