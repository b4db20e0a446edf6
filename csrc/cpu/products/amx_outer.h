// Outer products, A^T B for A [depth, m] and a panel of B [depth, n] summed over the depth, on AMX tiles at float32's
// accuracy.
//
// A float is the sum of three bfloat16 pieces, high + middle + low, to 2^-24. Two floats' product takes six products of
// pieces (high x high, high x middle, middle x high, high x low, middle x middle, low x high; what is left out is below
// 2^-24), or three where B is counts up to 256, which are one piece. The depth is the batch, whose gradients may differ in
// size by any factor: digits of a common unit (amx_product.h) would not do.
//
// Floors at B 200, K 512, M 256: a tile product takes 16 cycles, which makes 154,000 cycles a step for counts and 307,000
// for other rows; fused multiply-adds 819,000 each.
#pragma once

#include "amx.h"

IPVAE_BEGIN

constexpr int kPieces = 3;
constexpr int kPieceDepth = 32;                // bfloat16 of a row of a tile
constexpr int kPieceTile = 16 * kPieceDepth;   // bfloat16 of a whole tile
constexpr int kPairColumns = 32;               // columns of two B tiles side by side
constexpr int kOuterRows = 32;  // m is padded to a multiple of it
inline int64_t outer_padded(int64_t m) { return (m + kOuterRows - 1) / kOuterRows * kOuterRows; }

IPVAE_HD int64_t piece_padded(int64_t depth) { return (depth + kPieceDepth - 1) / kPieceDepth * kPieceDepth; }
inline int64_t outer_left_floats(int64_t depth, int64_t m) { return piece_padded(depth) * outer_padded(m) * kPieces / 2; }
inline int64_t outer_right_floats(int64_t depth) { return piece_padded(depth) * kPanel * kPieces / 2; }

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

// ---- A ------------------------------------------------------------------------------------------------------------

// The pieces of A^T: [m / 32][piece][depth / 32][2 tiles][16 of m][32], each column of A times its scale.
inline void pack_outer_left(const float* a, int64_t depth, int64_t m, const float* scale, float sign, float* packed) {
    int64_t dp = piece_padded(depth);
    uint16_t* to = (uint16_t*)packed;
    for (int64_t at = 0; at < outer_padded(m); at += 16) {
        vf factor = scale ? sign * load_part(scale + at, m - at) : splat<vf>(sign);
        uint16_t* tile = to + at / 32 * 32 * dp * kPieces + at % 32 / 16 * kPieceTile;
        for (int64_t d = 0; d < dp; d += kPieceDepth, tile += 2 * kPieceTile) {
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
                for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + piece * 32 * dp + i * kPieceDepth, words[piece][i]);
            }
        }
    }
}

// ---- B: pieces [2 pairs of column tiles][depth / 32][piece][2 tiles][16 pairs of depths][16 columns][2] -------------

// Panel p of B, a row at a time as only 256 bytes of it lie together; returns the number of pieces that are not all zero, one
// for counts up to 256. With `counts` the others are left away until one is needed.
template <bool kCounts> inline int pack_outer_pieces(const float* b, int64_t depth, int64_t n, int64_t at, float* packed) {
    constexpr int64_t kAhead = 16;  // rows
    int64_t dp = piece_padded(depth), width = n - at;
    vu seen{};
    for (int64_t d = 0; d < dp; d += 2) {
        const float* from = b + d * n + at;
        uint16_t* to = (uint16_t*)packed + d / kPieceDepth * kPieces * 2 * kPieceTile + d % kPieceDepth / 2 * 32;
        for (int i = 0; i < kPanel; i += kWidth) {
            if (d + kAhead < depth) __builtin_prefetch(from + kAhead * n + i);
            if (d + kAhead + 1 < depth) __builtin_prefetch(from + (kAhead + 1) * n + i);
            vf even = d < depth ? load_part(from + i, width - i) : vf{};
            vf odd = d + 1 < depth ? load_part(from + n + i, width - i) : vf{};
            uint16_t* tile = to + i / kPairColumns * kPairColumns * dp * kPieces + i % kPairColumns / 16 * kPieceTile;
            if (kCounts) {
                seen |= bits(even) | bits(odd);
                __m512i upper = _mm512_and_si512((__m512i)odd, _mm512_set1_epi32((int)0xFFFF0000));
                _mm512_store_si512(tile, _mm512_or_si512(upper, _mm512_srli_epi32((__m512i)even, 16)));
                continue;
            }
            split_pair(even, odd, [&](int piece, __m512i both) __attribute__((always_inline)) {
                _mm512_store_si512(tile + piece * 2 * kPieceTile, interleave(both));
            });
        }
    }
    return kCounts && !any((vi)(seen & 0xFFFFu)) ? 1 : kPieces;
}
inline int pack_outer_right(const float* b, int64_t depth, int64_t n, int64_t p, bool counts, float* packed) {
    if (counts && pack_outer_pieces<true>(b, depth, n, p * kPanel, packed) == 1) return 1;
    return pack_outer_pieces<false>(b, depth, n, p * kPanel, packed);
}

// ---- products -----------------------------------------------------------------------------------------------------

// C [32, 32] += A B for one pair of column tiles. Tiles: 0 to 3 C, 4 and 5 A, 6 and 7 B.
inline void add_pair_product(const uint16_t* a, int64_t a_piece, int64_t dp, int b_pieces, const uint16_t* b, float* c,
                             int64_t c_row) {
    finish_stores();
    _tile_loadd(0, c, c_row * 4);
    _tile_loadd(1, c + 16, c_row * 4);
    _tile_loadd(2, c + 16 * c_row, c_row * 4);
    _tile_loadd(3, c + 16 * c_row + 16, c_row * 4);
    for (int64_t d = 0; d < dp; d += kPieceDepth, a += 2 * kPieceTile, b += kPieces * 2 * kPieceTile) {
        for (int piece = 0; piece < kPieces; ++piece) {
            _tile_loadd(4, a + piece * a_piece, 64);
            _tile_loadd(5, a + piece * a_piece + kPieceTile, 64);
            int others = kPieces - piece < b_pieces ? kPieces - piece : b_pieces;
            for (int other = others - 1; other >= 0; --other) {
                _tile_loadd(6, b + other * 2 * kPieceTile, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(2, 5, 6);
                _tile_loadd(7, b + (other * 2 + 1) * kPieceTile, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, c, c_row * 4);
    _tile_stored(1, c + 16, c_row * 4);
    _tile_stored(2, c + 16 * c_row, c_row * 4);
    _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
    finish_stores();
}

// C [padded m, kPanel] += A^T B, inside a TileScope.
inline void add_outer_product(const float* left, int64_t m, int64_t depth, const float* right, int right_pieces, float* c) {
    int64_t dp = piece_padded(depth);
    for (int64_t at = 0; at < outer_padded(m); at += kOuterRows)
        for (int pair = 0; pair < kPanel; pair += kPairColumns)
            add_pair_product((const uint16_t*)left + at * dp * kPieces, 32 * dp, dp, right_pieces,
                             (const uint16_t*)right + pair * dp * kPieces, c + at * kPanel + pair, kPanel);
}

IPVAE_END
