// A whole rollout, and its gradient, for one tile of rows: the state stays in the tile's scratch for all steps.
#pragma once

#include "draw.h"
#include "kernels.h"
#include "matmul.h"

#include "../common/poisson_cell.h"

IPVAE_BEGIN

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

inline CellConstants cell_constants(const RolloutArgs& a) {
    return {a.learning_rate, a.leak, a.clamp_u, a.clamp_du};
}

// ---- forward ------------------------------------------------------------------------------------------------------

struct Tile {
    int64_t first;  // row of the batch
    int rows;
    int64_t kp, mp;            // padded numbers of latents and inputs
    float *u, *u_prior;        // [rows, kp]
    float *counts, *slopes;    // [rows, kp]
    float* drive;              // [rows, kp]
    float *error, *weighted;   // [rows, mp] residual, and residual times precision
    float* draw_scratch;
    int32_t* listed;           // [kp]
};

inline int64_t forward_scratch(const RolloutArgs& a) {
    int64_t kp = padded(a.n_latents), mp = padded(a.n_inputs);
    return kTileRows * (5 * kp + 2 * mp) + draw_scratch(kp) + kp;
}

inline Tile make_tile(const RolloutArgs& a, int64_t index, float* memory) {
    Scratch scratch{memory};
    Tile t;
    t.first = index * kTileRows;
    t.rows = (int)(a.n_rows - t.first < kTileRows ? a.n_rows - t.first : kTileRows);
    t.kp = padded(a.n_latents);
    t.mp = padded(a.n_inputs);
    t.u = scratch.take(kTileRows * t.kp);
    t.u_prior = scratch.take(kTileRows * t.kp);
    t.counts = scratch.take(kTileRows * t.kp);
    t.slopes = scratch.take(kTileRows * t.kp);
    t.drive = scratch.take(kTileRows * t.kp);
    t.error = scratch.take(kTileRows * t.mp);
    t.weighted = scratch.take(kTileRows * t.mp);
    t.draw_scratch = scratch.take(draw_scratch(t.kp));
    t.listed = (int32_t*)scratch.take(t.kp);
    return t;
}

// Counts and slopes of every row from its log rates; zero in the padding.
inline void draw_tile(const RolloutArgs& a, const Tile& t, uint32_t kind, uint32_t inner, uint32_t step) {
    DrawOptions options{(Estimator)a.estimator, a.temperature, a.n_arrivals};
    for (int r = 0; r < t.rows; ++r) {
        float *counts = t.counts + r * t.kp, *slopes = t.slopes + r * t.kp;
        Stream stream = make_stream(a.seed, kind, inner, step, a.sample_offset + (uint32_t)(t.first + r));
        draw(options, t.u + r * t.kp, counts, slopes, 0, t.kp, stream, t.draw_scratch);
        for (int64_t k = a.n_latents; k < t.kp; ++k) counts[k] = slopes[k] = 0.f;
    }
}

// error = x - dictionary counts
inline void decode_tile(const RolloutArgs& a, const Tile& t, int64_t step) {
    load_rows(a.x + step * a.x_step + t.first * a.n_inputs, t.rows, a.n_inputs, t.mp, 0.f, t.error);
    subtract_product(t.rows, t.counts, t.kp, a.n_latents, a.decoder, t.mp, t.error, t.mp, t.listed);
}

inline void save_draw(const RolloutArgs& a, const Tile& t, int64_t draw_index) {
    if (!a.drawn) return;
    int64_t row = draw_index * a.n_rows + t.first;
    store_rows(t.counts, t.rows, a.n_latents, t.kp, a.drawn + row * a.n_latents);
    store_rows(t.slopes, t.rows, a.n_latents, t.kp, a.slopes + row * a.n_latents);
    store_rows(t.error, t.rows, a.n_inputs, t.mp, a.errors + row * a.n_inputs);
}

