// Draws for one row of rates: counts, and the slope dz/du where an estimator gives one.
//
// Rows are padded: n_padded is a multiple of kGroup (of 64 for every instruction set), and all arrays of a row have that
// many entries. What is drawn for the padding is the caller's to ignore or zero.
//
// Most neurons are decided by their first word. Those that are not are packed side by side, and only they are looked at
// again; the list shrinks as they finish.
#pragma once

#include "rows.h"

#include "../common/arrivals.h"
#include "../common/schedule.h"

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

constexpr int kLevels = 3;      // counts up to this are decided by comparing the first word with P(Z > 0), P(Z > 1), ...
constexpr float kAlways = 2.f;  // in place of such a probability where inversion does not serve

// What the draws from one row of log rates have in common; a step's fresh draw and the next update's share it.
struct Rates {
    float* rate;      // [n_padded]
    float* survival;  // [kLevels, n_padded], for hard counts only
    static constexpr int arrays = 1 + kLevels;
};

// In two passes, whose shorter chains of dependent instructions overlap better.
inline void rates_of(const float* u, int64_t n_padded, bool hard, const Rates& rates) {
    for (int64_t k = 0; k < n_padded; k += kWidth) store(rates.rate + k, rate_of(load(u + k)));
    if (!hard) return;
    for (int64_t k = 0; k < n_padded; k += kWidth) {
        vf rate = load(rates.rate + k);
        vi large = !(rate < splat<vf>(kInversionMax));
        Inversion<vf> search = start_inversion(vf{}, rate);
#pragma GCC unroll 3
        for (int level = 0; level < kLevels; ++level) {
            if (level) advance(search, 1.f / static_cast<float>(level));
            store(rates.survival + level * n_padded + k, large ? splat<vf>(kAlways) : search.survival);
        }
    }
}

// ---- hard counts --------------------------------------------------------------------------------------------------

// Neurons of some rows whose counts the first words did not decide, packed. A row has few of them, and a search is a chain
// of instructions that wait for each other, so those of many rows go side by side.
struct Undecided {
    int64_t n, n_large;
    int32_t *at, *large_at;               // [n], [n_large] index of the count
    float *v, *rate, *p, *survival, *count;  // [n] an Inversion each
    float* large_rate;                    // [n_large] beyond inversion
    int32_t *large_neuron, *large_sample;    // [n_large]
    static constexpr int arrays = 10;
};

constexpr int kSideBySide = 4;  // searches in flight: each step of one waits for the step before
constexpr int64_t kListSlack = kSideBySide * kWidth;

inline Undecided undecided(float* scratch, int64_t capacity) {
    int64_t n = capacity + kListSlack;
    auto array = [&](int i) { return scratch + i * n; };
    return {0, 0, (int32_t*)array(0), (int32_t*)array(1), array(2), array(3), array(4), array(5), array(6), array(7),
            (int32_t*)array(8), (int32_t*)array(9)};
}

// First words and counts up to kLevels of a row; counts lie at `at` of the array that finish_hard is given.
inline void start_hard(const Rates& rates, float* counts, int64_t at, uint32_t first, int64_t n_padded,
                       const Stream& stream, Undecided& list) {
    vf one = splat<vf>(1.f), zero{};
    float* uniforms = counts + at;  // until the count takes the place
    for (int64_t k = 0; k < n_padded; k += kGroup) {
        vu words[4];
        first_words(stream, first + (uint32_t)k, words);
        for (int j = 0; j < 4; ++j) store(uniforms + k + j * kWidth, uniform<vf>(words[j]));
    }
    for (int64_t k = 0; k < n_padded; k += kWidth) {
        vf v = load(uniforms + k), last{}, count{};
        for (int level = 0; level < kLevels; ++level) {
            last = load(rates.survival + level * n_padded + k);
            count = count + (v < last ? one : zero);
        }
        store(counts + at + k, count);
        uint32_t lanes = lanes_below(v, last);
        if (!lanes) continue;
        vi index = lane_numbers() + (int32_t)(at + k);
        uint32_t large = lanes_below(one, last);
        if (__builtin_expect(large != 0, 0)) {
            pack_lanes(list.large_at + list.n_large, index, large);
            pack_lanes(list.large_rate + list.n_large, load(rates.rate + k), large);
            pack_lanes(list.large_neuron + list.n_large, lane_numbers() + (int32_t)(first + k), large);
            pack_lanes(list.large_sample + list.n_large, vi{} + (int32_t)stream.sample, large);
            list.n_large += __builtin_popcount(large);
            lanes &= ~large;
        }
        pack_lanes(list.at + list.n, index, lanes);
        pack_lanes(list.v + list.n, v, lanes);
        pack_lanes(list.rate + list.n, load(rates.rate + k), lanes);
        list.n += __builtin_popcount(lanes);
    }
}

