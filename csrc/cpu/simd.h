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

// 32 x 32 -> 64 bit products: even and odd lanes apart, as x86 multiplies them.
IPVAE_HD void mulhilo(vu a, uint32_t b, vu& hi, vu& lo) {
#if defined(__AVX512F__)
    __m512i va = (__m512i)a, vb = _mm512_set1_epi32((int)b);
    __m512i even = _mm512_mul_epu32(va, vb), odd = _mm512_mul_epu32(_mm512_srli_epi64(va, 32), vb);
    hi = (vu)_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
    lo = (vu)_mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
#elif defined(__AVX2__)
    __m256i va = (__m256i)a, vb = _mm256_set1_epi32((int)b);
    __m256i even = _mm256_mul_epu32(va, vb), odd = _mm256_mul_epu32(_mm256_srli_epi64(va, 32), vb);
    hi = (vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    lo = (vu)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
    for (int i = 0; i < kWidth; ++i) {
        uint32_t h, l;
        mulhilo(static_cast<uint32_t>(a[i]), b, h, l);
        hi[i] = h;
        lo[i] = l;
    }
#endif
}

IPVAE_END
