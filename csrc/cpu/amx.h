// Matrix products on AMX tiles, at float32's accuracy.
//
// A float is the sum of three bfloat16 pieces, high + middle + low, to 2^-24. B is packed in all three. A row of A has as
// many as it needs: counts up to 256 are one piece, and then a product costs three tile products instead of six (high x
// high, high x middle, middle x high, high x low, middle x middle, low x high; what is left out is below 2^-24). Pieces
// that are zero add nothing, so the number of pieces changes no bit, and neither do the rows that share a tile.
//
// Floors at K 512, M 256 and 32 rows: counts times dictionary 24 tile products of 16 cycles per 32 x 32 outputs and 32
// columns, 768 cycles a row, against 4,096 of fused multiply-adds; 32 bytes a cycle of B from the L2 cache.
#pragma once

#include "rows.h"

IPVAE_BEGIN

constexpr int kTileRows = 32;
constexpr int kPieces = 3;
constexpr int kTileDepth = 32;                       // bfloat16 of a row of an A tile
constexpr int kTileSize = 16 * kTileDepth;           // bfloat16 of a whole tile
constexpr int kPairColumns = 32;                     // columns of two B tiles side by side

IPVAE_HD int64_t tile_padded(int64_t depth) { return (depth + kTileDepth - 1) / kTileDepth * kTileDepth; }

// The bfloat16 nearest to v, as a float, for finite v.
IPVAE_HD vf nearest_bf16(vf v) {
    vu u = bits(v);
    return from_bits((u + 0x7FFFu + ((u >> 16) & 1u)) & 0xFFFF0000u);
}

// ---- B: packed [n / 32][depth / 32][piece][2 tiles][16 pairs of depths][16 columns][2] ----------------------------

inline int64_t panel_floats(int64_t depth) { return kPanel * tile_padded(depth) * kPieces / 2; }

// One panel of 64 columns from float rows [depth, 64].
inline void pack_pieces(const float* rows, int64_t depth, uint16_t* packed) {
    int64_t blocks = tile_padded(depth) / kTileDepth;
    for (int half = 0; half < kPanel / kPairColumns; ++half)
        for (int64_t block = 0; block < blocks; ++block)
            for (int tile = 0; tile < 2; ++tile)
                for (int pair = 0; pair < 16; ++pair) {
                    int64_t d = block * kTileDepth + 2 * pair;
                    const float* from = rows + d * kPanel + half * kPairColumns + tile * 16;
                    vf even = d < depth ? load(from) : vf{}, odd = d + 1 < depth ? load(from + kPanel) : vf{};
                    for (int piece = 0; piece < kPieces; ++piece) {
                        vf e = nearest_bf16(even), o = nearest_bf16(odd);
                        uint16_t* to = packed + (((half * blocks + block) * kPieces + piece) * 2 + tile) * kTileSize + pair * 32;
                        *(vi_unaligned*)to = (vi)(bits(e) >> 16 | bits(o));
                        even = even - e;
                        odd = odd - o;
                    }
                }
}

// ---- A: pieces [piece][depth / 32][2 tiles][16 rows][32] ----------------------------------------------------------

struct ProductScratch {
    uint16_t* pieces;
};
inline int64_t product_scratch(int64_t depth) { return kTileRows * tile_padded(depth) * kPieces / 2; }
inline ProductScratch product_scratch_at(float* memory) { return {(uint16_t*)memory}; }

// Returns how many pieces are not zero everywhere. A's rows are zero up to padded(depth).
inline int split_rows(int rows, const float* a, int64_t a_row, int64_t depth, uint16_t* pieces) {
    int64_t dp = tile_padded(depth), piece_size = kTileRows * dp;
    __m512i middle = _mm512_setzero_si512(), low = middle;
    for (int r = 0; r < rows; ++r)
        for (int64_t d = 0; d < dp; d += kWidth) {
            vf v = load(a + r * a_row + d);
            uint16_t* to = pieces + (d / kTileDepth * 2 + r / 16) * kTileSize + r % 16 * kTileDepth + d % kTileDepth;
            vf h = nearest_bf16(v), rest = v - h, m = nearest_bf16(rest), l = nearest_bf16(rest - m);
            vf of[kPieces] = {h, m, l};
            for (int p = 0; p < kPieces; ++p)
                _mm256_storeu_si256((__m256i*)(to + p * piece_size),
                                    _mm512_cvtepi32_epi16((__m512i)(bits(of[p]) >> 16)));
            middle = _mm512_or_si512(middle, (__m512i)bits(m));
            low = _mm512_or_si512(low, (__m512i)bits(l));
        }
    return _mm512_test_epi32_mask(low, low) ? 3 : _mm512_test_epi32_mask(middle, middle) ? 2 : 1;
}