// Takes the searches from count first - 1 to last at most. Those that end go to `counts`, the others to the front.
template <bool kStart> inline void search(Undecided& list, int first, int last, float* counts) {
    int64_t n = list.n, kept = 0;
    // Lanes beyond the end must not search on.
    for (int64_t i = 0; i < kListSlack; i += kWidth) store(list.v + n + i, splat<vf>(kAlways));
    for (int64_t i = 0; i < n; i += kListSlack) {
        Inversion<vf> s[kSideBySide];
        for (int j = 0; j < kSideBySide; ++j) {
            int64_t at = i + j * kWidth;
            if constexpr (kStart) {
                s[j] = start_inversion(load(list.v + at), load(list.rate + at));
                for (int k = 1; k <= kLevels; ++k) advance(s[j], 1.f / static_cast<float>(k));
            } else {
                s[j] = {load(list.v + at), load(list.rate + at), load(list.p + at), load(list.survival + at),
                        load(list.count + at)};
            }
        }
        for (int k = first; k <= last; ++k) {
            uint32_t going = 0;
            for (int j = 0; j < kSideBySide; ++j) going |= lanes_below(s[j].v, s[j].survival);
            if (!going) break;
            float inverse = 1.f / static_cast<float>(k);
            for (int j = 0; j < kSideBySide; ++j) advance(s[j], inverse);
        }
        for (int j = 0; j < kSideBySide && i + j * kWidth < n; ++j) {
            int64_t at = i + j * kWidth;
            uint32_t valid = first_lanes(n - at);
            uint32_t going = last < kInversionSteps ? lanes_below(s[j].v, s[j].survival) & valid : 0;
            vi index = load_index(list.at + at);
            scatter(counts, index, s[j].count, valid & ~going);
            if (!going) continue;
            pack_lanes(list.at + kept, index, going);
            pack_lanes(list.v + kept, s[j].v, going);
            pack_lanes(list.rate + kept, s[j].rate, going);
            pack_lanes(list.p + kept, s[j].p, going);
            pack_lanes(list.survival + kept, s[j].survival, going);
            pack_lanes(list.count + kept, s[j].count, going);
            kept += __builtin_popcount(going);
        }
    }
    list.n = kept;
}

// The counts that start_hard left open, and an empty list.
inline void finish_hard(Undecided& list, float* counts, const Stream& stream) {
    // Most searches are short: the rest is packed again after counts of 6 and 10.
    search<true>(list, kLevels + 1, 6, counts);
    search<false>(list, 7, 10, counts);
    search<false>(list, 11, kInversionSteps, counts);
    for (int64_t i = 0; i < list.n_large; i += kWidth) {
        uint32_t valid = first_lanes(list.n_large - i);
        vf rate = keep_first(load(list.large_rate + i), list.n_large - i);
        vf drawn = counts_by_rejection(rate, stream, (vu)load_index(list.large_neuron + i),
                                       (vu)load_index(list.large_sample + i));
        scatter(counts, load_index(list.large_at + i), drawn, valid);
    }
    list.n = list.n_large = 0;
}

// ---- relaxed counts -----------------------------------------------------------------------------------------------

// Neurons whose arrivals go on after the first, packed; see Arrivals.
struct ArrivalList {
    int32_t* neuron;   // [n]
    float* lead;       // [n] 1, or half a window where earlier arrivals were drawn at once
    float* elapsed;    // [n] at the last arrival
    float* remaining;  // [n] arrivals that n_arrivals still allows
    float* inv_rate;   // [n]
    float* count;      // [n]
    float* slope;      // [n] without its last factors
    float* total;      // [n_padded] by neuron: what the stretches before counted, where there are any
    static constexpr int arrays = 8;
};

inline ArrivalList arrival_list(float* scratch, int64_t n_padded) {
    int64_t n = n_padded + kListSlack;
    auto array = [&](int i) { return scratch + i * n; };
    return {(int32_t*)array(0), array(1), array(2), array(3), array(4), array(5), array(6), array(7)};
}

