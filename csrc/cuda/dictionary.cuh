// Products with the dictionary on tensor cores, to float32's accuracy.
//
// Operands are split in two TF32 numbers, v = high + low to 2^-24: three products of TF32 give one of float32, and a
// count up to 2,048 needs no low part, which saves one of the three. Tensor cores round their sums towards zero, so only
// 32 terms are summed there, and those sums are added in float32 (Ootomo and Yokota, "Recovering single precision accuracy
// from Tensor Cores while surpassing the FP32 theoretical peak performance", IJHPCA 2022).
//
// TF32 and not bfloat16, since an element of the dictionary then takes 4 bytes on chip where three bfloat16 pieces take 6.
// The dictionary is the left operand in both products: its 16 rows are pixels or neurons, and the 8 columns are rows of
// the batch, so that a tile of the batch can be as small as 8.
//
// Sparse codes: a row of which few are not 0 is decoded event by event (add_events), in float32 without tensor cores, and
// its sum then depends on nothing but its own codes. Columns of a product on tensor cores share the neurons they sum over,
// in groups of 8 and 32: run over the neurons that fired in any row of a tile, it would round a row's sum as the other
// rows of the tile have it, and results would depend on how a batch is split.
#pragma once

#include "thread.cuh"

IPVAE_BEGIN

// The slice of the dictionary in shared memory, zero in its padding. Neurons are swizzled so that neither four neurons of
// eight pixels nor eight neurons of four pixels, which a warp reads for the two products, nor one neuron of 32 pixels,
// which it reads for an event, meet in a bank.
struct ResidentPhi {
    const float* at;
    int slice;

    // An event takes as long as the dense product takes for so many neurons of a row. An estimate, for 256 pixels, from
    // the 32 words of shared memory that an SM reads in a cycle: an event reads a word a lane for each 32 pixels, and its
    // code for each 128, 10 cycles. The dense product reads, for 16 pixels and 32 neurons, 16 words a lane of the
    // dictionary and 8 of the codes of each 8 rows: 1.5 cycles for a neuron of a row with 8 rows, 0.75 with 32. So 7 to
    // 13; not measured.
    static constexpr int kEventCost = 8;

    static IPVAE_DEVICE int swizzled(int pixel, int neuron) {
        return neuron ^ ((pixel & 3) << 3 | (pixel & 4) | (pixel >> 3 & 3));
    }
    IPVAE_DEVICE float operator()(int64_t pixel, int64_t neuron) const {
        int p = static_cast<int>(pixel);
        return at[p * slice + swizzled(p, static_cast<int>(neuron))];
    }
};

// The same, read where the dictionary [n_inputs, stride] lies.
struct StreamedPhi {
    const float* at;  // first neuron of the slice
    int64_t stride, n_inputs, width;

    // The same from the bytes of L2: an event reads 32 for each pixel, the least that is read at once, the dense product 4
    // for a neuron of 8 to 32 rows. So 64 to 256; not measured.
    static constexpr int kEventCost = 128;

    IPVAE_DEVICE float operator()(int64_t pixel, int64_t neuron) const {
        return pixel < n_inputs && neuron < width ? at[pixel * stride + neuron] : 0.f;
    }
};

// out[column][m] = sum over k of A(m, k) operand[column][k], for kColumns groups of 8 columns; m in [0, m_size), both sizes
// multiples of 32. kDecode: A(m, k) = Phi(m, k), else Phi(k, m).
template <bool kDecode, int kColumns, class Phi, class Thread>
IPVAE_DEVICE void product(const Thread& thread, const Phi& phi, int64_t m_size, int64_t depth, const float* operand,
                          int64_t operand_stride, float* out, int64_t out_stride) {
    int g = thread.lane() >> 2, t = thread.lane() & 3;
    auto left = [&](int64_t m, int64_t k) { return kDecode ? phi(m, k) : phi(k, m); };
    for (int64_t m = 16 * thread.warp(); m < m_size; m += 16 * (Thread::kCount / 32)) {
        float total[kColumns][4] = {};
        for (int64_t k = 0; k < depth; k += 32) {
            float b[kColumns][4][2];
            bool fine = false;
            IPVAE_UNROLL for (int c = 0; c < kColumns; ++c)
                IPVAE_UNROLL for (int s = 0; s < 4; ++s)
                    IPVAE_UNROLL for (int i = 0; i < 2; ++i) {
                        float v = operand[(8 * c + g) * operand_stride + k + 8 * s + t + 4 * i];
                        b[c][s][i] = v;
                        fine |= v != to_tf32(v);
                    }
            fine = thread.any(fine);
            // Sums of their own, so that three products are in flight for each group of columns.
            float high[kColumns][4] = {}, left_low[kColumns][4] = {}, right_low[kColumns][4] = {};
            IPVAE_UNROLL for (int s = 0; s < 4; ++s) {
                int64_t at = k + 8 * s + t;
                float a[4] = {left(m + g, at), left(m + g + 8, at), left(m + g, at + 4), left(m + g + 8, at + 4)}, low[4];
                IPVAE_UNROLL for (int i = 0; i < 4; ++i) {
                    float whole = a[i];
                    a[i] = to_tf32(whole);
                    low[i] = to_tf32(whole - a[i]);
                }
                IPVAE_UNROLL for (int c = 0; c < kColumns; ++c) {
                    float bh[2] = {to_tf32(b[c][s][0]), to_tf32(b[c][s][1])};
                    thread.multiply_add(high[c], a, bh);
                    thread.multiply_add(left_low[c], low, bh);
                    if (fine) {
                        float bl[2] = {to_tf32(b[c][s][0] - bh[0]), to_tf32(b[c][s][1] - bh[1])};
                        thread.multiply_add(right_low[c], a, bl);
                    }
                }
            }
            IPVAE_UNROLL for (int c = 0; c < kColumns; ++c)
                IPVAE_UNROLL for (int i = 0; i < 4; ++i) total[c][i] += high[c][i] + (left_low[c][i] + right_low[c][i]);
        }
        IPVAE_UNROLL for (int c = 0; c < kColumns; ++c) {
            float* to = out + (8 * c + 2 * t) * out_stride + m + g;
            to[0] = total[c][0];
            to[out_stride] = total[c][1];
            to[8] = total[c][2];
            to[out_stride + 8] = total[c][3];
        }
    }
}

constexpr int64_t kEventInputs = 128;  // four to a lane, so that four reads are in flight

// out[m] = sum over n of Phi(m, n) codes[n], over the neurons with a bit in `fired` [n_words] and in their order, for
// kEventInputs inputs from `first` on, as far as there are; n_inputs is a multiple of 32. For one warp.
template <class Phi, class Thread>
IPVAE_DEVICE void add_events(const Thread& thread, const Phi& phi, int64_t first, int64_t n_inputs, const uint32_t* fired,
                             int64_t n_words, const float* codes, float* out) {
    int64_t m[4];
    // Beyond the last inputs these are done again.
    IPVAE_UNROLL for (int i = 0; i < 4; ++i)
        m[i] = (first + 32 * i < n_inputs ? first + 32 * i : n_inputs - 32) + thread.lane();
    float total[4] = {};
    for (int64_t word = 0; word < n_words; ++word)
        for (uint32_t left = fired[word]; left; left &= left - 1) {
            int64_t n = 32 * word + lowest_bit(left);
            float code = codes[n];
            IPVAE_UNROLL for (int i = 0; i < 4; ++i) total[i] += phi(m[i], n) * code;
        }
    IPVAE_UNROLL for (int i = 0; i < 4; ++i) out[m[i]] = total[i];
}

IPVAE_END
