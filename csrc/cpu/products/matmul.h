// Matrix products of a small tile of rows with a packed matrix.
//
// A packed matrix B [depth, n] lies in panels of 64 columns, [n / 64][depth][64], zero-padded. Every sum runs over the
// depth in ascending order with one accumulator per output, so a row's result depends neither on the rows it shares a
// tile with nor on whether zero coefficients were skipped.
#pragma once

#include "../rows.h"

#if defined(__AMX_BF16__)
#include "amx_outer.h"
#include "amx_product.h"
#endif

IPVAE_BEGIN

// C [kRows, kVectors * kWidth] (+)= A B for a column block of one panel. A's element (row, depth) is at
// a[row * a_row + depth * a_depth].
template <int kRows, int kVectors>
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
            for (int v = 0; v < kVectors; ++v) acc[r][v] = acc[r][v] + coefficient * b[v];
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kVectors; ++v) store(c + r * c_row + v * kWidth, acc[r][v]);
}

template <int kRows>
inline void panel_product(const float* a, int64_t a_row, int64_t a_depth, int64_t depth, const float* panel, float* c,
                          int64_t c_row, bool accumulate) {
    // Two vectors a row fill the registers with eight rows (AVX-512) or four (16 registers); one or two rows take four
    // to have enough independent sums in flight.
    constexpr int kVectors = kRows <= 2 ? 4 : 2;
    for (int n = 0; n < kPanel; n += kVectors * kWidth)
        block_product<kRows, kVectors>(a, a_row, a_depth, depth, panel + n, c + n, c_row, accumulate);
}

// The same for any number of rows.
inline void chunk_product(int rows, const float* a, int64_t a_row, int64_t a_depth, int64_t depth, const float* panel,
                          float* c, int64_t c_row, bool accumulate) {
#if defined(__AVX512F__)
    for (; rows >= 8; rows -= 8, a += 8 * a_row, c += 8 * c_row)
        panel_product<8>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
#endif
    for (; rows >= 4; rows -= 4, a += 4 * a_row, c += 4 * c_row)
        panel_product<4>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
    for (; rows >= 2; rows -= 2, a += 2 * a_row, c += 2 * c_row)
        panel_product<2>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
    if (rows == 1) panel_product<1>(a, a_row, a_depth, depth, panel, c, c_row, accumulate);
}

// Depths of a panel that stay in the L1 cache (16 KiB) while all rows, and all columns of each, pass over them. Sums go on from
// memory, which changes no bit. docs/design/cpu.md, "Products", has the measurement.
constexpr int64_t kDepthChunk = 64;

// `rows` rows of C's panel.
inline void rows_product(int rows, const float* a, int64_t a_row, int64_t a_depth, int64_t depth, const float* panel,
                         float* c, int64_t c_row, bool accumulate) {
    for (int64_t d = 0; d < depth || d == 0; d += kDepthChunk) {
        int64_t chunk = depth - d < kDepthChunk ? depth - d : kDepthChunk;
        chunk_product(rows, a + d * a_depth, a_row, a_depth, chunk, panel + d * kPanel, c, c_row, accumulate || d);
    }
}

// Columns [at, at + kPanel) of B [depth, n] (row stride b_row) as one panel of floats.
inline void copy_panel(const float* b, int64_t b_row, int64_t depth, int64_t n, int64_t at, float* panel) {
    int64_t width = n - at < kPanel ? n - at : kPanel;
    for (int64_t d = 0; d < depth; ++d) {
        memcpy(panel + d * kPanel, b + d * b_row + at, width * sizeof(float));
        for (int64_t i = width; i < kPanel; ++i) panel[d * kPanel + i] = 0.f;
    }
}

IPVAE_HD uint32_t nonzero_lanes(vf v) { return lanes_below(vf{}, from_bits(bits(v) & 0x7FFFFFFFu)); }

inline int64_t count_nonzero(const float* a, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += kWidth) count += __builtin_popcount(nonzero_lanes(load(a + i)));
    return count;
}

inline int64_t list_nonzero(const float* a, int64_t n, int32_t* listed) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += kWidth) {
        uint32_t lanes = nonzero_lanes(load(a + i));
        pack_lanes(listed + count, lane_numbers() + (int32_t)i, lanes);
        count += __builtin_popcount(lanes);
    }
    return count;
}

#if !defined(__AMX_BF16__)

constexpr int kTileRows = 8;
// Of a team, which shares the neurons: each part of the dictionary is read once for so many rows. More where it is not packed,
// and where the means of a tile are summed over processes: docs/design/cpu.md, "Wide dictionaries".
constexpr int kTeamRows = 32, kWideRows = 64;
// Neurons of a block, whose parts of a mean are added in their order: a result depends on it, so it is the same for any number
// of threads. Threads share neurons by blocks: few enough that two threads have some from 2,048 neurons on.
constexpr int64_t kNeuronBlock = 1024;
constexpr bool kReadsDictionary = true;  // whether it need not be packed
// From so many bytes on a dictionary is read as it is: where the caches hold no packed copies, that was as fast for 32 rows and
// faster for fewer (docs/design/cpu.md, "Wide dictionaries").
constexpr int64_t kPackedBytes = int64_t{1} << 23;
constexpr bool kMergesSlots = true;  // whether the rows of two draws are decoded as one matrix

