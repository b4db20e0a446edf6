// Products in fixed point on AMX tiles: 8-bit digits in, exact 32-bit sums out.
//
// B is kept as integers, multiples of a unit of each column, in signed digits of base 256: three, 23 bits and the sign of
// the column's largest element, or for counts four. Counts are digits themselves; other rows become three digits of a unit
// of their own. Sums are exact up to the last step, so no bit depends on what shares a tile.
//
// With three digits on both sides the elements' rounding is 2^-24 of the largest of their row or column, and of the nine
// products of digits the smallest is left out. With trained dictionaries the errors of states and gradients are about half
// of what fused multiply-adds in float32 leave (docs/design/cpu.md).
//
// Floors at K 512, M 256, in tiles of 32 rows: 512 cycles a row for counts and 1,024 for others, where three bfloat16 pieces
// take 768 and 1,536; and B takes 4 and 3 bytes an element instead of 6, so that both matrices and a tile's state share the
// L2 cache. Measured with all of it in that cache: 1,010 and 1,500; pieces 1,370 and 2,870; fused multiply-adds 4,450.
#pragma once

#include "amx.h"

IPVAE_BEGIN

constexpr int kByteDepth = 64;              // bytes of a row of an A tile
constexpr int kByteTile = 16 * kByteDepth;  // bytes of a whole tile
constexpr int kRowDigits = 3, kCountDigits = 4;  // of B, for other rows and for counts
constexpr int64_t kExactDepth = 1 << 15;    // times three products of digits is below 2^31
constexpr float kCountsEnd = 1 << 24;       // every integer below is a float

// Largest integer of so many digits; one of base 256 more than the highest is needed for the others' signs.
IPVAE_HD constexpr float largest_fixed(int digits) { return digits == 3 ? 127.f * 65536.f : 1 << 30; }

// A unit and its reciprocal, for elements up to `largest`: NaN where that is not finite, and no smaller than floats allow.
struct Unit {
    float size, inverse;
};
IPVAE_HD Unit unit_of(float largest, int digits) {
    if (!(largest < INFINITY)) return {__builtin_nanf(""), 0.f};
    float bounded = largest > 0x1p-90f ? largest : 0x1p-90f;
    return {bounded / largest_fixed(digits), largest_fixed(digits) / bounded};
}

// Digits of integers v / unit: byte i of a lane is digit i, signed.
template <int kDigits> IPVAE_HD __m512i digits_of(vf v, vf inverse) {
    // Half the base added to all but the highest digit is a bias of each of them.
    __m512i bias = _mm512_set1_epi32(kDigits == 3 ? 0x8080 : 0x808080);
    return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32((__m512)(v * inverse)), bias), bias);
}

IPVAE_HD __m128i byte_of(__m512i words, int i) { return _mm512_cvtepi32_epi8(_mm512_srli_epi32(words, 8 * i)); }

// ---- B: panels of [64 units][4 column tiles][depth / 64][digits][16 x 4 depths][16 columns][4] --------------------

template <int kDigits> inline int64_t digit_panel_floats(int64_t depth) { return kPanel + padded(depth) * kPanel / 4 * kDigits; }

template <int kDigits> IPVAE_HD const int8_t* column_tile(const float* b, int64_t depth, int64_t column) {
    const float* panel = b + column / kPanel * digit_panel_floats<kDigits>(depth);
    return (const int8_t*)(panel + kPanel) + column % kPanel * padded(depth) * kDigits;
}
template <int kDigits> IPVAE_HD vf column_units(const float* b, int64_t depth, int64_t column) {
    return load(b + column / kPanel * digit_panel_floats<kDigits>(depth) + column % kPanel);
}

