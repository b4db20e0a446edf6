// Products with a matrix as it lies in memory, of floats or bfloat16.
//
// For few rows such a product is bound by memory, and reads the matrix once, in pieces of whole pages where there is one row.
// It takes the same sums in the same order as the products with packed panels, so that no bit tells which was used.
#pragma once

#include "matmul.h"

IPVAE_BEGIN

constexpr int kDirectDepths = 4, kDirectVectors = 2;  // what fills 16 registers, with two sums and a coefficient
constexpr int kDirectColumns = kDirectVectors * kWidth;
constexpr int kMostRows = 2 * kWideRows;  // of a tile: two draws
constexpr int64_t kMostNeurons = 1024;  // of a block
constexpr int64_t kStripFloats = 16384;  // sums of a strip of columns, which stay in the L2 cache

// Sums of `columns`, a multiple of kDirectColumns, go on over kDepths of the depth; `ahead` is what comes next.
template <int kDepths, class T>
inline void direct_sums(int rows, const float* a, int64_t a_row, const T* b, int64_t b_row, const T* ahead, int64_t columns,
                        float* sums, int64_t sums_row) {
    for (int64_t i = 0; i < columns; i += kDirectColumns) {
        vf column[kDepths][kDirectVectors];
        for (int d = 0; d < kDepths; ++d) {
            for (int v = 0; v < kDirectVectors; ++v) column[d][v] = load(b + d * b_row + i + v * kWidth);
            __builtin_prefetch(ahead + d * b_row + i);
        }
        for (int r = 0; r < rows; ++r) {
            vf sum[kDirectVectors];
            for (int v = 0; v < kDirectVectors; ++v) sum[v] = load(sums + r * sums_row + i + v * kWidth);
            for (int d = 0; d < kDepths; ++d)
                for (int v = 0; v < kDirectVectors; ++v) sum[v] = sum[v] + splat<vf>(a[r * a_row + d]) * column[d][v];
            for (int v = 0; v < kDirectVectors; ++v) store(sums + r * sums_row + i + v * kWidth, sum[v]);
        }
    }
}

// The same for any number of columns: the last are copied, so that nothing beyond a row is read.
template <int kDepths, class T>
inline void direct_strip(int rows, const float* a, int64_t a_row, const T* b, int64_t b_row, const T* ahead, int64_t columns,
                         float* sums, int64_t sums_row) {
    int64_t whole = columns / kDirectColumns * kDirectColumns;
    direct_sums<kDepths>(rows, a, a_row, b, b_row, ahead, whole, sums, sums_row);
    if (whole == columns) return;
    T last[kDepths * kDirectColumns] = {};
    for (int d = 0; d < kDepths; ++d) memcpy(last + d * kDirectColumns, b + d * b_row + whole, (columns - whole) * sizeof(T));
    direct_sums<kDepths>(rows, a, a_row, last, kDirectColumns, last, kDirectColumns, sums + whole, sums_row);
}

// C [rows, n] = A [rows, depth] B for B [depth, n], b_row elements from row to row. C's columns up to padded(n) are zero.
template <class T>
inline void direct_product(int rows, const float* a, int64_t a_row, int64_t depth, const T* b, int64_t b_row, int64_t n,
                           float* c, int64_t c_row) {
    alignas(64) float sums[kStripFloats + kMostRows * kPanel];
    int64_t strip = padded(kStripFloats / rows < 1024 ? kStripFloats / rows : 1024);
    int64_t sums_row = strip + 16;  // rows of a power of two would share few sets of the cache
    for (int64_t at = 0; at < n; at += strip) {
        int64_t columns = n - at < strip ? n - at : strip;
        memset(sums, 0, rows * sums_row * sizeof(float));
        int64_t d = 0;
        for (; d + kDirectDepths <= depth; d += kDirectDepths) {
            // The next rows of this strip, or the first of the next.
            const T* ahead = d + 2 * kDirectDepths <= depth ? b + (d + kDirectDepths) * b_row + at : b + at + columns;
            direct_strip<kDirectDepths>(rows, a + d, a_row, b + d * b_row + at, b_row, ahead, columns, sums, sums_row);
        }
        for (; d < depth; ++d) {
            const T* row = b + d * b_row + at;
            direct_strip<1>(rows, a + d, a_row, row, b_row, row, columns, sums, sums_row);
        }
        for (int r = 0; r < rows; ++r) memcpy(c + r * c_row + at, sums + r * sums_row, padded(columns) * sizeof(float));
    }
}

// A vector of elements that lie `stride` apart; the first `lanes` of them.
template <class T> IPVAE_HD vf load_column(const T* p, int64_t stride, int64_t lanes) {
    vf v{};
    if (lanes >= kWidth)
        for (int i = 0; i < kWidth; ++i) v[i] = widened(p[i * stride]);
    else
        for (int i = 0; i < lanes; ++i) v[i] = widened(p[i * stride]);
    return v;
}