inline int64_t panel_floats(int64_t depth) { return kPanel * depth; }

// Sets up nothing; the products of other instruction sets need it.
struct TileScope {
    TileScope() {}
};

// Panel p of B [depth, n], which lies in memory as it is or, transposed, as [n, depth].
inline void pack_panel(const float* matrix, int64_t depth, int64_t n, bool transposed, int64_t p, float* packed) {
    int64_t at = p * kPanel;
    if (!transposed) return copy_panel(matrix, n, depth, n, at, packed);
    // Columns of 16 at a time: each cache line of the matrix is read once, each of the panel written once.
    for (int64_t d = 0; d < depth; d += 16)
        for (int64_t i = 0; i < kPanel; ++i)
            for (int64_t j = d; j < d + 16 && j < depth; ++j)
                packed[j * kPanel + i] = at + i < n ? matrix[(at + i) * depth + j] : 0.f;
}

// One row: c [n] = sum over the listed depths of a[depth] B[depth, :]; b_panel: floats from one panel of B to the next.
inline void sparse_product(const float* a, const int32_t* listed, int64_t n_listed, const float* b, int64_t b_panel,
                           int64_t n, float* c) {
    constexpr int kVectors = kPanel / kWidth < 8 ? kPanel / kWidth : 8;
    for (int64_t at = 0; at < n; at += kVectors * kWidth) {
        const float* block = b + at / kPanel * b_panel + at % kPanel;
        vf acc[kVectors] = {};
        for (int64_t i = 0; i < n_listed; ++i) {
            int32_t d = listed[i];
            vf coefficient = splat<vf>(a[d]);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) acc[v] = acc[v] + coefficient * load(block + (int64_t)d * kPanel + v * kWidth);
        }
        for (int v = 0; v < kVectors; ++v) store(c + at + v * kWidth, acc[v]);
    }
}

// Below this share of non-zero coefficients a row is multiplied spike by spike. A dense tile reads each element of the
// dictionary once for eight rows, a sparse row once for itself; measured, the two meet near 0.4 (docs/design/cpu.md).
constexpr float kSparseShare = 0.4f;

struct ProductScratch {
    int32_t* listed;  // [depth + kWidth]
};
inline int64_t product_scratch(int64_t depth) { return depth + kPanel; }
inline ProductScratch product_scratch_at(float* memory, int64_t) { return {(int32_t*)memory}; }

// C [rows, n] = A [rows, depth] B, by spikes where A is mostly zero. A's rows are zero up to padded(depth). b_panel: floats
// from one panel of B to the next, more than one holds where B are some depths of a larger matrix.
inline void product(int rows, const float* a, int64_t a_row, int64_t depth, const float* b, int64_t b_panel, int64_t n,
                    float* c, int64_t c_row, const ProductScratch& scratch) {
    int64_t nonzero = 0;
    for (int r = 0; r < rows; ++r) nonzero += count_nonzero(a + r * a_row, depth);
    if (nonzero >= kSparseShare * rows * depth) {
        for (int64_t at = 0; at < n; at += kPanel)
            rows_product(rows, a, a_row, 1, depth, b + at / kPanel * b_panel, c + at, c_row, false);
        return;
    }
    for (int r = 0; r < rows; ++r) {
        int64_t n_listed = list_nonzero(a + r * a_row, depth, scratch.listed);
        sparse_product(a + r * a_row, scratch.listed, n_listed, b, b_panel, n, c + r * c_row);
    }
}

// Outer products: A^T B for A [depth, m] and a panel of B [depth, n], summed over the depth.
constexpr int kOuterRows = 8;  // m is padded to a multiple of it
inline int64_t outer_padded(int64_t m) { return (m + kOuterRows - 1) / kOuterRows * kOuterRows; }
inline int64_t outer_left_floats(int64_t depth, int64_t m) { return depth * outer_padded(m); }
inline int64_t outer_right_floats(int64_t depth) { return depth * kPanel; }

// A as [m / 8][depth][8], each column times its scale.
inline void pack_outer_left(const float* a, int64_t depth, int64_t m, const float* scale, float sign, float* packed) {
    for (int64_t at = 0; at < m; at += kOuterRows)
        for (int64_t d = 0; d < depth; ++d)
            for (int64_t i = 0; i < kOuterRows; ++i)
                packed[at * depth + d * kOuterRows + i] =
                    at + i < m ? a[d * m + at + i] * (scale ? sign * scale[at + i] : sign) : 0.f;
}

inline int pack_outer_right(const float* b, int64_t depth, int64_t n, int64_t p, bool, float* packed) {
    copy_panel(b, n, depth, n, p * kPanel, packed);
    return 1;
}

// C [padded m, kPanel] += A^T B
inline void add_outer_product(const float* left, int64_t m, int64_t depth, const float* right, int, float* c) {
    for (int64_t at = 0; at < m; at += kOuterRows)
        rows_product(kOuterRows, left + at * depth, 1, kOuterRows, depth, right, c + at * kPanel, kPanel, true);
}

// Counts are multiplied, and a matrix packed for them, as any other rows.
constexpr auto& counts_panel_floats = panel_floats;
constexpr auto& pack_counts_panel = pack_panel;
constexpr auto& counts_product = product;

#endif

IPVAE_END