inline void update_tile(const RolloutArgs& a, const Tile& t) {
    for (int r = 0; r < t.rows; ++r)
        for (int64_t i = 0; i < t.mp; i += kWidth)
            store(t.weighted + r * t.mp + i, load(t.error + r * t.mp + i) * load(a.precision + i));
    dense_product(t.rows, t.weighted, t.mp, a.n_inputs, a.encoder, t.kp, t.drive, t.kp);
    CellConstants cell = cell_constants(a);
    for (int r = 0; r < t.rows; ++r) {
        int64_t at = r * t.kp;
        for (int64_t k = 0; k < t.kp; k += kWidth, at += kWidth)
            store(t.u + at, update_log_rate(load(t.u + at), load(t.u_prior + at), load(t.drive + at),
                                            load(a.inhibition + k), cell));
        // An infinite learning rate times the padding's zero drive is NaN, which sums over a row must not meet.
        for (int64_t k = a.n_latents; k < t.kp; ++k) t.u[r * t.kp + k] = kFloor;
    }
}

inline bool wants_loss_draw(const RolloutArgs& a) {
    return a.drawn || a.recon || a.squared_error || a.spikes || a.zeros || a.counts || a.reconstruction;
}

inline void record_reconstruction_terms(const RolloutArgs& a, const Tile& t, int64_t at) {
    for (int r = 0; r < t.rows; ++r) {
        vf squared{}, weighted{};
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            // The padding of the error is zero: x and the packed decoder are zero there.
            vf e = load(t.error + r * t.mp + i), e2 = e * e;
            squared = squared + e2;
            weighted = weighted + e2 * load(a.precision + i);
        }
        if (a.recon) a.recon[at + r] = 0.5f * sum(weighted) + a.log_normalizer;
        if (a.squared_error) a.squared_error[at + r] = sum(squared);
    }
}

inline void record_count_terms(const RolloutArgs& a, const Tile& t, int64_t at) {
    for (int r = 0; r < t.rows; ++r) {
        vf spikes{}, silent{};
        for (int64_t k = 0; k < t.kp; k += kWidth) {
            vf z = load(t.counts + r * t.kp + k);
            spikes = spikes + z;
            silent = silent + (z == vf{} ? splat<vf>(1.f) : vf{});
        }
        if (a.spikes) a.spikes[at + r] = sum(spikes);
        if (a.zeros) a.zeros[at + r] = (sum(silent) - (float)(t.kp - a.n_latents)) / (float)a.n_latents;
    }
}

template <Kl kind> inline void record_kl(const Tile& t, float* out) {
    for (int r = 0; r < t.rows; ++r) {
        vf total{};
        for (int64_t at = r * t.kp; at < (r + 1) * t.kp; at += kWidth)
            total = total + kl_divergence<kind>(load(t.u + at), load(t.u_prior + at));
        out[r] = sum(total);
    }
}

inline void record_tile(const RolloutArgs& a, const Tile& t, int64_t step, int64_t index) {
    int64_t at = index * a.n_rows + t.first;
    if (a.recon || a.squared_error) record_reconstruction_terms(a, t, at);
    if (a.spikes || a.zeros) record_count_terms(a, t, at);
    if (a.kl_out) a.kl == kExact ? record_kl<kExact>(t, a.kl_out + at) : record_kl<kReleased>(t, a.kl_out + at);
    if (a.log_rates) store_rows(t.u, t.rows, a.n_latents, t.kp, a.log_rates + at * a.n_latents);
    if (a.counts) store_rows(t.counts, t.rows, a.n_latents, t.kp, a.counts + at * a.n_latents);
    if (a.reconstruction) {
        const float* x = a.x + step * a.x_step + t.first * a.n_inputs;
        for (int r = 0; r < t.rows; ++r)
            for (int64_t i = 0; i < a.n_inputs; ++i)
                a.reconstruction[(at + r) * a.n_inputs + i] = x[r * a.n_inputs + i] - t.error[r * t.mp + i];
    }
}

