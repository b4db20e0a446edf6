// Matrix products on AMX tiles, at float32's accuracy.
//
// A float is the sum of three bfloat16 pieces, high + middle + low, to 2^-24. B is packed in all three. So is A, unless the
// first is all of it, as for counts up to 256: then a product costs three tile products instead of six (high x high, high x
// middle, middle x high, high x low, middle x middle, low x high; what is left out is below 2^-24). Pieces that are zero
// add nothing, so the number of pieces changes no bit, and neither do the rows that share a tile.
//
// Floors at K 512, M 256: a tile product takes 16 cycles whatever its rows, which makes 768 cycles a row of counts and 1,536
// of any other in tiles of 32 rows, with 32 bytes a cycle of B from the L2 cache. Measured at 32 rows: 967 and 1,717,
// the split of a row 90 more for counts and 150 for errors; fused multiply-adds 4,450. Fetching B ahead by hand gave nothing.
#pragma once

#include "rows.h"

IPVAE_BEGIN

constexpr int kTileRows = 32;
constexpr int kPieces = 3;
constexpr int kTileDepth = 32;                       // bfloat16 of a row of an A tile
constexpr int kTileSize = 16 * kTileDepth;           // bfloat16 of a whole tile
constexpr int kPairColumns = 32;                     // columns of two B tiles side by side

IPVAE_HD int64_t tile_padded(int64_t depth) { return (depth + kTileDepth - 1) / kTileDepth * kTileDepth; }

// Calls store(piece, 32 bfloat16) with the three pieces of `first` (lower half) and `second`.
template <class Store> IPVAE_HD void split_pair(vf first, vf second, Store store) {
#pragma GCC unroll 3
    for (int piece = 0; piece < kPieces; ++piece) {
        __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
        store(piece, both);
        first = first - (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)), 16);
        second = second - (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1)), 16);
    }
}

// 32 bfloat16, of which 16 pairs lie 16 apart, with the pairs side by side.
IPVAE_HD __m512i interleave(__m512i both) {
    alignas(64) uint16_t order[32];
    for (int i = 0; i < 32; ++i) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

// 16 rows of 16 words, their off-diagonal blocks of 8, 4, 2 and 1 exchanged.
IPVAE_HD void transpose_words(__m512i* rows) {
#pragma GCC unroll 4
    for (int size = 1; size < 16; size *= 2) {
        alignas(64) int32_t low[16], high[16];
        for (int i = 0; i < 16; ++i) {
            low[i] = i & size ? i - size + 16 : i;
            high[i] = i & size ? i + 16 : i + size;
        }
        __m512i first = _mm512_load_si512(low), second = _mm512_load_si512(high);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            if (i & size) continue;
            __m512i a = rows[i], b = rows[i + size];
            rows[i] = _mm512_permutex2var_epi32(a, first, b);
            rows[i + size] = _mm512_permutex2var_epi32(a, second, b);
        }
    }
}

// ---- B: packed [n / 32][depth / 32][piece][2 tiles][16 pairs of depths][16 columns][2] ----------------------------

inline int64_t panel_floats(int64_t depth) { return kPanel * tile_padded(depth) * kPieces / 2; }

// One tile of B from 16 rows of 32: `tile` points to its first piece, the others follow two tiles apart. Column c of the
// tile is row c; a row's neighbours are the pairs of depths, so what is split is transposed as 32-bit words.
inline void pack_tile_transposed(const float* rows, int64_t row, int64_t n_rows, int64_t depth, uint16_t* tile) {
    __m512i pairs[kPieces][16] = {};
    for (int c = 0; c < 16 && c < n_rows; ++c) {
        vf first = load_part(rows + c * row, depth), second = depth > kWidth ? load_part(rows + c * row + kWidth, depth - kWidth) : vf{};
        split_pair(first, second, [&](int piece, __m512i both) __attribute__((always_inline)) { pairs[piece][c] = both; });
    }
    for (int piece = 0; piece < kPieces; ++piece) {
        transpose_words(pairs[piece]);
        for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + piece * 2 * kTileSize + i * 32, pairs[piece][i]);
    }
}

