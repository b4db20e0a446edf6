// Draws for one row of log rates: counts, and the slope dz/du where an estimator gives one.
//
// Rows are padded: n_padded is a multiple of kGroup (of 64 for every instruction set), and both u and the outputs have
// that many entries. What is drawn for the padding is the caller's to ignore or zero.
#pragma once

#include "simd.h"

#include "../common/poisson.h"

IPVAE_BEGIN

// Transposes the four words of each lane's block, so that out[j] holds word 0 of the neurons
// first + j kWidth .. first + (j + 1) kWidth - 1. Interleaving works within 128 bits; group_of_lane makes up for it by
// giving lane 4 L + p the block p kWidth / 4 + L.
IPVAE_HD vu group_of_lane() {
    vu g{};
    for (int i = 0; i < kWidth; ++i) g[i] = (i & 3) * (kWidth / 4) + (i >> 2);
    return g;
}

IPVAE_HD void transpose(const Words<vu>& in, vu out[4]) {
#if defined(__AVX512F__)
    __m512i a = _mm512_unpacklo_epi32((__m512i)in.w[0], (__m512i)in.w[1]);
    __m512i b = _mm512_unpacklo_epi32((__m512i)in.w[2], (__m512i)in.w[3]);
    __m512i c = _mm512_unpackhi_epi32((__m512i)in.w[0], (__m512i)in.w[1]);
    __m512i d = _mm512_unpackhi_epi32((__m512i)in.w[2], (__m512i)in.w[3]);
    out[0] = (vu)_mm512_unpacklo_epi64(a, b);
    out[1] = (vu)_mm512_unpackhi_epi64(a, b);
    out[2] = (vu)_mm512_unpacklo_epi64(c, d);
    out[3] = (vu)_mm512_unpackhi_epi64(c, d);
#elif defined(__AVX2__)
    __m256i a = _mm256_unpacklo_epi32((__m256i)in.w[0], (__m256i)in.w[1]);
    __m256i b = _mm256_unpacklo_epi32((__m256i)in.w[2], (__m256i)in.w[3]);
    __m256i c = _mm256_unpackhi_epi32((__m256i)in.w[0], (__m256i)in.w[1]);
    __m256i d = _mm256_unpackhi_epi32((__m256i)in.w[2], (__m256i)in.w[3]);
    out[0] = (vu)_mm256_unpacklo_epi64(a, b);
    out[1] = (vu)_mm256_unpackhi_epi64(a, b);
    out[2] = (vu)_mm256_unpacklo_epi64(c, d);
    out[3] = (vu)_mm256_unpackhi_epi64(c, d);
#else
    for (int p = 0; p < 4; ++p)
        for (int i = 0; i < kWidth; ++i) out[p][i] = in.w[i & 3][(i & ~3) + p];
#endif
}

// Word 0 of the kGroup neurons from `first`, a multiple of 4.
IPVAE_HD void first_words(const Stream& stream, uint32_t first, vu out[4]) {
    transpose(shared_words(stream, group_of_lane() + (first >> 2)), out);
}

// Neurons of one row whose arrivals go on after the first, packed.
//
// Time is kept as what has elapsed since the first moment that matters, `lead` before time 1: at a rate of 10^8 and a
// window of 10^-3, gaps vanish in the rounding of a time near 1, but not in that of a time within the window.
struct ArrivalList {
    int32_t* neuron;   // [n]
    float* lead;       // [n] 1, or half a window where earlier arrivals were drawn at once
    float* elapsed;    // [n] at the last arrival
    float* remaining;  // [n] arrivals that n_arrivals still allows
    float* rate;       // [n]
    float* count;      // [n]
    float* slope;      // [n] without its last factors
    static constexpr int arrays = 7;
};

IPVAE_HD ArrivalList arrival_list(float* scratch, int64_t n_padded) {
    ArrivalList list;
    list.neuron = (int32_t*)scratch;
    list.lead = scratch + n_padded;
    list.elapsed = scratch + 2 * n_padded;
    list.remaining = scratch + 3 * n_padded;
    list.rate = scratch + 4 * n_padded;
    list.count = scratch + 5 * n_padded;
    list.slope = scratch + 6 * n_padded;
    return list;
}