inline void save_path(const RolloutArgs& a, const Tile& t, int64_t index) {
    if (a.path) store_rows(t.u, t.rows, a.n_latents, t.kp, a.path + (index * a.n_rows + t.first) * a.n_latents);
}

inline void rollout_tile(const RolloutArgs& a, int64_t index, float* memory) {
    Tile t = make_tile(a, index, memory);
    load_rows(a.log_rate + t.first * a.n_latents, t.rows, a.n_latents, t.kp, kFloor, t.u);
    memset(t.slopes, 0, t.rows * t.kp * sizeof(float));  // hard draws leave them alone
    save_path(a, t, 0);
    bool loss_draw = wants_loss_draw(a), counts_are_current = false;
    for (int64_t step = 0; step < a.n_steps; ++step) {
        uint32_t global = a.step + (uint32_t)step;
        int64_t done = (int64_t)a.step + step + 1;  // up to 2^32, one more than a uint32_t holds
        memcpy(t.u_prior, t.u, t.rows * t.kp * sizeof(float));
        for (int64_t inner = 0; inner < a.n_inner; ++inner) {
            if (!counts_are_current) {
                bool reuse = a.single_draw && global > 0;
                draw_tile(a, t, reuse ? kLoss : kUpdate, (uint32_t)inner, reuse ? global - 1 : global);
            }
            decode_tile(a, t, step);
            save_draw(a, t, step * (a.n_inner + 1) + inner);
            update_tile(a, t);
            int64_t update = step * a.n_inner + inner;
            if (a.drives)
                store_rows(t.drive, t.rows, a.n_latents, t.kp, a.drives + (update * a.n_rows + t.first) * a.n_latents);
            save_path(a, t, update + 1);
        }
        bool recorded = done % a.record_every == 0;
        counts_are_current = false;
        if (loss_draw && recorded) {
            draw_tile(a, t, kLoss, 0, global);
            decode_tile(a, t, step);
            save_draw(a, t, step * (a.n_inner + 1) + a.n_inner);
            counts_are_current = a.single_draw;
        }
        if (recorded) record_tile(a, t, step, done / a.record_every - a.step / a.record_every - 1);
    }
    store_rows(t.u, t.rows, a.n_latents, t.kp, a.log_rate_out + t.first * a.n_latents);
}

// ---- backward -----------------------------------------------------------------------------------------------------

struct GradTile {
    int64_t first;
    int rows;
    int64_t kp, mp;
    float *grad_u, *grad_u_prior;            // [rows, kp]
    float *u, *u_prior, *drive, *slopes;     // [rows, kp] of the trajectory
    float *grad_counts, *grad_drive;         // [rows, kp]
    float *error, *grad_error, *grad_x;      // [rows, mp]
    float *grad_log_sigma, *grad_log_bias;   // [mp], [kp], summed over the tile's rows and steps
    float grad_log_lr;
};

inline int64_t backward_scratch(const RolloutArgs& a) {
    int64_t kp = padded(a.n_latents), mp = padded(a.n_inputs);
    return kTileRows * (8 * kp + 3 * mp) + mp + kp;
}

inline GradTile make_grad_tile(const RolloutArgs& a, int64_t index, float* memory) {
    Scratch scratch{memory};
    GradTile t;
    t.first = index * kTileRows;
    t.rows = (int)(a.n_rows - t.first < kTileRows ? a.n_rows - t.first : kTileRows);
    t.kp = padded(a.n_latents);
    t.mp = padded(a.n_inputs);
    float** of_latents[] = {&t.grad_u, &t.grad_u_prior, &t.u, &t.u_prior, &t.drive, &t.slopes, &t.grad_counts, &t.grad_drive};
    float** of_inputs[] = {&t.error, &t.grad_error, &t.grad_x};
    for (float** piece : of_latents) *piece = scratch.take(kTileRows * t.kp);
    for (float** piece : of_inputs) *piece = scratch.take(kTileRows * t.mp);
    t.grad_log_sigma = scratch.take(t.mp);
    t.grad_log_bias = scratch.take(t.kp);
    t.grad_log_lr = 0.f;
    memset(t.grad_log_sigma, 0, t.mp * sizeof(float));
    memset(t.grad_log_bias, 0, t.kp * sizeof(float));
    return t;
}