// One tile of B from 32 rows of 16.
inline void pack_tile(const float* rows, int64_t row, int64_t n_rows, int64_t width, uint16_t* tile) {
    for (int pair = 0; pair < 16; ++pair) {
        const float* from = rows + 2 * pair * row;
        vf even = 2 * pair < n_rows ? load_part(from, width) : vf{};
        vf odd = 2 * pair + 1 < n_rows ? load_part(from + row, width) : vf{};
        split_pair(even, odd, [&](int piece, __m512i both) __attribute__((always_inline)) {
            _mm512_store_si512(tile + piece * 2 * kTileSize + pair * 32, interleave(both));
        });
    }
}

// Panel p of B [depth, n], which lies in memory as it is or, transposed, as [n, depth].
inline void pack_panel(const float* matrix, int64_t depth, int64_t n, bool transposed, int64_t p, float* packed) {
    uint16_t* to = (uint16_t*)packed;
    for (int64_t pair = p * kPanel; pair < (p + 1) * kPanel; pair += kPairColumns)
        for (int64_t d = 0; d < depth; d += kTileDepth, to += kPieces * 2 * kTileSize)
            for (int tile = 0; tile < 2; ++tile) {
                int64_t column = pair + tile * 16;
                if (transposed)
                    pack_tile_transposed(matrix + column * depth + d, depth, n - column, depth - d, to + tile * kTileSize);
                else
                    pack_tile(matrix + d * n + column, n, depth - d, n - column, to + tile * kTileSize);
            }
}

// ---- A: pieces [piece][depth / 32][2 tiles][16 rows][32] ----------------------------------------------------------

struct ProductScratch {
    uint16_t* pieces;
};
inline int64_t product_scratch(int64_t depth) { return kTileRows * tile_padded(depth) * kPieces / 2; }
inline ProductScratch product_scratch_at(float* memory) { return {(uint16_t*)memory}; }

IPVAE_HD uint16_t* piece_at(uint16_t* pieces, int r, int64_t d) {
    return pieces + (d / kTileDepth * 2 + r / 16) * kTileSize + r % 16 * kTileDepth;
}

// The first pieces of rows that need no others, such as counts up to 256: the upper halves of the floats. Returns whether
// the lower halves were zero.
inline bool split_exact(int rows, const float* a, int64_t a_row, int64_t dp, uint16_t* pieces) {
    alignas(64) uint16_t upper_halves[32];
    for (int i = 0; i < 32; ++i) upper_halves[i] = (uint16_t)(2 * i + 1);
    __m512i upper = _mm512_load_si512(upper_halves), seen = _mm512_setzero_si512();
    for (int r = 0; r < rows; ++r)
        for (int64_t d = 0; d < dp; d += kTileDepth) {
            __m512i first = (__m512i)load(a + r * a_row + d), second = (__m512i)load(a + r * a_row + d + kWidth);
            _mm512_storeu_si512(piece_at(pieces, r, d), _mm512_permutex2var_epi16(first, upper, second));
            seen = _mm512_or_si512(seen, _mm512_or_si512(first, second));
        }
    return _mm512_test_epi32_mask(seen, _mm512_set1_epi32(0xFFFF)) == 0;
}

// All three pieces of any rows.
inline void split_rows(int rows, const float* a, int64_t a_row, int64_t dp, uint16_t* pieces) {
    for (int r = 0; r < rows; ++r)
        for (int64_t d = 0; d < dp; d += kTileDepth) {
            uint16_t* to = piece_at(pieces, r, d);
            split_pair(load(a + r * a_row + d), load(a + r * a_row + d + kWidth),
                       [&](int piece, __m512i both) __attribute__((always_inline)) {
                           _mm512_storeu_si512(to + piece * kTileRows * dp, both);
                       });
        }
}

// ---- products -----------------------------------------------------------------------------------------------------

// The tile intrinsics of GCC 12 do not tell the compiler what memory they read.
IPVAE_HD void finish_stores() { asm volatile("" ::: "memory"); }

