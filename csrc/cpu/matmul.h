// Matrix products of a small tile of rows with a packed matrix.
//
// A packed matrix B [depth, n] lies in panels of 64 columns, [n / 64][depth][64], zero-padded. Every sum runs over the
// depth in ascending order with one accumulator per output, so a row's result depends neither on the rows it shares a
// tile with nor on whether zero coefficients were skipped.
#pragma once

#include "simd.h"

IPVAE_BEGIN

constexpr int kPanel = 64;
constexpr int kTileRows = 8;

IPVAE_HD int64_t padded(int64_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

// C [kRows, kVectors * kWidth] (+)= sign * A B for a column block of one panel. A's element (row, depth) is at
// a[row * a_row + depth * a_depth].
template <int kRows, int kVectors, bool kSubtract>
inline void block_product(const float* a, int64_t a_row, int64_t a_depth, int64_t depth, const float* panel, float* c,
                          int64_t c_row, bool accumulate) {
    vf acc[kRows][kVectors];
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) acc[r][v] = accumulate ? load(c + r * c_row + v * kWidth) : vf{};
    for (int64_t d = 0; d < depth; ++d) {
        vf b[kVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) b[v] = load(panel + d * kPanel + v * kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            vf coefficient = splat<vf>(a[r * a_row + d * a_depth]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v)
                acc[r][v] = kSubtract ? acc[r][v] - coefficient * b[v] : acc[r][v] + coefficient * b[v];
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(c + r * c_row + v * kWidth, acc[r][v]);
}

template <int kRows, bool kSubtract>
inline void panel_product(const float* a, int64_t a_row, int64_t a_depth, int64_t depth, const float* panel, float* c,
                          int64_t c_row, bool accumulate) {
    // Two vectors a row fill the registers with eight rows (AVX-512) or four (16 registers); one or two rows take four
    // to have enough independent sums in flight.
    constexpr int kVectors = kRows <= 2 ? 4 : 2;
    for (int n = 0; n < kPanel; n += kVectors * kWidth)
        block_product<kRows, kVectors, kSubtract>(a, a_row, a_depth, depth, panel + n, c + n, c_row, accumulate);
}

// `rows` rows of C's panel; kTileRows at most.
template <bool kSubtract>
inline void rows_product(int rows, const float* a, int64_t a_row, int64_t a_depth, int64_t depth, const float* panel,
                         float* c, int64_t c_row, bool accumulate) {
#if defined(__AVX512F__)
    if (rows == 8) return panel_product<8, kSubtract>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
#endif
    for (; rows >= 4; rows -= 4, a += 4 * a_row, c += 4 * c_row)
        panel_product<4, kSubtract>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
    for (; rows >= 2; rows -= 2, a += 2 * a_row, c += 2 * c_row)
        panel_product<2, kSubtract>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
    if (rows == 1) panel_product<1, kSubtract>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
}

// C [rows, n] = A [rows, depth] B, all panels of B.
inline void dense_product(int rows, const float* a, int64_t a_row, int64_t depth, const float* b, int64_t n, float* c,
                          int64_t c_row) {
    for (int64_t at = 0; at < n; at += kPanel)
        rows_product<false>(rows, a, a_row, 1, depth, b + at * depth, c + at, c_row, false);
}

// One row: c [n] -= sum over the listed depths of a[depth] B[depth, :].
inline void sparse_subtract(const float* a, const int32_t* listed, int64_t n_listed, int64_t depth, const float* b,
                            int64_t n, float* c) {
    constexpr int kVectors = kPanel / kWidth < 8 ? kPanel / kWidth : 8;
    for (int64_t at = 0; at < n; at += kVectors * kWidth) {
        const float* block = b + at / kPanel * kPanel * depth + at % kPanel;
        vf acc[kVectors];
        for (int v = 0; v < kVectors; ++v) acc[v] = load(c + at + v * kWidth);
        for (int64_t i = 0; i < n_listed; ++i) {
            int32_t d = listed[i];
            vf coefficient = splat<vf>(a[d]);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                acc[v] = acc[v] - coefficient * load(block + (int64_t)d * kPanel + v * kWidth);
        }
        for (int v = 0; v < kVectors; ++v) store(c + at + v * kWidth, acc[v]);
    }
}

inline int64_t list_nonzero(const float* a, int64_t n, int32_t* listed) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
        listed[count] = (int32_t)i;
        count += a[i] != 0.f;
    }
    return count;
}

// Below this share of non-zero counts a row is decoded spike by spike. A dense tile reads each dictionary element once
// for eight rows, a sparse row once for itself; measured, the two meet near 0.4 (docs/decisions.md).
constexpr float kSparseShare = 0.4f;

// C [rows, n] -= A [rows, depth] B where A may be mostly zero. `listed` [depth] is scratch.
inline void subtract_product(int rows, const float* a, int64_t a_row, int64_t depth, const float* b, int64_t n, float* c,
                             int64_t c_row, int32_t* listed) {
    int64_t nonzero = 0;
    for (int r = 0; r < rows; ++r)
        for (int64_t d = 0; d < depth; ++d) nonzero += a[r * a_row + d] != 0.f;
    if (nonzero >= kSparseShare * rows * depth) {
        for (int64_t at = 0; at < n; at += kPanel)
            rows_product<true>(rows, a, a_row, 1, depth, b + at * depth, c + at, c_row, true);
        return;
    }
    for (int r = 0; r < rows; ++r) {
        int64_t n_listed = list_nonzero(a + r * a_row, depth, listed);
        sparse_subtract(a + r * a_row, listed, n_listed, depth, b, n, c + r * c_row);
    }
}

// Columns [at, at + kPanel) of B [depth, n] (row stride b_row) as one panel.
inline void pack_panel(const float* b, int64_t b_row, int64_t depth, int64_t n, int64_t at, float* panel) {
    int64_t width = n - at < kPanel ? n - at : kPanel;
    for (int64_t d = 0; d < depth; ++d) {
        memcpy(panel + d * kPanel, b + d * b_row + at, width * sizeof(float));
        for (int64_t i = width; i < kPanel; ++i) panel[d * kPanel + i] = 0.f;
    }
}

// The same of B transposed: B' [depth, n] is B [n, depth] in memory.
inline void pack_panel_transposed(const float* b, int64_t b_row, int64_t depth, int64_t n, int64_t at, float* panel) {
    for (int64_t i = 0; i < kPanel; ++i)
        for (int64_t d = 0; d < depth; ++d) panel[d * kPanel + i] = at + i < n ? b[(at + i) * b_row + d] : 0.f;
}

IPVAE_END