inline void draw_hard(const float* u, float* counts, uint32_t first, int64_t n_padded, const Stream& stream) {
    for (int64_t k = 0; k < n_padded; k += kGroup) {
        vu words[4];
        first_words(stream, first + (uint32_t)k, words);
        vf rate[4], count[4];
        for (int j = 0; j < 4; ++j) rate[j] = rate_of(load(u + k + j * kWidth));
        counts_by_inversion<4>(rate, words, count);
        for (int j = 0; j < 4; ++j) {
            int64_t at = k + j * kWidth;
            store(counts + at, count[j]);
            // Rates of 10 and more, rare in a trained model, go one by one.
            vi large = rate[j] >= splat<vf>(kInversionMax);
            if (__builtin_expect(!any(large), 1)) continue;
            for (int i = 0; i < kWidth; ++i)
                if (large[i]) counts[at + i] = count_by_rejection(rate[j][i], stream, first + (uint32_t)at + i);
        }
    }
}

template <Estimator kind>
inline void draw_surrogate(const float* u, float* counts, float* slopes, uint32_t first, int64_t n_padded,
                           const Stream& stream) {
    draw_hard(u, counts, first, n_padded, stream);
    for (int64_t k = 0; k < n_padded; k += kWidth)
        store(slopes + k, surrogate_slope<kind>(load(counts + k), rate_of(load(u + k))));
}

// The arrivals of kWidth neurons so far.
struct Arrivals {
    vf lead, elapsed, remaining, count, slope;

    vi active(const Window& window) const {
        return (elapsed <= lead + window.half) & (remaining > splat<vf>(0.f));
    }
};

// One more arrival in each lane: its share of the count and of the slope, where it comes before the window's end.
template <Estimator kind> IPVAE_HD void arrive(vu word, vf inv_rate, const Window& window, Arrivals& a) {
    a.elapsed = a.elapsed + exponential<vf>(word) * inv_rate;
    vi counted = a.active(window);
    a.remaining = a.remaining - 1.f;
    vf early = a.lead - a.elapsed;  // 1 - t
    Indicated<vf> f = indicator<kind>(early * window.inv_temperature);
    vf zero = splat<vf>(0.f);
    a.count = a.count + (counted ? f.value : zero);
    a.slope = a.slope + (counted ? f.derivative * (1.f - early) : zero);
}

// Saturated counts of the lanes that qualify, drawn at once; arrivals of those lanes start half a window before 1.
inline void saturate(vf rate, const Window& window, const Stream& stream, uint32_t neuron, Arrivals& a) {
    vi wanted = rate * (1.f - window.half) >= splat<vf>(kSaturatedMin);
    if (__builtin_expect(!any(wanted), 1)) return;
    Stream own = saturated(stream);
    for (int i = 0; i < kWidth; ++i) {
        if (!wanted[i]) continue;
        float mean = rate[i] * (1.f - window.half);
        uint32_t n = neuron + i;
        float drawn = mean < kInversionMax
                          ? count_by_inversion(mean, shared_words<uint32_t>(own, n >> 2).w[n & 3])
                          : count_by_rejection(mean, own, n);
        a.count[i] = drawn < a.remaining[i] ? drawn : a.remaining[i];
        a.remaining[i] -= a.count[i];
        a.lead[i] = window.half;
    }
}

// Arrivals after the first, a block of four at a time, on a list that shrinks as neurons pass the window's end. What they
// count is added to the saturated counts at the end: one by one it would be lost in the rounding of a large count.
template <Estimator kind>
inline void finish_arrivals(ArrivalList list, int64_t n, const Window& window, uint32_t first, const Stream& stream,
                            float* counts, float* slopes) {
    for (uint32_t block = 1; n > 0; ++block) {
        // kMaxArrivals keeps draws far from here; nothing may run on into the words of another draw.
        bool spent = block == kBlocks;
        for (int64_t i = 0; i < n && !spent; i += kWidth) {
            Arrivals a{load(list.lead + i), load(list.elapsed + i), load(list.remaining + i), load(list.count + i),
                       load(list.slope + i)};
            vf inv_rate = 1.f / load(list.rate + i);
            vu neuron = (vu)(*(const vi_unaligned*)(list.neuron + i)) + first;
            Words<vu> words = own_words(stream, neuron, block);
            for (int j = 0; j < 4; ++j) arrive<kind>(words.w[j], inv_rate, window, a);
            store(list.elapsed + i, a.elapsed);
            store(list.remaining + i, a.remaining);
            store(list.count + i, a.count);
            store(list.slope + i, a.slope);
        }
        int64_t kept = 0;
        for (int64_t i = 0; i < n; ++i) {
            int32_t k = list.neuron[i];
            if (spent || !(list.elapsed[i] <= list.lead[i] + window.half && list.remaining[i] > 0.f)) {
                counts[k] += spent ? kNaN : list.count[i];
                slopes[k] = spent ? kNaN : list.slope[i];
                continue;
            }
            list.neuron[kept] = k;
            list.lead[kept] = list.lead[i];
            list.elapsed[kept] = list.elapsed[i];
            list.remaining[kept] = list.remaining[i];
            list.rate[kept] = list.rate[i];
            list.count[kept] = list.count[i];
            list.slope[kept] = list.slope[i];
            ++kept;
        }
        n = kept;
    }
}

