// SIMD lane types for the CPU, on the vector extensions of GCC and Clang. The width follows the instruction set this
// file is compiled for; intrinsics appear only where the extensions have no word for an instruction.
//
// Include this before the headers of csrc/common: their templates must see the overloads for vectors, which argument-
// dependent lookup does not find (vector types belong to no namespace).
#pragma once

#include "../common/target.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define IPVAE_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define IPVAE_VECTOR_BYTES 32
#else
#define IPVAE_VECTOR_BYTES 16
#endif

IPVAE_BEGIN

typedef float vf __attribute__((vector_size(IPVAE_VECTOR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(IPVAE_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(IPVAE_VECTOR_BYTES)));
typedef float vf_unaligned __attribute__((vector_size(IPVAE_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(IPVAE_VECTOR_BYTES), aligned(4), may_alias));

constexpr int kWidth = IPVAE_VECTOR_BYTES / 4;
constexpr int kGroup = 4 * kWidth;  // neurons whose first words come from one vector evaluation of Philox

template <> struct lane<vf> {
    using U = vu;
    using I = vi;
    static constexpr int width = kWidth;
};

template <> IPVAE_HD vf splat<vf>(float v) { return v - vf{}; }
IPVAE_HD vu bits(vf v) { return (vu)v; }
IPVAE_HD vf from_bits(vu u) { return (vf)u; }
IPVAE_HD vf to_float(vu u) { return __builtin_convertvector(u, vf); }
IPVAE_HD vf to_float(vi i) { return __builtin_convertvector(i, vf); }

IPVAE_HD vf load(const float* p) { return *(const vf_unaligned*)p; }
// bfloat16 is the upper half of a float.
typedef uint16_t vh_unaligned __attribute__((vector_size(IPVAE_VECTOR_BYTES / 2), aligned(2), may_alias));
IPVAE_HD vf load(const uint16_t* p) { return from_bits(__builtin_convertvector(*(const vh_unaligned*)p, vu) << 16); }
IPVAE_HD float widened(float v) { return v; }
IPVAE_HD float widened(uint16_t v) { return from_bits((uint32_t)v << 16); }
IPVAE_HD void store(float* p, vf v) { *(vf_unaligned*)p = v; }

IPVAE_HD bool any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    int32_t seen = 0;
    for (int i = 0; i < kWidth; ++i) seen |= mask[i];
    return seen != 0;
#endif
}

IPVAE_HD float sum(vf v) {
    float lanes[kWidth];
    store(lanes, v);
    for (int step = kWidth / 2; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    return lanes[0];
}

IPVAE_HD vf min_keep_nan(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps((__m512)b, (__m512)a);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)b, (__m256)a);
#else
    return b < a ? b : a;
#endif
}
IPVAE_HD vf max_keep_nan(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)b, (__m512)a);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)b, (__m256)a);
#else
    return a < b ? b : a;
#endif
}
IPVAE_HD vf square_root(vf a) {
#if defined(__AVX512F__)
    return (vf)_mm512_sqrt_ps((__m512)a);
#elif defined(__AVX2__)
    return (vf)_mm256_sqrt_ps((__m256)a);
#else
    for (int i = 0; i < kWidth; ++i) a[i] = ::sqrtf(a[i]);
    return a;
#endif
}
IPVAE_HD vf round_down(vf a) {
#if defined(__AVX512F__)
    return (vf)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    for (int i = 0; i < kWidth; ++i) a[i] = ::floorf(a[i]);
    return a;
#endif
}
IPVAE_HD vf reciprocal(vf a) {
#if defined(__AVX512F__)
    // 14 bits, doubled by a step of Newton's: a third of the cost of a division.
    vf estimate = (vf)_mm512_rcp14_ps((__m512)a);
    return estimate + estimate * (1.f - a * estimate);
#else
    return 1.f / a;
#endif
}
#if defined(__AVX512F__)
IPVAE_HD vf times_power_of_two(vf v, vf n) { return (vf)_mm512_scalef_ps((__m512)v, (__m512)n); }
#endif

// The first n floats at p, up to a vector's worth, the other lanes zero; n may be negative.
IPVAE_HD vf load_part(const float* p, int64_t n) {
    if (n >= kWidth) return load(p);
    float lanes[kWidth] = {};
    if (n > 0) memcpy(lanes, p, n * sizeof(float));
    return load(lanes);
}
IPVAE_HD void store_part(float* p, int64_t n, vf v) {
    if (n >= kWidth) return store(p, v);
    float lanes[kWidth];
    store(lanes, v);
    memcpy(p, lanes, n * sizeof(float));
}

constexpr uint32_t kAllLanes = (uint32_t)((1ull << kWidth) - 1);
// The first n lanes as bits, n >= 0.
IPVAE_HD uint32_t first_lanes(int64_t n) { return n >= kWidth ? kAllLanes : (1u << n) - 1; }

// The lanes where a < b, as bits.
IPVAE_HD uint32_t lanes_below(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ));
#else
    vi below = a < b;
    uint32_t lanes = 0;
    for (int i = 0; i < kWidth; ++i) lanes |= below[i] ? 1u << i : 0u;
    return lanes;
#endif
}