// While an object of this class lives all tiles of the thread are of 16 rows of 64 bytes: fewer rows take as long.
class TileScope {
  public:
    TileScope() {
        struct {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } config = {};
        config.palette = 1;
        for (int i = 0; i < 8; ++i) {
            config.row_bytes[i] = 64;
            config.rows[i] = 16;
        }
        asm volatile("" : : "r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    TileScope(const TileScope&) = delete;
    ~TileScope() { _tile_release(); }
};

// C [rows, 32] = A B, or C + A B, for one pair of column tiles. Tiles: 0 to 3 C, 4 and 5 A, 6 and 7 B.
template <bool kTwo> inline void pair_product(int a_pieces, const uint16_t* a, int64_t a_piece, int64_t dp, int b_pieces,
                                              const uint16_t* b, float* c, int64_t c_row, bool add) {
    finish_stores();
    if (add) {
        _tile_loadd(0, c, c_row * 4);
        _tile_loadd(1, c + 16, c_row * 4);
        if (kTwo) _tile_loadd(2, c + 16 * c_row, c_row * 4);
        if (kTwo) _tile_loadd(3, c + 16 * c_row + 16, c_row * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if (kTwo) _tile_zero(2);
        if (kTwo) _tile_zero(3);
    }
    for (int64_t d = 0; d < dp; d += kTileDepth, a += 2 * kTileSize, b += kPieces * 2 * kTileSize) {
        for (int piece = 0; piece < a_pieces; ++piece) {
            _tile_loadd(4, a + piece * a_piece, 64);
            if (kTwo) _tile_loadd(5, a + piece * a_piece + kTileSize, 64);
            int others = kPieces - piece < b_pieces ? kPieces - piece : b_pieces;
            for (int other = others - 1; other >= 0; --other) {
                _tile_loadd(6, b + other * 2 * kTileSize, 64);
                _tile_dpbf16ps(0, 4, 6);
                if (kTwo) _tile_dpbf16ps(2, 5, 6);
                _tile_loadd(7, b + (other * 2 + 1) * kTileSize, 64);
                _tile_dpbf16ps(1, 4, 7);
                if (kTwo) _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, c, c_row * 4);
    _tile_stored(1, c + 16, c_row * 4);
    if (kTwo) _tile_stored(2, c + 16 * c_row, c_row * 4);
    if (kTwo) _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
    finish_stores();
}

// C [rows, n] = A [rows, depth] B for a panel-padded n, inside a TileScope. C has memory for kTileRows rows.
inline void product(int rows, const float* a, int64_t a_row, int64_t depth, const float* b, int64_t n, float* c,
                    int64_t c_row, const ProductScratch& scratch) {
    int64_t dp = tile_padded(depth);
    int pieces = split_exact(rows, a, a_row, dp, scratch.pieces) ? 1 : kPieces;
    if (pieces > 1) split_rows(rows, a, a_row, dp, scratch.pieces);
    const uint16_t* packed = (const uint16_t*)b;
    for (int64_t at = 0; at < n; at += kPairColumns, packed += kPieces * kPairColumns * dp) {
        auto multiply = rows > 16 ? pair_product<true> : pair_product<false>;
        multiply(pieces, scratch.pieces, kTileRows * dp, dp, kPieces, packed, c + at, c_row, false);
    }
}

// ---- outer products: A^T B for A [depth, m] and a panel of B [depth, n], summed over the depth ---------------------

constexpr int kOuterRows = kTileRows;  // m is padded to a multiple of it
inline int64_t outer_padded(int64_t m) { return (m + kOuterRows - 1) / kOuterRows * kOuterRows; }
inline int64_t outer_left_floats(int64_t depth, int64_t m) { return tile_padded(depth) * outer_padded(m) * kPieces / 2; }

// The pieces of A^T: [m / 32][piece][depth / 32][2 tiles][16 of m][32], each column of A times its scale.
inline void pack_outer_left(const float* a, int64_t depth, int64_t m, const float* scale, float sign, float* packed) {
    int64_t dp = tile_padded(depth);
    uint16_t* to = (uint16_t*)packed;
    for (int64_t at = 0; at < outer_padded(m); at += 16) {
        vf factor = scale ? sign * load_part(scale + at, m - at) : splat<vf>(sign);
        uint16_t* tile = to + at / 32 * 32 * dp * kPieces + at % 32 / 16 * kTileSize;
        for (int64_t d = 0; d < dp; d += kTileDepth, tile += 2 * kTileSize) {
            __m512i words[kPieces][16];
            for (int pair = 0; pair < 16; ++pair) {
                auto row = [&](int64_t i) __attribute__((always_inline)) {
                    return i < depth && at < m ? factor * load_part(a + i * m + at, m - at) : vf{};
                };
                split_pair(row(d + 2 * pair), row(d + 2 * pair + 1), [&](int piece, __m512i both) __attribute__((always_inline)) {
                    words[piece][pair] = interleave(both);
                });
            }
            for (int piece = 0; piece < kPieces; ++piece) {
                transpose_words(words[piece]);
                for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + piece * 32 * dp + i * kTileDepth, words[piece][i]);
            }
        }
    }
}

// Panel p of B, a row at a time as only 256 bytes of it lie together; returns the number of pieces that are not all zero, one
// for counts up to 256. With `counts` the others are left away until one is needed.
template <bool kCounts> inline int pack_outer_pieces(const float* b, int64_t depth, int64_t n, int64_t at, float* packed) {
    constexpr int64_t kAhead = 16;  // rows
    int64_t dp = tile_padded(depth), width = n - at;
    vu seen{};
    for (int64_t d = 0; d < dp; d += 2) {
        const float* from = b + d * n + at;
        uint16_t* to = (uint16_t*)packed + d / kTileDepth * kPieces * 2 * kTileSize + d % kTileDepth / 2 * 32;
        for (int i = 0; i < kPanel; i += kWidth) {
            if (d + kAhead < depth) __builtin_prefetch(from + kAhead * n + i);
            if (d + kAhead + 1 < depth) __builtin_prefetch(from + (kAhead + 1) * n + i);
            vf even = d < depth ? load_part(from + i, width - i) : vf{};
            vf odd = d + 1 < depth ? load_part(from + n + i, width - i) : vf{};
            uint16_t* tile = to + i / kPairColumns * kPairColumns * dp * kPieces + i % kPairColumns / 16 * kTileSize;
            if (kCounts) {
                seen |= bits(even) | bits(odd);
                __m512i upper = _mm512_and_si512((__m512i)odd, _mm512_set1_epi32((int)0xFFFF0000));
                _mm512_store_si512(tile, _mm512_or_si512(upper, _mm512_srli_epi32((__m512i)even, 16)));
                continue;
            }
            split_pair(even, odd, [&](int piece, __m512i both) __attribute__((always_inline)) {
                _mm512_store_si512(tile + piece * 2 * kTileSize, interleave(both));
            });
        }
    }
    return kCounts && !any((vi)(seen & 0xFFFFu)) ? 1 : kPieces;
}
inline int pack_outer_right(const float* b, int64_t depth, int64_t n, int64_t p, bool counts, float* packed) {
    if (counts && pack_outer_pieces<true>(b, depth, n, p * kPanel, packed) == 1) return 1;
    return pack_outer_pieces<false>(b, depth, n, p * kPanel, packed);
}

// C [padded m, kPanel] += A^T B, inside a TileScope.
inline void add_outer_product(const float* left, int64_t m, int64_t depth, const float* right, int right_pieces, float* c) {
    int64_t dp = tile_padded(depth);
    for (int64_t at = 0; at < outer_padded(m); at += kOuterRows)
        for (int pair = 0; pair < kPanel; pair += kPairColumns)
            pair_product<true>(kPieces, (const uint16_t*)left + at * dp * kPieces, 32 * dp, dp, right_pieces,
                               (const uint16_t*)right + pair * dp * kPieces, c + at * kPanel + pair, kPanel, true);
}

IPVAE_END