inline uint32_t active_lanes(const Arrivals<vf>& a, const Window& window) {
    return lanes_below(vf{}, a.active(window) ? splat<vf>(1.f) : vf{});
}

inline void pack_arrivals(const ArrivalList& list, int64_t at, vi neuron, vf inv_rate, const Arrivals<vf>& a, uint32_t lanes) {
    pack_lanes(list.neuron + at, neuron, lanes);
    pack_lanes(list.lead + at, a.lead, lanes);
    pack_lanes(list.elapsed + at, a.elapsed, lanes);
    pack_lanes(list.remaining + at, a.remaining, lanes);
    pack_lanes(list.inv_rate + at, inv_rate, lanes);
    pack_lanes(list.count + at, a.count, lanes);
    pack_lanes(list.slope + at, a.slope, lanes);
}

// Saturated counts of the lanes that qualify, drawn at once; arrivals of those lanes start half a window before 1.
inline void saturate(vf rate, const Window& window, const Stream& stream, uint32_t neuron, Arrivals<vf>& a) {
    vi wanted = rate * (1.f - window.half) >= splat<vf>(kSaturatedMin);
    if (__builtin_expect(!any(wanted), 1)) return;
    Stream own = saturated(stream);
    for (int i = 0; i < kWidth; ++i) {
        if (!wanted[i]) continue;
        float drawn = hard_count(rate[i] * (1.f - window.half), own, neuron + i);
        a.count[i] = drawn < a.remaining[i] ? drawn : a.remaining[i];
        a.remaining[i] -= a.count[i];
        a.lead[i] = window.half;
    }
}

// The chosen lanes start a new stretch at their last arrival: what they counted joins the neurons' totals.
inline void start_stretch(vi neuron, uint32_t lanes, bool first, float* totals, float* slopes, Arrivals<vf>& a) {
    for (uint32_t left = lanes; left; left &= left - 1) {
        int lane = __builtin_ctz(left), at = neuron[lane];
        totals[at] = first ? a.count[lane] : totals[at] + a.count[lane];
        slopes[at] = first ? a.slope[lane] : slopes[at] + a.slope[lane];
    }
    a.lead = a.lead - a.elapsed;
    a.elapsed = a.count = a.slope = vf{};
}

// Arrivals after the first, a block of four at a time. What they count is added to the saturated counts at the end: one by
// one it would be lost in the rounding of a large count.
template <Estimator kind>
inline void finish_arrivals(const ArrivalList& list, int64_t n, const Window& window, uint32_t first,
                            const Stream& stream, float* counts, float* slopes) {
    for (uint32_t block = 1; n > 0 && block < kBlocks; ++block) {
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i += kWidth) {
            Arrivals<vf> a{load(list.lead + i), load(list.elapsed + i), load(list.remaining + i), load(list.count + i),
                           load(list.slope + i)};
            vf inv_rate = load(list.inv_rate + i);
            vi neuron = load_index(list.neuron + i);
            Words<vu> words = own_words(stream, (vu)neuron + first, vu{} + stream.sample, block);
            for (int j = 0; j < 4; ++j) arrive<kind>(words.w[j], inv_rate, window, a);
            uint32_t valid = first_lanes(n - i), active = active_lanes(a, window) & valid, done = valid & ~active;
            // Lanes beyond the end may hold any index, so nothing is gathered as a vector.
            for (uint32_t left = done; left; left &= left - 1) {
                int lane = __builtin_ctz(left), at = neuron[lane];
                counts[at] += block > kStretch ? list.total[at] + a.count[lane] : a.count[lane];
                slopes[at] = block > kStretch ? slopes[at] + a.slope[lane] : a.slope[lane];
            }
            if (block % kStretch == 0) start_stretch(neuron, active, block == kStretch, list.total, slopes, a);
            pack_arrivals(list, kept, neuron, inv_rate, a, active);
            kept += __builtin_popcount(active);
        }
        n = kept;
    }
    // kMaxArrivals keeps draws far from here; nothing may run on into the words of another draw.
    for (int64_t i = 0; i < n; ++i) counts[list.neuron[i]] = slopes[list.neuron[i]] = kNaN;
}