// grad_u -= slope * (grad_error encoder): the gradient that reaches the log rates through the counts of one draw.
inline void through_counts(const RolloutArgs& a, const GradTile& t, int64_t draw_index) {
    int64_t row = draw_index * a.n_rows + t.first;
    load_rows(a.slopes + row * a.n_latents, t.rows, a.n_latents, t.kp, 0.f, t.slopes);
    dense_product(t.rows, t.grad_error, t.mp, a.n_inputs, a.encoder, t.kp, t.grad_counts, t.kp);
    for (int64_t i = 0; i < t.rows * t.kp; i += kWidth)
        store(t.grad_u + i, load(t.grad_u + i) - load(t.slopes + i) * load(t.grad_counts + i));
}

inline void save_grad_error(const RolloutGradArgs& g, const GradTile& t, int64_t draw_index) {
    int64_t m = g.forward.n_inputs;
    store_rows(t.grad_error, t.rows, m, t.mp, g.grad_errors + (draw_index * g.forward.n_rows + t.first) * m);
    for (int64_t i = 0; i < t.rows * t.mp; i += kWidth)
        store(t.grad_x + i, load(t.grad_x + i) + load(t.grad_error + i));
}

inline void load_error(const RolloutArgs& a, const GradTile& t, int64_t draw_index) {
    const float* errors = a.errors + (draw_index * a.n_rows + t.first) * a.n_inputs;
    load_rows(errors, t.rows, a.n_inputs, t.mp, 0.f, t.error);
}

inline void load_path(const RolloutArgs& a, const GradTile& t, int64_t index, float* to) {
    load_rows(a.path + (index * a.n_rows + t.first) * a.n_latents, t.rows, a.n_latents, t.kp, kFloor, to);
}

// recon = sum e^2 precision / 2 + log sigma: d/de = e precision, d/d log sigma = 1 - e^2 precision
inline void recon_backward(const RolloutGradArgs& g, GradTile& t, int64_t step) {
    const RolloutArgs& a = g.forward;
    int64_t draw_index = step * (a.n_inner + 1) + a.n_inner;
    load_error(a, t, draw_index);
    for (int r = 0; r < t.rows; ++r) {
        vf grad = splat<vf>(g.grad_recon[step * a.n_rows + t.first + r]);
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            int64_t at = r * t.mp + i;
            vf e = load(t.error + at), weighted = e * load(a.precision + i);
            store(t.grad_error + at, grad * weighted);
            store(t.grad_log_sigma + i, load(t.grad_log_sigma + i) + grad * (1.f - e * weighted));
        }
    }
    save_grad_error(g, t, draw_index);
    through_counts(a, t, draw_index);
}

// Adds to grad_u and starts grad_u_prior.
template <Kl kind> inline void kl_backward(const RolloutGradArgs& g, GradTile& t, int64_t step) {
    const RolloutArgs& a = g.forward;
    load_path(a, t, (step + 1) * a.n_inner, t.u);
    for (int r = 0; r < t.rows; ++r) {
        vf grad = splat<vf>(g.grad_kl[step * a.n_rows + t.first + r]);
        for (int64_t at = r * t.kp; at < (r + 1) * t.kp; at += kWidth) {
            KlGrad<vf> kl = kl_divergence_grad<kind>(load(t.u + at), load(t.u_prior + at));
            store(t.grad_u + at, load(t.grad_u + at) + grad * kl.u);
            store(t.grad_u_prior + at, grad * kl.u_prior);
        }
    }
}