// Panel p of B [depth, n], which lies in memory as it is or, transposed, as [n, depth].
template <int kDigits>
inline void pack_digits(const float* matrix, int64_t depth, int64_t n, bool transposed, int64_t p, float* packed) {
    uint8_t* to = (uint8_t*)(packed + kPanel);
    for (int64_t at = p * kPanel; at < (p + 1) * kPanel; at += 16) {
        int64_t columns = n - at;
        __mmask16 there = (__mmask16)(columns >= 16 ? 0xFFFF : columns > 0 ? (1 << columns) - 1 : 0);
        __m512i rows = (__m512i)(lane_numbers() * (int32_t)depth);
        auto row = [&](int64_t d) __attribute__((always_inline)) {
            if (d >= depth) return vf{};
            if (!transposed) return (vf)_mm512_maskz_loadu_ps(there, matrix + d * n + at);
            return (vf)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), there, rows, matrix + at * depth + d, 4);
        };
        vf largest{}, inverse{};
        for (int64_t d = 0; d < depth; ++d)  // as integers NaN is the largest
            largest = (vf)_mm512_max_epu32((__m512i)largest, (__m512i)abs(row(d)));
        for (int i = 0; i < kWidth; ++i) {
            Unit unit = unit_of(largest[i], kDigits);
            packed[at % kPanel + i] = unit.size;
            inverse[i] = unit.inverse;
        }
        for (int64_t d = 0; d < padded(depth); d += kByteDepth, to += kDigits * kByteTile)
            for (int64_t group = 0; group < 16; ++group) {
                __m512i words[4];
                for (int i = 0; i < 4; ++i) words[i] = digits_of<kDigits>(row(d + group * 4 + i), inverse);
                for (int digit = 0; digit < kDigits; ++digit) {
                    __m512i bytes = _mm512_setzero_si512();
                    for (int i = 0; i < 4; ++i) {
                        __m512i byte = _mm512_and_si512(_mm512_srli_epi32(words[i], 8 * digit), _mm512_set1_epi32(255));
                        bytes = _mm512_or_si512(bytes, _mm512_slli_epi32(byte, 8 * i));
                    }
                    _mm512_store_si512(to + digit * kByteTile + group * 64, bytes);
                }
            }
    }
}

inline int64_t panel_floats(int64_t depth) { return digit_panel_floats<kRowDigits>(depth); }
inline int64_t counts_panel_floats(int64_t depth) { return digit_panel_floats<kCountDigits>(depth); }
inline void pack_panel(const float* matrix, int64_t depth, int64_t n, bool transposed, int64_t p, float* packed) {
    pack_digits<kRowDigits>(matrix, depth, n, transposed, p, packed);
}
inline void pack_counts_panel(const float* matrix, int64_t depth, int64_t n, bool transposed, int64_t p, float* packed) {
    pack_digits<kCountDigits>(matrix, depth, n, transposed, p, packed);
}

// ---- A: bytes [digit][depth / 64][2 tiles][16 rows][64] -----------------------------------------------------------

struct ProductScratch {
    uint8_t* bytes;
    float* units;  // [kTileRows]
};
inline int64_t product_scratch(int64_t depth) { return kTileRows * (padded(depth) * kRowDigits / 4 + 1); }
inline ProductScratch product_scratch_at(float* memory, int64_t depth) {
    return {(uint8_t*)memory, memory + kTileRows * padded(depth) * kRowDigits / 4};
}

IPVAE_HD __m128i* bytes_at(uint8_t* bytes, int r, int64_t d) {
    return (__m128i*)(bytes + (d / kByteDepth * 2 + r / 16) * kByteTile + r % 16 * kByteDepth + d % kByteDepth);
}

// Digits of a row's largest count; 0 where it is not below kCountsEnd, as with NaN or an absurd log rate.
inline int digits_of_counts(const float* row, int64_t dp) {
    __m512i largest = _mm512_setzero_si512();  // floats of one sign compare as their bits, NaN above all
    for (int64_t d = 0; d < dp; d += kWidth) largest = _mm512_max_epu32((__m512i)load(row + d), largest);
    auto below = [&](float end) { return _mm512_cmplt_epu32_mask(largest, (__m512i)splat<vf>(end)) == 0xFFFF; };
    return below(256.f) ? 1 : below(65536.f) ? 2 : below(kCountsEnd) ? 3 : 0;
}

inline void split_counts(int rows, const float* a, int64_t a_row, int64_t dp, int digit, uint8_t* bytes) {
    for (int r = 0; r < rows; ++r)
        for (int64_t d = 0; d < dp; d += kWidth)
            _mm_store_si128(bytes_at(bytes, r, d), byte_of(_mm512_cvttps_epi32((__m512)load(a + r * a_row + d)), digit));
}