// Rows [0, m) and columns [0, n) of a piece of B, each up to 64, as columns: [64][64], zero beyond.
template <class T> inline void turn(const T* b, int64_t b_row, int64_t m, int64_t n, float* turned) {
    if (m < kPanel || n < kPanel) memset(turned, 0, kPanel * kPanel * sizeof(float));
    for (int64_t i = 0; i < m; i += kWidth)
        for (int64_t k = 0; k < n; ++k) store(turned + k * kPanel + i, load_column(b + i * b_row + k, b_row, m - i));
}

// C [rows, m] += A [rows, n] B^T, piece by piece of B turned.
template <class T>
inline void add_turned(int rows, const float* a, int64_t a_row, int64_t n, const T* b, int64_t b_row, int64_t m, float* c,
                       int64_t c_row) {
    alignas(64) float turned[kPanel * kPanel];
    for (int64_t k = 0; k < n; k += kPanel) {
        for (int64_t i = 0; i < m; i += kPanel) {
            turn(b + i * b_row + k, b_row, m - i < kPanel ? m - i : kPanel, n - k < kPanel ? n - k : kPanel, turned);
            chunk_product(rows, a + k, a_row, 1, kPanel, turned, c + i, c_row, true);
        }
    }
}

// From so many spikes a neuron on, of all rows together, it pays to turn the dictionary: one row of K 8,192, M 1,024 at 46 % took
// 5.4 ms a step turned and 4.0 gathered, eight rows 9.0 and 8.2.
constexpr int kTurnShare = 2;

// Rows of B that lie a multiple of 4 KiB apart share few sets of the caches. From so many spikes a neuron on, of all rows of A
// together, they are copied before their columns are gathered: B 64 of K 16,384, M 768 at 1 % takes 33 ms a step in place and 29
// copied, one row at 30 % 5.5 and 5.9.
constexpr float kCopyShare = 0.5f;

// Columns of a few rows of B that spike in a row of A, added to C.
template <class T>
inline void add_columns(const float* a, const int32_t* listed, int64_t n_listed, const T* b, int64_t b_row, int64_t lanes, float* c) {
    vf sum = load(c);
    for (int64_t j = 0; j < n_listed; ++j)
        sum = sum + splat<vf>(a[listed[j]]) * load_column(b + listed[j], b_row, lanes);
    store(c, sum);
}

// The same for fewer spikes, whose columns are gathered: a few rows of B at a time serve all rows of A from the caches.
template <class T>
inline void add_gathered(int rows, const float* a, int64_t a_row, int64_t n, const T* b, int64_t b_row, int64_t m, float* c,
                         int64_t c_row) {
    constexpr int64_t kCopyRow = kMostNeurons + 64 / sizeof(T);  // rows of a power of two would share few sets of the cache
    int32_t listed[kTurnShare * kMostNeurons + kWidth];
    int64_t ends[kMostRows + 1] = {};
    for (int r = 0; r < rows; ++r) ends[r + 1] = ends[r] + list_nonzero(a + r * a_row, n, listed + ends[r]);
    bool copies = b_row * sizeof(T) % 4096 == 0 && ends[rows] >= kCopyShare * n;
    alignas(64) T copy[kWidth * kCopyRow];
    for (int64_t i = 0; i < m; i += kWidth) {
        const T* few = b + i * b_row;
        int64_t lanes = m - i;
        if (copies) {
            for (int64_t k = 0; k < kWidth && k < lanes; ++k) memcpy(copy + k * kCopyRow, few + k * b_row, n * sizeof(T));
            few = copy;
        }
        for (int r = 0; r < rows; ++r)
            add_columns(a + r * a_row, listed + ends[r], ends[r + 1] - ends[r], few, copies ? kCopyRow : b_row, lanes,
                        c + r * c_row + i);
    }
}

// C [rows, m] = A [rows, n] B^T for B [m, n], b_row elements from row to row. A's rows are zero up to padded(n), C's are padded
// to whole panels.
template <class T>
inline void transposed_product(int rows, const float* a, int64_t a_row, int64_t n, const T* b, int64_t b_row, int64_t m, float* c,
                               int64_t c_row) {
    int64_t nonzero = 0;
    for (int r = 0; r < rows; ++r) {
        nonzero += count_nonzero(a + r * a_row, n);
        memset(c + r * c_row, 0, padded(m) * sizeof(float));
    }
    auto add = nonzero < kTurnShare * n ? add_gathered<T> : add_turned<T>;
    add(rows, a, a_row, n, b, b_row, m, c, c_row);
}

IPVAE_END