inline void update_backward(const RolloutArgs& a, GradTile& t) {
    CellConstants cell = cell_constants(a);
    vf grad_log_lr{};
    for (int r = 0; r < t.rows; ++r) {
        for (int64_t k = 0; k < t.kp; k += kWidth) {
            int64_t at = r * t.kp + k;
            vf inhibition = load(a.inhibition + k);
            UpdateGrad<vf> d = update_log_rate_grad(load(t.grad_u + at), load(t.u + at), load(t.u_prior + at),
                                                    load(t.drive + at), inhibition, cell);
            store(t.grad_u + at, d.u);
            store(t.grad_u_prior + at, load(t.grad_u_prior + at) + d.u_prior);
            store(t.grad_drive + at, d.drive);
            store(t.grad_log_bias + k, load(t.grad_log_bias + k) + d.inhibition * inhibition);
            grad_log_lr = grad_log_lr + d.log_lr;
        }
    }
    t.grad_log_lr += sum(grad_log_lr);
}

inline void inner_backward(const RolloutGradArgs& g, GradTile& t, int64_t step, int64_t inner) {
    const RolloutArgs& a = g.forward;
    int64_t update = step * a.n_inner + inner, draw_index = step * (a.n_inner + 1) + inner;
    int64_t row = update * a.n_rows + t.first;
    load_path(a, t, update, t.u);
    load_rows(a.drives + row * a.n_latents, t.rows, a.n_latents, t.kp, 0.f, t.drive);
    update_backward(a, t);
    store_rows(t.grad_drive, t.rows, a.n_latents, t.kp, g.grad_drives + row * a.n_latents);
    // drive = encoder (e precision): d/de = precision * (dictionary grad_drive), d/d log sigma = -2 e d/de
    dense_product(t.rows, t.grad_drive, t.kp, a.n_latents, a.decoder, t.mp, t.grad_error, t.mp);
    load_error(a, t, draw_index);
    for (int r = 0; r < t.rows; ++r) {
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            int64_t at = r * t.mp + i;
            vf grad = load(t.grad_error + at) * load(a.precision + i);
            store(t.grad_error + at, grad);
            store(t.grad_log_sigma + i, load(t.grad_log_sigma + i) - 2.f * load(t.error + at) * grad);
        }
    }
    save_grad_error(g, t, draw_index);
    through_counts(a, t, draw_index);
}

inline void rollout_grad_tile(const RolloutGradArgs& g, int64_t index, float* memory) {
    const RolloutArgs& a = g.forward;
    GradTile t = make_grad_tile(a, index, memory);
    load_rows(g.grad_log_rate + t.first * a.n_latents, t.rows, a.n_latents, t.kp, 0.f, t.grad_u);
    memset(t.grad_x, 0, t.rows * t.mp * sizeof(float));
    for (int64_t step = a.n_steps - 1; step >= 0; --step) {
        load_path(a, t, step * a.n_inner, t.u_prior);
        recon_backward(g, t, step);
        a.kl == kExact ? kl_backward<kExact>(g, t, step) : kl_backward<kReleased>(g, t, step);
        for (int64_t inner = a.n_inner - 1; inner >= 0; --inner) inner_backward(g, t, step, inner);
        for (int64_t i = 0; i < t.rows * t.kp; i += kWidth)
            store(t.grad_u + i, load(t.grad_u + i) + load(t.grad_u_prior + i));
        if (a.x_step) {
            store_rows(t.grad_x, t.rows, a.n_inputs, t.mp, g.grad_x + step * a.x_step + t.first * a.n_inputs);
            memset(t.grad_x, 0, t.rows * t.mp * sizeof(float));
        }
    }
    if (!a.x_step) store_rows(t.grad_x, t.rows, a.n_inputs, t.mp, g.grad_x + t.first * a.n_inputs);
    store_rows(t.grad_u, t.rows, a.n_latents, t.kp, g.grad_log_rate_in + t.first * a.n_latents);
    float* partial = g.partial + index * (a.n_inputs + a.n_latents + 1);
    memcpy(partial, t.grad_log_sigma, a.n_inputs * sizeof(float));
    memcpy(partial + a.n_inputs, t.grad_log_bias, a.n_latents * sizeof(float));
    partial[a.n_inputs + a.n_latents] = t.grad_log_lr;
}