template <Estimator kind>
inline void draw_arrivals(const float* u, float* counts, float* slopes, uint32_t first, int64_t n_padded,
                          const Stream& stream, float temperature, float n_arrivals, float* scratch) {
    Window window = make_window(kind, temperature);
    ArrivalList list = arrival_list(scratch, n_padded);
    int64_t listed = 0;
    for (int64_t k = 0; k < n_padded; k += kGroup) {
        vu words[4];
        first_words(stream, first + (uint32_t)k, words);
        for (int j = 0; j < 4; ++j) {
            int64_t at = k + j * kWidth;
            vf rate = rate_of(load(u + at));
            Arrivals a{splat<vf>(1.f), vf{}, splat<vf>(n_arrivals), vf{}, vf{}};
            saturate(rate, window, stream, first + (uint32_t)at, a);
            // Too many arrivals for the words of a draw (or NaN, or an infinite rate): NaN, and nothing to go on with.
            vi bad = ~((a.lead + window.half) * rate <= splat<vf>(kMaxArrivals));
            vf nan = splat<vf>(kNaN), taken = bad ? nan : a.count;
            a.elapsed = bad ? nan : a.elapsed;
            a.count = vf{};
            a.slope = bad ? nan : a.slope;
            arrive<kind>(words[j], 1.f / rate, window, a);
            vi active = a.active(window);
            store(counts + at, active ? taken : taken + a.count);
            store(slopes + at, a.slope);
            if (!any(active)) continue;
            for (int i = 0; i < kWidth; ++i) {
                if (!active[i]) continue;
                list.neuron[listed] = (int32_t)at + i;
                list.lead[listed] = a.lead[i];
                list.elapsed[listed] = a.elapsed[i];
                list.remaining[listed] = a.remaining[i];
                list.rate[listed] = rate[i];
                list.count[listed] = a.count[i];
                list.slope[listed] = a.slope[i];
                ++listed;
            }
        }
    }
    finish_arrivals<kind>(list, listed, window, first, stream, counts, slopes);
    for (int64_t k = 0; k < n_padded; k += kWidth) {
        vf rate = exp(load(u + k));
        store(slopes + k, load(slopes + k) * (window.inv_temperature * (rate / (rate + kRateFloor))));
    }
}

struct DrawOptions {
    Estimator estimator;
    float temperature;
    float n_arrivals;  // infinity: untruncated
};

// Floats of scratch that a draw of a row needs.
inline int64_t draw_scratch(int64_t n_padded) { return ArrivalList::arrays * n_padded; }

// Counts [n_padded] and, except for hard ones, slopes [n_padded] of the row that starts at global neuron `first`.
inline void draw(const DrawOptions& options, const float* u, float* counts, float* slopes, uint32_t first,
                 int64_t n_padded, const Stream& stream, float* scratch) {
    float tau = options.temperature, cut = options.n_arrivals;
    switch (options.estimator) {
        case kHard: return draw_hard(u, counts, first, n_padded, stream);
        case kFini2: return draw_surrogate<kFini2>(u, counts, slopes, first, n_padded, stream);
        case kFini3: return draw_surrogate<kFini3>(u, counts, slopes, first, n_padded, stream);
        case kSigmoid: return draw_arrivals<kSigmoid>(u, counts, slopes, first, n_padded, stream, tau, cut, scratch);
        case kLinear: return draw_arrivals<kLinear>(u, counts, slopes, first, n_padded, stream, tau, cut, scratch);
        case kCubic: return draw_arrivals<kCubic>(u, counts, slopes, first, n_padded, stream, tau, cut, scratch);
        case kQuintic: return draw_arrivals<kQuintic>(u, counts, slopes, first, n_padded, stream, tau, cut, scratch);
        case kCosine: return draw_arrivals<kCosine>(u, counts, slopes, first, n_padded, stream, tau, cut, scratch);
    }
}

IPVAE_END