// ---- products -----------------------------------------------------------------------------------------------------

// The tile intrinsics of GCC 12 do not tell the compiler what memory they read.
IPVAE_HD void finish_stores() { asm volatile("" ::: "memory"); }

// Tiles 0 to 3 hold C, 4 and 5 A, 6 and 7 B. While an object of this class lives the thread's tiles are set up for
// products of `rows` rows.
class TileScope {
  public:
    explicit TileScope(int rows) {
        struct {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } config = {};
        config.palette = 1;
        int first = rows < 16 ? rows : 16, second = rows > 16 ? rows - 16 : 1;
        int tile_rows[8] = {first, first, second, second, first, second, 16, 16};
        for (int i = 0; i < 8; ++i) {
            config.row_bytes[i] = 64;
            config.rows[i] = (uint8_t)tile_rows[i];
        }
        asm volatile("" : : "r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    TileScope(const TileScope&) = delete;
    ~TileScope() { _tile_release(); }
};

// C [rows, 32] = A B for one pair of column tiles.
template <bool kTwo> inline void pair_product(int a_pieces, const uint16_t* a, int64_t a_piece, int64_t dp, const uint16_t* b,
                                              float* c, int64_t c_row) {
    finish_stores();
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) _tile_zero(2);
    if (kTwo) _tile_zero(3);
    auto load_a = [&](int piece, int64_t d) __attribute__((always_inline)) {
        _tile_loadd(4, a + piece * a_piece + d / kTileDepth * 2 * kTileSize, 64);
        if (kTwo) _tile_loadd(5, a + piece * a_piece + (d / kTileDepth * 2 + 1) * kTileSize, 64);
    };
    auto multiply = [&](int piece) __attribute__((always_inline)) {
        _tile_loadd(6, b + piece * 2 * kTileSize, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (kTwo) _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b + (piece * 2 + 1) * kTileSize, 64);
        _tile_dpbf16ps(1, 4, 7);
        if (kTwo) _tile_dpbf16ps(3, 5, 7);
    };
    for (int64_t d = 0; d < dp; d += kTileDepth, b += kPieces * 2 * kTileSize) {
        load_a(0, d);
        for (int piece = kPieces - 1; piece >= 0; --piece) multiply(piece);
        if (a_pieces == 1) continue;
        load_a(1, d);
        multiply(1);
        multiply(0);
        if (a_pieces == 2) continue;
        load_a(2, d);
        multiply(0);
    }
    _tile_stored(0, c, c_row * 4);
    _tile_stored(1, c + 16, c_row * 4);
    if (kTwo) _tile_stored(2, c + 16 * c_row, c_row * 4);
    if (kTwo) _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
    finish_stores();
}

// C [rows, n] = A [rows, depth] B for a panel-padded n, inside a TileScope of as many rows.
inline void product(int rows, const float* a, int64_t a_row, int64_t depth, const float* b, int64_t n, float* c,
                    int64_t c_row, const ProductScratch& scratch) {
    int64_t dp = tile_padded(depth);
    int pieces = split_rows(rows, a, a_row, depth, scratch.pieces);
    const uint16_t* packed = (const uint16_t*)b;
    for (int64_t at = 0; at < n; at += kPairColumns, packed += kPieces * kPairColumns * dp) {
        if (rows > 16)
            pair_product<true>(pieces, scratch.pieces, kTileRows * dp, dp, packed, c + at, c_row);
        else
            pair_product<false>(pieces, scratch.pieces, kTileRows * dp, dp, packed, c + at, c_row);
    }
}

IPVAE_END
