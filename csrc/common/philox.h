// Philox4x32-10 and the packing of its counter. docs/randomness.md is the specification.
#pragma once

#include "math.h"

IPVAE_BEGIN

template <class U> struct Words {
    U w[4];
};

template <int kRounds = 10, class U>
IPVAE_HD Words<U> philox(U c0, U c1, U c2, U c3, uint32_t k0, uint32_t k1) {
#pragma GCC unroll 10
    for (int round = 0; round < kRounds; ++round) {
        U hi0, lo0, hi1, lo1;
        mulhilo(c0, 0xD2511F53u, hi0, lo0);
        mulhilo(c2, 0xCD9E8D57u, hi1, lo1);
        c0 = hi1 ^ c1 ^ k0;
        c1 = lo1;
        c2 = hi0 ^ c3 ^ k1;
        c3 = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// What a draw is for.
enum Kind : uint32_t { kUpdate = 0, kLoss = 1, kStandalone = 2 };
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

// Words 4 (block - 1) + 1 .. 4 block of one neuron; block = 1, 2, ...
template <class U> IPVAE_HD Words<U> own_words(const Stream& s, U neuron, uint32_t block) {
    U zero = neuron ^ neuron;
    return philox(neuron, zero + s.sample, zero + s.step, zero + (s.kind_inner | block), s.k0, s.k1);
}

// Uniform in the open interval (0, 1): at least 2^-33, at most 1 - 2^-24.
template <class F> IPVAE_HD F uniform(lane_u<F> w) {
    F v = (to_float(w) + 0.5f) * 2.32830644e-10f;
    return v > splat<F>(0.99999994f) ? splat<F>(0.99999994f) : v;
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
