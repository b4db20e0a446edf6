// Macros shared by every header of csrc/common.
//
// The same text is compiled several times: once per CPU instruction set and, on a GPU, by nvcc. Each compilation
// lives in a namespace of its own (IPVAE_TARGET), so that the linker can never merge a function compiled for AVX-512
// with its baseline twin.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef IPVAE_TARGET
#define IPVAE_TARGET scalar
#endif

#define IPVAE_BEGIN namespace ipvae { namespace IPVAE_TARGET {
#define IPVAE_END }}

#if defined(__CUDACC__)
#define IPVAE_HD __host__ __device__ __forceinline__
#else
#define IPVAE_HD inline __attribute__((always_inline))
#endif

IPVAE_BEGIN

// A "lane type" F is float, or a SIMD vector of floats (cpu/simd.h). lane<F> names its companions: U and I, unsigned
// and signed 32-bit integers of the same shape. Masks are what a comparison of two F yields; `mask ? a : b` selects.
template <class F> struct lane;

template <> struct lane<float> {
    using U = uint32_t;
    using I = int32_t;
    static constexpr int width = 1;
};

template <class F> using lane_u = typename lane<F>::U;
template <class F> using lane_i = typename lane<F>::I;

template <class F> IPVAE_HD F splat(float v);
template <> IPVAE_HD float splat<float>(float v) { return v; }

IPVAE_HD uint32_t bits(float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}
IPVAE_HD float from_bits(uint32_t u) {
    float v;
    memcpy(&v, &u, 4);
    return v;
}
IPVAE_HD float to_float(uint32_t u) { return static_cast<float>(u); }
IPVAE_HD float to_float(int32_t i) { return static_cast<float>(i); }
IPVAE_HD void mulhilo(uint32_t a, uint32_t b, uint32_t& hi, uint32_t& lo) {
    uint64_t product = static_cast<uint64_t>(a) * b;
    hi = static_cast<uint32_t>(product >> 32);
    lo = static_cast<uint32_t>(product);
}
IPVAE_HD uint32_t exclusive_or(uint32_t a, uint32_t b, uint32_t c) { return a ^ b ^ c; }
// To and from the form in which a lane type multiplies 32-bit integers.
IPVAE_HD uint32_t spread(uint32_t v) { return v; }
IPVAE_HD uint32_t join(uint32_t v) { return v; }

IPVAE_HD bool any(bool mask) { return mask; }

// The smaller and the larger of two numbers; NaN in `a` stays NaN.
IPVAE_HD float min_keep_nan(float a, float b) { return b < a ? b : a; }
IPVAE_HD float max_keep_nan(float a, float b) { return a < b ? b : a; }
IPVAE_HD float square_root(float a) { return ::sqrtf(a); }
IPVAE_HD float round_down(float a) { return ::floorf(a); }
// 1 / a for normal a, to one rounding and a half.
IPVAE_HD float reciprocal(float a) { return 1.f / a; }

IPVAE_END