// ---- the dictionary's gradient: one large product over all steps and rows -----------------------------------------

constexpr int64_t kDepthBlock = 256;  // rows of the batch packed at a time: a panel of 64 KB, in L2

inline int64_t grad_product_scratch(const RolloutArgs& a, int64_t panels) {
    int64_t m8 = (a.n_inputs + 7) / 8 * 8;
    return kDepthBlock * (m8 + kPanel) + panels * m8 * kPanel;
}

// A [depth, n_inputs] as [n_inputs / 8][depth][8], each column times its scale.
inline void pack_columns(const float* a, int64_t depth, int64_t n_inputs, const float* scale, float sign, float* packed) {
    for (int64_t m = 0; m < n_inputs; m += 8)
        for (int64_t d = 0; d < depth; ++d)
            for (int64_t i = 0; i < 8; ++i)
                packed[m * depth + d * 8 + i] =
                    m + i < n_inputs ? a[d * n_inputs + m + i] * (scale ? sign * scale[m + i] : sign) : 0.f;
}

// sum over d of A[d, m] B[d, k] for the panels [begin, end) of k, added to out [panels][m8][64].
inline void add_outer(const RolloutArgs& a, const float* left, const float* scale, float sign, const float* right,
                      int64_t begin, int64_t end, float* packed_left, float* panel, float* out) {
    int64_t m8 = (a.n_inputs + 7) / 8 * 8;
    for (int64_t row = 0; row < a.n_rows; row += kDepthBlock) {
        int64_t depth = a.n_rows - row < kDepthBlock ? a.n_rows - row : kDepthBlock;
        pack_columns(left + row * a.n_inputs, depth, a.n_inputs, scale, sign, packed_left);
        for (int64_t p = begin; p < end; ++p) {
            pack_panel(right + row * a.n_latents, a.n_latents, depth, a.n_latents, p * kPanel, panel);
            for (int64_t m = 0; m < m8; m += 8)
                rows_product<false>(8, packed_left + m * depth, 1, 8, depth, panel,
                                    out + ((p - begin) * m8 + m) * kPanel, kPanel, true);
        }
    }
}

inline void dictionary_grad_panels(const RolloutGradArgs& g, int64_t begin, int64_t end, float* memory) {
    const RolloutArgs& a = g.forward;
    int64_t m8 = (a.n_inputs + 7) / 8 * 8;
    Scratch scratch{memory};
    float* packed_left = scratch.take(kDepthBlock * m8);
    float* panel = scratch.take(kDepthBlock * kPanel);
    float* out = scratch.take((end - begin) * m8 * kPanel);
    memset(out, 0, (end - begin) * m8 * kPanel * sizeof(float));
    for (int64_t step = 0; step < a.n_steps; ++step) {
        for (int64_t inner = 0; inner <= a.n_inner; ++inner) {
            int64_t draw_index = step * (a.n_inner + 1) + inner, update = step * a.n_inner + inner;
            int64_t inputs_at = draw_index * a.n_rows * a.n_inputs;
            // error = x - dictionary counts, and drive = dictionary^T (error precision)
            add_outer(a, g.grad_errors + inputs_at, nullptr, -1.f, a.drawn + draw_index * a.n_rows * a.n_latents,
                      begin, end, packed_left, panel, out);
            if (inner < a.n_inner)
                add_outer(a, a.errors + inputs_at, a.precision, 1.f, g.grad_drives + update * a.n_rows * a.n_latents,
                          begin, end, packed_left, panel, out);
        }
    }
    for (int64_t p = begin; p < end; ++p) {
        int64_t at = p * kPanel, width = a.n_latents - at < kPanel ? a.n_latents - at : kPanel;
        for (int64_t m = 0; m < a.n_inputs; ++m)
            memcpy(g.grad_dictionary + m * a.n_latents + at, out + ((p - begin) * m8 + m) * kPanel, width * sizeof(float));
    }
}

IPVAE_END