template <Estimator kind>
inline void draw_arrivals(const Rates& rates, float* counts, float* slopes, uint32_t first, int64_t n_padded,
                          const Stream& stream, float temperature, float n_arrivals, float* scratch) {
    Window window = make_window(kind, temperature);
    ArrivalList list = arrival_list(scratch, n_padded);
    int64_t listed = 0;
    for (int64_t k = 0; k < n_padded; k += kGroup) {
        vu words[4];
        first_words(stream, first + (uint32_t)k, words);
        for (int j = 0; j < 4; ++j) {
            int64_t at = k + j * kWidth;
            vf rate = load(rates.rate + at), inv_rate = reciprocal(rate);
            Arrivals<vf> a{splat<vf>(1.f), vf{}, splat<vf>(n_arrivals), vf{}, vf{}};
            saturate(rate, window, stream, first + (uint32_t)at, a);
            // Too many arrivals for the words of a draw (or NaN, or an infinite rate): NaN, and nothing to go on with.
            vi bad = ~((a.lead + window.half) * rate <= splat<vf>(kMaxArrivals));
            vf nan = splat<vf>(kNaN), taken = bad ? nan : a.count;
            a.elapsed = bad ? nan : a.elapsed;
            a.count = vf{};
            a.slope = bad ? nan : a.slope;
            arrive<kind>(words[j], inv_rate, window, a);
            vi active = a.active(window);
            store(counts + at, active ? taken : taken + a.count);
            store(slopes + at, a.slope);
            uint32_t lanes = active_lanes(a, window);
            pack_arrivals(list, listed, lane_numbers() + (int32_t)at, inv_rate, a, lanes);
            listed += __builtin_popcount(lanes);
        }
    }
    finish_arrivals<kind>(list, listed, window, first, stream, counts, slopes);
    for (int64_t k = 0; k < n_padded; k += kWidth) {
        vf rate = load(rates.rate + k);
        store(slopes + k, slope_of_arrivals(load(slopes + k), rate, window));
    }
}

struct DrawOptions {
    Estimator estimator;
    float temperature;
    float n_arrivals;  // infinity: untruncated

    bool hard() const { return !uses_arrivals(estimator); }
};

// Floats of scratch that a draw of so many rows needs.
inline int64_t draw_scratch(int64_t rows, int64_t n_padded) {
    int64_t hard = Undecided::arrays * (rows * n_padded + kListSlack), relaxed = ArrivalList::arrays * (n_padded + kListSlack);
    return hard > relaxed ? hard : relaxed;
}

template <Estimator kind>
inline void surrogate_slopes(const float* counts, const float* rate, float* slopes, int64_t n_padded) {
    for (int64_t k = 0; k < n_padded; k += kWidth)
        store(slopes + k, surrogate_slope<kind>(load(counts + k), load(rate + k)));
}

// Counts [rows, n_padded] and, except for hard ones, slopes [rows, n_padded]. rates(r) are those of a row, whose first
// neuron is `first(r)` and whose sample is `sample(r)`, both global.
template <class RatesOf, class FirstOf, class SampleOf>
inline void draw(const DrawOptions& options, int rows, RatesOf rates, FirstOf first, SampleOf sample, float* counts,
                 float* slopes, int64_t n_padded, Stream stream, float* scratch) {
    float tau = options.temperature, cut = options.n_arrivals;
    Undecided list = undecided(scratch, rows * n_padded);
    for (int r = 0; r < rows; ++r) {
        stream.sample = sample(r);
        Rates row = rates(r);
        float *c = counts + r * n_padded, *s = slopes + r * n_padded;
        if (options.hard()) {
            start_hard(row, counts, r * n_padded, first(r), n_padded, stream, list);
            continue;
        }
        visit(options.estimator, [&](auto is) {
            constexpr Estimator kind = decltype(is)::value;
            if constexpr (uses_arrivals(kind)) draw_arrivals<kind>(row, c, s, first(r), n_padded, stream, tau, cut, scratch);
        });
    }
    if (!options.hard()) return;
    finish_hard(list, counts, stream);
    visit(options.estimator, [&](auto is) {
        constexpr Estimator kind = decltype(is)::value;
        if constexpr (kind != kHard && !uses_arrivals(kind))
            for (int r = 0; r < rows; ++r)
                surrogate_slopes<kind>(counts + r * n_padded, rates(r).rate, slopes + r * n_padded, n_padded);
    });
}

IPVAE_END