inline void split_rows(int rows, const float* a, int64_t a_row, int64_t dp, const ProductScratch& scratch) {
    for (int r = 0; r < rows; ++r) {
        vf largest{};
        for (int64_t d = 0; d < dp; d += kWidth)
            largest = (vf)_mm512_max_epu32((__m512i)largest, (__m512i)abs(load(a + r * a_row + d)));
        Unit unit = unit_of(from_bits(_mm512_reduce_max_epu32((__m512i)largest)), kRowDigits);
        scratch.units[r] = unit.size;
        for (int64_t d = 0; d < dp; d += kWidth) {
            __m512i words = digits_of<kRowDigits>(load(a + r * a_row + d), splat<vf>(unit.inverse));
            for (int digit = 0; digit < kRowDigits; ++digit)
                _mm_store_si128(bytes_at(scratch.bytes + digit * kTileRows * dp, r, d), byte_of(words, digit));
        }
    }
}

// ---- products: sums [weight][rows][16 columns] of a column tile ---------------------------------------------------

// Counts, all four digits of the column. Tiles: 0 to 3 sums of two digits and two row tiles, 4 and 5 A, 6 and 7 B.
template <bool kTwo> inline void count_sums(const uint8_t* a, int64_t depth, const int8_t* b, int32_t (*sums)[kTileRows][16]) {
    finish_stores();
    for (int digit = 0; digit < kCountDigits; digit += 2) {
        const uint8_t* a_at = a;
        const int8_t* b_at = b + digit * kByteTile;
        _tile_zero(0);
        _tile_zero(1);
        if (kTwo) _tile_zero(2);
        if (kTwo) _tile_zero(3);
        for (int64_t d = 0; d < depth; d += kByteDepth, a_at += 2 * kByteTile, b_at += kCountDigits * kByteTile) {
            _tile_loadd(4, a_at, 64);
            if (kTwo) _tile_loadd(5, a_at + kByteTile, 64);
            _tile_loadd(6, b_at, 64);
            _tile_dpbusd(0, 4, 6);
            if (kTwo) _tile_dpbusd(2, 5, 6);
            _tile_loadd(7, b_at + kByteTile, 64);
            _tile_dpbusd(1, 4, 7);
            if (kTwo) _tile_dpbusd(3, 5, 7);
        }
        _tile_stored(0, sums[digit][0], 64);
        _tile_stored(1, sums[digit + 1][0], 64);
        if (kTwo) _tile_stored(2, sums[digit][16], 64);
        if (kTwo) _tile_stored(3, sums[digit + 1][16], 64);
    }
    finish_stores();
}

// Any rows, one row tile: weights 256^4 to 256^1, the second in two parts as three additions to one tile would wait for each
// other. Tiles: 0 to 4 sums, 5 and 6 A, 7 B.
template <int kRowTile>
inline void row_sums(const uint8_t* a, int64_t a_digit, int64_t depth, const int8_t* b, int32_t (*sums)[kTileRows][16]) {
    finish_stores();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    a += kRowTile * kByteTile;
    for (int64_t d = 0; d < depth; d += kByteDepth, a += 2 * kByteTile, b += kRowDigits * kByteTile) {
        _tile_loadd(7, b + 2 * kByteTile, 64);
        _tile_loadd(5, a + 2 * a_digit, 64);
        _tile_dpbssd(0, 5, 7);
        _tile_loadd(6, a + a_digit, 64);
        _tile_dpbssd(1, 6, 7);
        _tile_loadd(5, a, 64);
        _tile_dpbssd(2, 5, 7);
        _tile_loadd(7, b + kByteTile, 64);
        _tile_dpbssd(4, 5, 7);
        _tile_dpbssd(3, 6, 7);
        _tile_loadd(5, a + 2 * a_digit, 64);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(7, b, 64);
        _tile_dpbssd(2, 5, 7);
        _tile_dpbssd(4, 6, 7);
    }
    _tile_stored(0, sums[0][kRowTile * 16], 64);
    _tile_stored(1, sums[1][kRowTile * 16], 64);
    _tile_stored(2, sums[2][kRowTile * 16], 64);
    _tile_stored(3, sums[3][kRowTile * 16], 64);
    _tile_stored(4, sums[4][kRowTile * 16], 64);
    finish_stores();
}

// sum over weights of 256^weight sums, from the smallest.
template <int kWeights> IPVAE_HD vf weigh(const int32_t (*sums)[kTileRows][16], const int (&order)[kWeights], int r) {
    vf total{}, base = splat<vf>(1.f);
    for (int i = 0; i < kWeights; ++i, base = base * 256.f)
        total = total + base * (vf)_mm512_cvtepi32_ps(_mm512_load_si512(sums[order[i]][r]));
    return total;
}

