// Poisson draws of four neighbouring neurons, which share the Philox block of their first words.
//
// The arithmetic is that of csrc/cpu/draw.h, one neuron after the other instead of packed vectors, so counts are equal.
#pragma once

#include "thread.cuh"

#include "../common/arrivals.h"

IPVAE_BEGIN

struct DrawOptions {
    Estimator estimator;
    float temperature;
    float n_arrivals;  // infinity: untruncated
};

// Writes element `which` of four, by selection; `pick` reads it so. Loops over neurons that hold a whole sampler are not
// unrolled, since four copies would not fit the instruction cache.
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

// The arrivals of one neuron, with the sums of the stretches before.
struct NeuronArrivals : Arrivals<float> {
    float total, total_slope;
};

IPVAE_DEVICE void start_stretch(NeuronArrivals& a) {
    a.total += a.count;
    a.total_slope += a.slope;
    a.lead -= a.elapsed;
    a.elapsed = a.count = a.slope = 0.f;
}

template <Estimator kind>
IPVAE_DEVICE void relaxed_count(const DrawOptions& o, const Stream& stream, uint32_t neuron, uint32_t first_word, float rate,
                                float& count, float& slope) {
    Window window = make_window(kind, o.temperature);
    NeuronArrivals a{{1.f, 0.f, o.n_arrivals, 0.f, 0.f}, 0.f, 0.f};
    float taken = 0.f, mean = rate * (1.f - window.half);
    if (mean >= kSaturatedMin) {
        // Arrivals so early that each counts as one, all at once; the rest starts half a window before time 1.
        float drawn = hard_count(mean, saturated(stream), neuron);
        taken = drawn < a.remaining ? drawn : a.remaining;
        a.remaining = a.remaining - taken;
        a.lead = window.half;
    }
    count = slope = kNaN;
    // Too many arrivals for the words of a draw, an infinite rate, or NaN.
    if (!((a.lead + window.half) * rate <= kMaxArrivals)) return;
    float inv_rate = reciprocal(rate);
    arrive<kind, float>(first_word, inv_rate, window, a);
    for (uint32_t block = 1; a.active(window); ++block) {
        if (block == kBlocks) return;
        Words<uint32_t> words = own_words<uint32_t>(stream, neuron, stream.sample, block);
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) arrive<kind, float>(words.w[j], inv_rate, window, a);
        if (block % kStretch == 0) start_stretch(a);
    }
    count = taken + (a.total + a.count);
    slope = slope_of_arrivals(a.total_slope + a.slope, rate, window);
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
    if (!uses_arrivals(o.estimator)) count = hard_counts(stream, neuron, rate);
    visit(o.estimator, [&](auto is) {
        constexpr Estimator kind = decltype(is)::value;
        if constexpr (uses_arrivals(kind)) {
            relaxed_counts<kind>(o, stream, neuron, rate, count, slope);
        } else if constexpr (kind != kHard) {
            IPVAE_UNROLL for (int j = 0; j < 4; ++j) slope.v[j] = surrogate_slope<kind>(count.v[j], rate.v[j]);
        }
    });
}

IPVAE_END
