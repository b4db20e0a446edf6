// Philox4x32-10 and the packing of its counter. docs/design/randomness.md is the specification.
#pragma once

#include "math.h"

IPVAE_BEGIN

template <class U> struct Words {
    U w[4];
};

template <int kRounds = 10, class U>
IPVAE_HD Words<U> philox(U counter0, U counter1, U counter2, U counter3, uint32_t k0, uint32_t k1) {
    auto c0 = spread(counter0), c1 = spread(counter1), c2 = spread(counter2), c3 = spread(counter3);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
    for (int round = 0; round < kRounds; ++round) {
        decltype(c0) hi0, lo0, hi1, lo1;
        mulhilo(c0, 0xD2511F53u, hi0, lo0);
        mulhilo(c2, 0xCD9E8D57u, hi1, lo1);
        c0 = exclusive_or(hi1, c1, k0);
        c1 = lo1;
        c2 = exclusive_or(hi0, c3, k1);
        c3 = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{join(c0), join(c1), join(c2), join(c3)}};
}

constexpr uint32_t kSaturated = 8;  // added to a kind: the saturated count of the same relaxed draw

// Everything of a counter but the neuron and the block. Plain words, passed by value.
struct Stream {
    uint32_t k0, k1;    // seed
    uint32_t sample;    // global index of the row
    uint32_t step;      // global index of the step
    uint32_t kind_inner;  // kind << 28 | inner << 20
};

IPVAE_HD Stream make_stream(uint64_t seed, uint32_t kind, uint32_t inner, uint32_t step, uint32_t sample) {
    return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), sample, step, kind << 28 | inner << 20};
}
IPVAE_HD Stream saturated(Stream s) {
    s.kind_inner |= kSaturated << 28;
    return s;
}

constexpr uint32_t kBlocks = 1u << 20;  // blocks 0 .. kBlocks - 1 belong to one draw

// Word 0 of the four neurons 4 group .. 4 group + 3.
template <class U> IPVAE_HD Words<U> shared_words(const Stream& s, U group) {
    U zero = group ^ group;
    return philox(group, zero + s.sample, zero + s.step, zero + s.kind_inner, s.k0, s.k1);
}

// Words 4 (block - 1) + 1 .. 4 block of one neuron of one sample; block = 1, 2, ... The stream's sample is not used.
template <class U> IPVAE_HD Words<U> own_words(const Stream& s, U neuron, U sample, uint32_t block) {
    U zero = neuron ^ neuron;
    return philox(neuron, sample, zero + s.step, zero + (s.kind_inner | block), s.k0, s.k1);
}

// Uniform in the open interval (0, 1): at least 2^-33, at most 1 - 2^-24.
template <class F> IPVAE_HD F uniform(lane_u<F> w) {
    return min_keep_nan((to_float(w) + 0.5f) * 2.32830644e-10f, splat<F>(0.99999994f));
}

// Standard exponential, with full relative precision at both ends.
template <class F> IPVAE_HD F exponential(lane_u<F> w) {
    F v = uniform<F>(w), c = uniform<F>(~w);  // c = 1 - v
    auto low = v < splat<F>(0.25f);
    // One polynomial serves both: log1p(-v), or log(c) with c = 2^e (1 + f).
    lane_u<F> u = bits(c) - 0x3F3504F3u;
    F e = to_float((lane_i<F>)u >> 23);
    F f = from_bits((u & 0x007FFFFFu) + 0x3F3504F3u) - 1.f;
    e = low ? splat<F>(0.f) : e;
    f = low ? -v : f;
    return -(e * 0.693359375f + (log1p_core(f) - e * 2.12194440e-4f));
}

IPVAE_END