// Writes the chosen lanes side by side; up to kWidth elements of `to` are overwritten.
IPVAE_HD void pack_lanes(float* to, vf v, uint32_t lanes) {
#if defined(__AVX512F__)
    // To a register first: a compressing store takes 130 cycles and more on Zen 4.
    store(to, (vf)_mm512_maskz_compress_ps((__mmask16)lanes, (__m512)v));
#else
    for (int n = 0; lanes; lanes &= lanes - 1) to[n++] = v[__builtin_ctz(lanes)];
#endif
}
IPVAE_HD void pack_lanes(int32_t* to, vi v, uint32_t lanes) {
#if defined(__AVX512F__)
    *(vi_unaligned*)to = (vi)_mm512_maskz_compress_epi32((__mmask16)lanes, (__m512i)v);
#else
    for (int n = 0; lanes; lanes &= lanes - 1) to[n++] = v[__builtin_ctz(lanes)];
#endif
}
// base[index[i]] = v[i] for the chosen lanes
IPVAE_HD void scatter(float* base, vi index, vf v, uint32_t lanes) {
#if defined(__AVX512F__)
    _mm512_mask_i32scatter_ps(base, (__mmask16)lanes, (__m512i)index, (__m512)v, 4);
#else
    for (; lanes; lanes &= lanes - 1) base[index[__builtin_ctz(lanes)]] = v[__builtin_ctz(lanes)];
#endif
}
IPVAE_HD vf gather(const float* base, vi index) {
#if defined(__AVX512F__)
    return (vf)_mm512_i32gather_ps((__m512i)index, base, 4);
#else
    vf v{};
    for (int i = 0; i < kWidth; ++i) v[i] = base[index[i]];
    return v;
#endif
}
IPVAE_HD vi load_index(const int32_t* p) { return *(const vi_unaligned*)p; }
IPVAE_HD vi lane_numbers() {
    vi n{};
    for (int i = 0; i < kWidth; ++i) n[i] = i;
    return n;
}

// x86 multiplies even 32-bit lanes to 64 bits and does not read the odd ones. Integers to be multiplied many times are
// therefore kept apart by parity, each in the low half of 64 bits; what lies in the high half does not matter.
#if defined(__AVX512F__)
struct Spread {
    __m512i even, odd;
};
IPVAE_HD Spread spread(vu v) { return {(__m512i)v, _mm512_srli_epi64((__m512i)v, 32)}; }
IPVAE_HD vu join(Spread s) { return (vu)_mm512_mask_mov_epi32(s.even, 0xAAAA, _mm512_slli_epi64(s.odd, 32)); }
IPVAE_HD void mulhilo(Spread a, uint32_t b, Spread& hi, Spread& lo) {
    __m512i factor = _mm512_set1_epi32((int)b);
    lo = {_mm512_mul_epu32(a.even, factor), _mm512_mul_epu32(a.odd, factor)};
    // A shift and a shuffle, which different ports execute.
    hi = {_mm512_srli_epi64(lo.even, 32), (__m512i)_mm512_movehdup_ps((__m512)lo.odd)};
}
IPVAE_HD Spread exclusive_or(Spread a, Spread b, uint32_t c) {
    __m512i all = _mm512_set1_epi32((int)c);
    return {_mm512_ternarylogic_epi32(a.even, b.even, all, 0x96), _mm512_ternarylogic_epi32(a.odd, b.odd, all, 0x96)};
}
#elif defined(__AVX2__)
struct Spread {
    __m256i even, odd;
};
IPVAE_HD Spread spread(vu v) { return {(__m256i)v, _mm256_srli_epi64((__m256i)v, 32)}; }
IPVAE_HD vu join(Spread s) { return (vu)_mm256_blend_epi32(s.even, _mm256_slli_epi64(s.odd, 32), 0xAA); }
IPVAE_HD void mulhilo(Spread a, uint32_t b, Spread& hi, Spread& lo) {
    __m256i factor = _mm256_set1_epi32((int)b);
    lo = {_mm256_mul_epu32(a.even, factor), _mm256_mul_epu32(a.odd, factor)};
    hi = {_mm256_srli_epi64(lo.even, 32), (__m256i)_mm256_movehdup_ps((__m256)lo.odd)};
}
IPVAE_HD Spread exclusive_or(Spread a, Spread b, uint32_t c) {
    __m256i all = _mm256_set1_epi32((int)c);
    return {_mm256_xor_si256(_mm256_xor_si256(a.even, b.even), all),
            _mm256_xor_si256(_mm256_xor_si256(a.odd, b.odd), all)};
}
#else
IPVAE_HD vu spread(vu v) { return v; }
IPVAE_HD vu join(vu v) { return v; }
IPVAE_HD vu exclusive_or(vu a, vu b, uint32_t c) { return a ^ b ^ c; }
IPVAE_HD void mulhilo(vu a, uint32_t b, vu& hi, vu& lo) {
    for (int i = 0; i < kWidth; ++i) {
        uint32_t h, l;
        mulhilo(static_cast<uint32_t>(a[i]), b, h, l);
        hi[i] = h;
        lo[i] = l;
    }
}
#endif

IPVAE_END