IPVAE_HD void store_or_add(float* to, bool add, vf v) { store(to, add ? load(to) + v : v); }

// A row of any floats, element by element.
inline void any_row_product(const float* a, int64_t depth, const float* b, int64_t n, float* c) {
    for (int64_t at = 0; at < n; ++at) {
        const int8_t* tile = column_tile<kCountDigits>(b, depth, at / 16 * 16) + at % 16 * 4;
        float unit = column_units<kCountDigits>(b, depth, at / 16 * 16)[at % 16];
        float total = 0.f;
        for (int64_t d = 0; d < depth; ++d) {
            const int8_t* low = tile + d / kByteDepth * kCountDigits * kByteTile + d % kByteDepth / 4 * 64 + d % 4;
            int32_t fixed = 0;
            for (int digit = kCountDigits - 1; digit >= 0; --digit) fixed = fixed * 256 + low[digit * kByteTile];
            total += a[d] * ((float)fixed * unit);
        }
        c[at] = total;
    }
}

// C [rows, n] = A [rows, depth] B for counts A and a B packed for them; n is panel-padded and A zero up to padded(depth).
// Inside a TileScope, as the next.
inline void counts_product(int rows, const float* a, int64_t a_row, int64_t depth, const float* b, int64_t, int64_t n,
                           float* c, int64_t c_row, const ProductScratch& scratch) {
    constexpr int kOrder[] = {0, 1, 2, 3};
    alignas(64) int32_t sums[kCountDigits][kTileRows][16];
    int64_t dp = padded(depth);
    int digits = 0, digits_of_row[kTileRows];
    for (int r = 0; r < rows; ++r) {
        digits_of_row[r] = digits_of_counts(a + r * a_row, dp);
        digits = digits_of_row[r] > digits ? digits_of_row[r] : digits;
    }
    float weight = 1.f;
    for (int digit = 0; digit < digits; ++digit, weight *= 256.f) {
        split_counts(rows, a, a_row, dp, digit, scratch.bytes);
        for (int64_t at = 0; at < n; at += 16) {
            const int8_t* tile = column_tile<kCountDigits>(b, depth, at);
            vf unit = column_units<kCountDigits>(b, depth, at) * weight;
            for (int64_t d = 0; d < dp; d += kExactDepth) {
                int64_t part = dp - d < kExactDepth ? dp - d : kExactDepth;
                auto sum_counts = rows > 16 ? count_sums<true> : count_sums<false>;
                sum_counts(scratch.bytes + d * kTileRows, part, tile + d * 16 * kCountDigits, sums);
                for (int r = 0; r < rows; ++r) store_or_add(c + r * c_row + at, digit || d, unit * weigh(sums, kOrder, r));
            }
        }
    }
    for (int r = 0; r < rows; ++r)
        if (!digits_of_row[r]) any_row_product(a + r * a_row, depth, b, n, c + r * c_row);
}

// The same for any rows A.
inline void product(int rows, const float* a, int64_t a_row, int64_t depth, const float* b, int64_t, int64_t n, float* c,
                    int64_t c_row, const ProductScratch& scratch) {
    constexpr int kOrder[] = {4, 2, 1, 0};
    alignas(64) int32_t sums[5][kTileRows][16];
    int64_t dp = padded(depth);
    split_rows(rows, a, a_row, dp, scratch);
    for (int64_t at = 0; at < n; at += 16) {
        const int8_t* tile = column_tile<kRowDigits>(b, depth, at);
        vf unit = column_units<kRowDigits>(b, depth, at) * 256.f;
        for (int64_t d = 0; d < dp; d += kExactDepth) {
            int64_t part = dp - d < kExactDepth ? dp - d : kExactDepth, a_digit = kTileRows * dp;
            row_sums<0>(scratch.bytes + d * kTileRows, a_digit, part, tile + d * 16 * kRowDigits, sums);
            if (rows > 16) row_sums<1>(scratch.bytes + d * kTileRows, a_digit, part, tile + d * 16 * kRowDigits, sums);
            for (int r = 0; r < rows; ++r) {
                __m512i* second = (__m512i*)sums[2][r];
                *second = _mm512_add_epi32(*second, _mm512_load_si512(sums[3][r]));
                store_or_add(c + r * c_row + at, d, unit * scratch.units[r] * weigh(sums, kOrder, r));
            }
        }
    }
}

IPVAE_END
