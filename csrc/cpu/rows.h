// Rows padded to whole panels, and the scratch memory they lie in.
#pragma once

#include "simd.h"

IPVAE_BEGIN

constexpr int kPanel = 64;  // columns of a packed matrix that lie together
IPVAE_HD int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

// Hands out pieces of a thread's scratch.
struct Scratch {
    float* next;
    float* take(int64_t n) {
        float* piece = next;
        next += n;
        return piece;
    }
};

inline void load_rows(const float* from, int rows, int64_t n, int64_t n_padded, float fill, float* to) {
    for (int r = 0; r < rows; ++r) {
        memcpy(to + r * n_padded, from + r * n, n * sizeof(float));
        for (int64_t i = n; i < n_padded; ++i) to[r * n_padded + i] = fill;
    }
}

inline void store_rows(const float* from, int rows, int64_t n, int64_t n_padded, float* to) {
    for (int r = 0; r < rows; ++r) memcpy(to + r * n, from + r * n_padded, n * sizeof(float));
}

// The first n lanes of v, the others zero; n may be negative.
IPVAE_HD vf keep_first(vf v, int64_t n) { return n >= kWidth ? v : (lane_numbers() < vi{} + (int32_t)n ? v : vf{}); }

IPVAE_END
