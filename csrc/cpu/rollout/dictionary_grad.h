// The dictionary's gradient: one large product over all steps and rows.
#pragma once

#include "backward.h"

IPVAE_BEGIN

constexpr int64_t kDepthBlock = 256;  // rows of the batch packed at a time: a panel of 64 KB, in L2

inline int64_t grad_product_scratch(const RolloutArgs& a, int64_t panels) {
    return outer_left_floats(kDepthBlock, a.n_inputs) + outer_right_floats(kDepthBlock) + panels * outer_padded(a.n_inputs) * kPanel;
}

// sum over d of A[d, m] B[d, k] for the panels [begin, end) of k, added to out [panels][padded m][kPanel].
inline void add_outer(const RolloutArgs& a, const float* left, const float* scale, float sign, const float* right, bool counts,
                      int64_t begin, int64_t end, float* packed_left, float* panel, float* out) {
    for (int64_t row = 0; row < a.n_rows; row += kDepthBlock) {
        int64_t depth = a.n_rows - row < kDepthBlock ? a.n_rows - row : kDepthBlock;
        pack_outer_left(left + row * a.n_inputs, depth, a.n_inputs, scale, sign, packed_left);
        for (int64_t p = begin; p < end; ++p) {
            int pieces = pack_outer_right(right + row * a.n_latents, depth, a.n_latents, p, counts, panel);
            add_outer_product(packed_left, a.n_inputs, depth, panel, pieces,
                              out + (p - begin) * outer_padded(a.n_inputs) * kPanel);
        }
    }
}

inline void dictionary_grad_panels(const RolloutGradArgs& g, int64_t begin, int64_t end, float* memory) {
    const RolloutArgs& a = g.forward;
    TileScope scope;
    Scratch scratch{memory};
    int64_t size = outer_padded(a.n_inputs) * kPanel;
    float* packed_left = scratch.take(outer_left_floats(kDepthBlock, a.n_inputs));
    float* panel = scratch.take(outer_right_floats(kDepthBlock));
    float* out = scratch.take((end - begin) * size);
    memset(out, 0, (end - begin) * size * sizeof(float));
    for (int64_t step = 0; step < a.n_steps; ++step) {
        for (int64_t inner = 0; inner <= a.n_inner; ++inner) {
            int64_t draw_index = step * (a.n_inner + 1) + inner, update = step * a.n_inner + inner;
            int64_t inputs_at = draw_index * a.n_rows * a.n_inputs;
            // error = x - dictionary counts, and drive = dictionary^T (error precision)
            add_outer(a, g.grad_errors + inputs_at, nullptr, -1.f, a.drawn + draw_index * a.n_rows * a.n_latents,
                      a.draws_counts, begin, end, packed_left, panel, out);
            if (inner < a.n_inner)
                add_outer(a, a.errors + inputs_at, a.precision, 1.f, g.grad_drives + update * a.n_rows * a.n_latents,
                          false, begin, end, packed_left, panel, out);
        }
    }
    for (int64_t p = begin; p < end; ++p) {
        int64_t at = p * kPanel, width = a.n_latents - at < kPanel ? a.n_latents - at : kPanel;
        for (int64_t m = 0; m < a.n_inputs; ++m)
            memcpy(g.grad_dictionary + m * a.n_latents + at, out + (p - begin) * size + m * kPanel, width * sizeof(float));
    }
}

IPVAE_END
