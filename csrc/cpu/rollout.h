// A whole rollout, and its gradient, for one tile of rows: the state stays in the tile's scratch for all steps.
//
// The driver owns the loop over time, the linear decoder and the records; a cell (poisson_rows.h, gaussian_rows.h)
// draws from a row's state, updates it and compares it with its prior.
#pragma once

#include "draw.h"
#include "kernels.h"
#include "matmul.h"

IPVAE_BEGIN

constexpr int kDrawRows = 8;  // rows drawn together: enough to fill vectors, few enough for the L1 cache

// ---- forward ------------------------------------------------------------------------------------------------------

template <class Cell> struct Tile {
    int64_t first;  // row of the batch
    int rows;
    int64_t kp, mp;           // padded numbers of latents and inputs
    float *state, *prior;     // [rows, kStates, kp]
    float* aux;               // [rows, kAux, kp]
    float *code, *memo;       // [rows, kp] what the decoder sees (counts), and what the backward needs of it (slopes)
    float* drive;             // [rows, kp]
    float *error, *weighted;  // [rows, mp] residual, and residual times precision
    float* kl;                // [rows] of the last update
    float* draw_scratch;
    ProductScratch product;

    float* state_of(int r) const { return state + r * Cell::kStates * kp; }
    float* prior_of(int r) const { return prior + r * Cell::kStates * kp; }
    float* aux_of(int r) const { return aux + r * Cell::kAux * kp; }
};

template <class Cell> inline int64_t forward_scratch(const RolloutArgs& a) {
    int64_t kp = padded(a.n_latents), mp = padded(a.n_inputs);
    return kTileRows * ((2 * Cell::kStates + Cell::kAux + 3) * kp + 2 * mp) + kPanel + draw_scratch(kDrawRows, kp) +
           product_scratch(kp > mp ? kp : mp);
}

template <class Cell> inline Tile<Cell> make_tile(const RolloutArgs& a, int64_t first, int rows, float* memory) {
    Scratch scratch{memory};
    Tile<Cell> t;
    t.first = first;
    t.rows = rows;
    t.kp = padded(a.n_latents);
    t.mp = padded(a.n_inputs);
    t.state = scratch.take(kTileRows * Cell::kStates * t.kp);
    t.prior = scratch.take(kTileRows * Cell::kStates * t.kp);
    t.aux = scratch.take(kTileRows * Cell::kAux * t.kp);
    t.code = scratch.take(kTileRows * t.kp);
    t.memo = scratch.take(kTileRows * t.kp);
    t.drive = scratch.take(kTileRows * t.kp);
    t.error = scratch.take(kTileRows * t.mp);
    t.weighted = scratch.take(kTileRows * t.mp);
    t.kl = scratch.take(kPanel);
    static_assert(kTileRows <= kPanel, "one panel holds a number per row");
    t.draw_scratch = scratch.take(draw_scratch(kDrawRows, t.kp));
    t.product = product_scratch_at(scratch.next, t.kp > t.mp ? t.kp : t.mp);
    return t;
}

// States [kStates, n_rows, n_latents] of the batch to and from the rows of a tile.
template <class Cell>
inline void load_states(const RolloutArgs& a, int64_t first, int rows, const float* from, float fill, float* to) {
    int64_t kp = padded(a.n_latents);
    for (int r = 0; r < rows; ++r)
        for (int s = 0; s < Cell::kStates; ++s)
            load_rows(from + (s * a.n_rows + first + r) * a.n_latents, 1, a.n_latents, kp, fill,
                      to + (r * Cell::kStates + s) * kp);
}
template <class Cell> inline void store_states(const RolloutArgs& a, int64_t first, int rows, const float* from, float* to) {
    int64_t kp = padded(a.n_latents);
    for (int r = 0; r < rows; ++r)
        for (int s = 0; s < Cell::kStates; ++s)
            store_rows(from + (r * Cell::kStates + s) * kp, 1, a.n_latents, kp, to + (s * a.n_rows + first + r) * a.n_latents);
}

template <class Cell>
inline void draw_tile(const RolloutArgs& a, const Cell& cell, const Tile<Cell>& t, const DrawOf& draw) {
    for (int r = 0; r < t.rows; r += kDrawRows) {
        int rows = t.rows - r < kDrawRows ? t.rows - r : kDrawRows;
        uint32_t sample = a.sample_offset + (uint32_t)(t.first + r);
        cell.draw(rows, t.state_of(r), t.aux_of(r), t.code + r * t.kp, t.memo + r * t.kp,
                  make_stream(a.seed, draw, sample), sample, t.draw_scratch);
    }
}

// error = x - dictionary code, and the same times precision; zero in the padding
template <class Cell> inline void decode_tile(const RolloutArgs& a, const Tile<Cell>& t, int64_t step) {
    auto decode = a.draws_counts ? counts_product : product;
    decode(t.rows, t.code, t.kp, a.n_latents, a.decoder, t.mp, t.error, t.mp, t.product);
    for (int r = 0; r < t.rows; ++r) {
        const float* x = a.x + step * a.x_step + (t.first + r) * a.n_inputs;
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            int64_t at = r * t.mp + i;
            vf e = (i < a.n_inputs ? load_part(x + i, a.n_inputs - i) : vf{}) - load(t.error + at);
            store(t.error + at, e);
            store(t.weighted + at, e * load(a.precision + i));
        }
    }
}

template <class Cell> inline void save_draw(const RolloutArgs& a, const Tile<Cell>& t, int64_t draw_index) {
    if (!a.drawn) return;
    int64_t row = draw_index * a.n_rows + t.first;
    store_rows(t.code, t.rows, a.n_latents, t.kp, a.drawn + row * a.n_latents);
    store_rows(t.memo, t.rows, a.n_latents, t.kp, a.slopes + row * a.n_latents);
    store_rows(t.error, t.rows, a.n_inputs, t.mp, a.errors + row * a.n_inputs);
}

// Precision-weighted errors of a tile to drives, and one update of every row.
template <class Cell>
inline void update_tile(const RolloutArgs& a, const Cell& cell, const Tile<Cell>& t, bool first, bool kl) {
    product(t.rows, t.weighted, t.mp, a.n_inputs, a.encoder, t.kp, t.drive, t.kp, t.product);
    for (int r = 0; r < t.rows; ++r) {
        float *state = t.state_of(r), *prior = t.prior_of(r), *aux = t.aux_of(r);
        const float *drive = t.drive + r * t.kp, *code = t.code + r * t.kp, *memo = t.memo + r * t.kp;
        if (first)
            t.kl[r] = kl ? cell.template update<true, true>(state, prior, aux, drive, code, memo)
                         : cell.template update<false, true>(state, prior, aux, drive, code, memo);
        else
            t.kl[r] = kl ? cell.template update<true, false>(state, prior, aux, drive, code, memo)
                         : cell.template update<false, false>(state, prior, aux, drive, code, memo);
    }
}

template <class Cell>
inline void record_reconstruction_terms(const RolloutArgs& a, const Tile<Cell>& t, int64_t at) {
    for (int r = 0; r < t.rows; ++r) {
        vf squared{}, weighted{};
        for (int64_t i = r * t.mp; i < (r + 1) * t.mp; i += kWidth) {
            vf e = load(t.error + i);
            squared = squared + e * e;
            weighted = weighted + e * load(t.weighted + i);
        }
        if (a.recon) a.recon[at + r] = 0.5f * sum(weighted) + a.log_normalizer;
        if (a.squared_error) a.squared_error[at + r] = sum(squared);
    }
}

template <class Cell> inline void record_count_terms(const RolloutArgs& a, const Tile<Cell>& t, int64_t at) {
    for (int r = 0; r < t.rows; ++r) {
        vf spikes{}, silent{};
        for (int64_t k = 0; k < t.kp; k += kWidth) {
            vf z = load(t.code + r * t.kp + k);
            spikes = spikes + z;
            silent = silent + (z == vf{} ? splat<vf>(1.f) : vf{});
        }
        if (a.spikes) a.spikes[at + r] = sum(spikes);
        if (a.zeros) a.zeros[at + r] = (sum(silent) - (float)(t.kp - a.n_latents)) / (float)a.n_latents;
    }
}

template <class Cell> inline void record_tile(const RolloutArgs& a, const Tile<Cell>& t, int64_t step, int64_t index) {
    int64_t at = index * a.n_rows + t.first;
    if (a.recon || a.squared_error) record_reconstruction_terms(a, t, at);
    if (a.spikes || a.zeros) record_count_terms(a, t, at);
    if (a.kl_out) memcpy(a.kl_out + at, t.kl, t.rows * sizeof(float));
    if (a.log_rates)
        store_states<Cell>(a, t.first, t.rows, t.state, a.log_rates + index * Cell::kStates * a.n_rows * a.n_latents);
    if (a.counts) store_rows(t.code, t.rows, a.n_latents, t.kp, a.counts + at * a.n_latents);
    if (a.reconstruction) {
        const float* x = a.x + step * a.x_step + t.first * a.n_inputs;
        for (int r = 0; r < t.rows; ++r)
            for (int64_t i = 0; i < a.n_inputs; ++i)
                a.reconstruction[(at + r) * a.n_inputs + i] = x[r * a.n_inputs + i] - t.error[r * t.mp + i];
    }
}

template <class Cell> inline void save_path(const RolloutArgs& a, const Tile<Cell>& t, int64_t index) {
    if (a.path)
        store_states<Cell>(a, t.first, t.rows, t.state, a.path + index * Cell::kStates * a.n_rows * a.n_latents);
}

template <class Cell> inline void rollout_tile(const RolloutArgs& a, int64_t first, int rows, float* memory) {
    Cell cell(a);
    TileScope scope;
    Tile<Cell> t = make_tile<Cell>(a, first, rows, memory);
    load_states<Cell>(a, first, rows, a.log_rate, Cell::kPadding, t.state);
    for (int r = 0; r < rows; ++r) cell.prepare(t.state_of(r), t.aux_of(r));
    memset(t.memo, 0, rows * t.kp * sizeof(float));  // hard draws leave it alone
    save_path(a, t, 0);
    bool loss_draw = wants_loss_draw(a), code_is_current = false;
    for (int64_t step = 0; step < a.n_steps; ++step) {
        uint32_t global = a.step + (uint32_t)step;
        int64_t done = (int64_t)a.step + step + 1;  // up to 2^32, one more than a uint32_t holds
        bool recorded = done % a.record_every == 0;
        if (a.n_inner > 1) memcpy(t.prior, t.state, rows * Cell::kStates * t.kp * sizeof(float));
        for (int64_t inner = 0; inner < a.n_inner; ++inner) {
            if (!code_is_current) {
                draw_tile(a, cell, t, update_draw_of(a.single_draw, global, (uint32_t)inner));
                decode_tile(a, t, step);
            } else if (a.x_step) {
                decode_tile(a, t, step);
            }
            save_draw(a, t, step * (a.n_inner + 1) + inner);
            update_tile(a, cell, t, inner == 0, recorded && a.kl_out && inner == a.n_inner - 1);
            int64_t update = step * a.n_inner + inner;
            if (a.drives)
                store_rows(t.drive, rows, a.n_latents, t.kp, a.drives + (update * a.n_rows + first) * a.n_latents);
            save_path(a, t, update + 1);
        }
        code_is_current = false;
        if (loss_draw && recorded) {
            draw_tile(a, cell, t, loss_draw_of(global));
            decode_tile(a, t, step);
            save_draw(a, t, step * (a.n_inner + 1) + a.n_inner);
            code_is_current = a.single_draw;
        }
        if (recorded) record_tile(a, t, step, done / a.record_every - a.step / a.record_every - 1);
    }
    store_states<Cell>(a, first, rows, t.state, a.log_rate_out);
}

constexpr int64_t kTileBlocks = kTileRows / kRowBlock;

// Calls function(first row, rows) for tiles that cover the row blocks [begin, end): full tiles, then what is left.
template <class Function> inline void for_tiles(int64_t n_rows, int64_t begin, int64_t end, Function function) {
    int64_t last = end * kRowBlock < n_rows ? end * kRowBlock : n_rows;
    for (int64_t first = begin * kRowBlock; first < last; first += kTileRows)
        function(first, (int)(last - first < kTileRows ? last - first : kTileRows));
}

// ---- backward -----------------------------------------------------------------------------------------------------

template <class Cell> struct GradTile {
    int64_t first;
    int rows;
    int64_t kp, mp;
    float *grad_state, *grad_prior, *state, *prior;     // [rows, kStates, kp]
    float *drive, *code, *memo;                         // [rows, kp] of the trajectory
    float *grad_code, *grad_drive;                      // [rows, kp]
    float *error, *grad_error, *grad_x;                 // [rows, mp]
    float *grad_log_sigma, *grad_log_bias;              // [row blocks, mp], [row blocks, kp]
    float* grad_log_lr;                                 // [row blocks, kStates]
    ProductScratch product;

    int64_t state_of(int r) const { return r * Cell::kStates * kp; }
};

template <class Cell> inline int64_t backward_scratch(const RolloutArgs& a) {
    int64_t kp = padded(a.n_latents), mp = padded(a.n_inputs);
    return kTileRows * ((4 * Cell::kStates + 5) * kp + 3 * mp) + kTileBlocks * (mp + kp + kPanel) +
           product_scratch(kp > mp ? kp : mp);
}

template <class Cell> inline GradTile<Cell> make_grad_tile(const RolloutArgs& a, int64_t first, int rows, float* memory) {
    Scratch scratch{memory};
    GradTile<Cell> t;
    t.first = first;
    t.rows = rows;
    t.kp = padded(a.n_latents);
    t.mp = padded(a.n_inputs);
    float** of_states[] = {&t.grad_state, &t.grad_prior, &t.state, &t.prior};
    float** of_latents[] = {&t.drive, &t.code, &t.memo, &t.grad_code, &t.grad_drive};
    float** of_inputs[] = {&t.error, &t.grad_error, &t.grad_x};
    for (float** piece : of_states) *piece = scratch.take(kTileRows * Cell::kStates * t.kp);
    for (float** piece : of_latents) *piece = scratch.take(kTileRows * t.kp);
    for (float** piece : of_inputs) *piece = scratch.take(kTileRows * t.mp);
    t.grad_log_sigma = scratch.take(kTileBlocks * t.mp);
    t.grad_log_bias = scratch.take(kTileBlocks * t.kp);
    t.grad_log_lr = scratch.take(kTileBlocks * kPanel);
    memset(t.grad_log_sigma, 0, kTileBlocks * (t.mp + t.kp + kPanel) * sizeof(float));
    t.product = product_scratch_at(scratch.next, t.kp > t.mp ? t.kp : t.mp);
    return t;
}

// The draw's code and memo and the residual it left.
template <class Cell> inline void load_draw(const RolloutArgs& a, const GradTile<Cell>& t, int64_t draw_index) {
    int64_t row = draw_index * a.n_rows + t.first;
    if (Cell::kStates > 1) load_rows(a.drawn + row * a.n_latents, t.rows, a.n_latents, t.kp, 0.f, t.code);
    load_rows(a.slopes + row * a.n_latents, t.rows, a.n_latents, t.kp, 0.f, t.memo);
    load_rows(a.errors + row * a.n_inputs, t.rows, a.n_inputs, t.mp, 0.f, t.error);
}

template <class Cell> inline void load_path(const RolloutArgs& a, const GradTile<Cell>& t, int64_t index, float* to) {
    load_states<Cell>(a, t.first, t.rows, a.path + index * Cell::kStates * a.n_rows * a.n_latents, Cell::kPadding, to);
}

// From grad_error on: to x, to the dictionary (later), and through the code of one draw to the state in t.state.
template <class Cell>
inline void through_draw(const RolloutGradArgs& g, const Cell& cell, const GradTile<Cell>& t, int64_t draw_index) {
    const RolloutArgs& a = g.forward;
    int64_t row = draw_index * a.n_rows + t.first;
    store_rows(t.grad_error, t.rows, a.n_inputs, t.mp, g.grad_errors + row * a.n_inputs);
    for (int64_t i = 0; i < t.rows * t.mp; i += kWidth)
        store(t.grad_x + i, load(t.grad_x + i) + load(t.grad_error + i));
    product(t.rows, t.grad_error, t.mp, a.n_inputs, a.encoder, t.kp, t.grad_code, t.kp, t.product);
    for (int r = 0; r < t.rows; ++r)
        cell.draw_backward(t.grad_code + r * t.kp, t.state + t.state_of(r), t.code + r * t.kp, t.memo + r * t.kp,
                           t.grad_state + t.state_of(r));
}

// recon = sum e^2 precision / 2 + log sigma: d/de = e precision, d/d log sigma = 1 - e^2 precision
template <class Cell>
inline void recon_backward(const RolloutGradArgs& g, const Cell& cell, const GradTile<Cell>& t, int64_t step) {
    const RolloutArgs& a = g.forward;
    int64_t draw_index = step * (a.n_inner + 1) + a.n_inner;
    load_draw(a, t, draw_index);
    for (int r = 0; r < t.rows; ++r) {
        float grad = g.grad_recon[step * a.n_rows + t.first + r];
        float* log_sigma = t.grad_log_sigma + r / kRowBlock * t.mp;
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            int64_t at = r * t.mp + i;
            vf e = load(t.error + at), weighted = e * load(a.precision + i);
            store(t.grad_error + at, grad * weighted);
            store(log_sigma + i, load(log_sigma + i) + grad * (1.f - e * weighted));
        }
    }
    through_draw(g, cell, t, draw_index);
}

template <class Cell>
inline void inner_backward(const RolloutGradArgs& g, const Cell& cell, const GradTile<Cell>& t, int64_t step, int64_t inner) {
    const RolloutArgs& a = g.forward;
    int64_t update = step * a.n_inner + inner, draw_index = step * (a.n_inner + 1) + inner;
    int64_t row = update * a.n_rows + t.first;
    load_path(a, t, update, t.state);
    load_draw(a, t, draw_index);
    load_rows(a.drives + row * a.n_latents, t.rows, a.n_latents, t.kp, 0.f, t.drive);
    for (int r = 0; r < t.rows; ++r) {
        int64_t k = r * t.kp, s = t.state_of(r), block = r / kRowBlock;
        cell.update_backward(t.state + s, t.prior + s, t.drive + k, t.code + k, t.memo + k, t.grad_state + s,
                             t.grad_prior + s, t.grad_drive + k, t.grad_log_bias + block * t.kp,
                             t.grad_log_lr + block * Cell::kStates);
    }
    store_rows(t.grad_drive, t.rows, a.n_latents, t.kp, g.grad_drives + row * a.n_latents);
    // drive = encoder (e precision): d/de = precision * (dictionary grad_drive), d/d log sigma = -2 e d/de
    product(t.rows, t.grad_drive, t.kp, a.n_latents, a.decoder, t.mp, t.grad_error, t.mp, t.product);
    for (int r = 0; r < t.rows; ++r) {
        float* log_sigma = t.grad_log_sigma + r / kRowBlock * t.mp;
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            int64_t at = r * t.mp + i;
            vf grad = load(t.grad_error + at) * load(a.precision + i);
            store(t.grad_error + at, grad);
            store(log_sigma + i, load(log_sigma + i) - 2.f * load(t.error + at) * grad);
        }
    }
    through_draw(g, cell, t, draw_index);
}

template <class Cell> inline void rollout_grad_tile(const RolloutGradArgs& g, int64_t first, int rows, float* memory) {
    const RolloutArgs& a = g.forward;
    Cell cell(a);
    TileScope scope;
    GradTile<Cell> t = make_grad_tile<Cell>(a, first, rows, memory);
    load_states<Cell>(a, first, rows, g.grad_log_rate, 0.f, t.grad_state);
    int64_t states = rows * Cell::kStates * t.kp;
    memset(t.grad_x, 0, rows * t.mp * sizeof(float));
    for (int64_t step = a.n_steps - 1; step >= 0; --step) {
        load_path(a, t, step * a.n_inner, t.prior);
        load_path(a, t, (step + 1) * a.n_inner, t.state);
        recon_backward(g, cell, t, step);
        for (int r = 0; r < rows; ++r) {
            int64_t s = t.state_of(r);
            cell.kl_backward(g.grad_kl[step * a.n_rows + first + r], t.state + s, t.prior + s, t.grad_state + s,
                             t.grad_prior + s);
        }
        for (int64_t inner = a.n_inner - 1; inner >= 0; --inner) inner_backward(g, cell, t, step, inner);
        for (int64_t i = 0; i < states; i += kWidth) store(t.grad_state + i, load(t.grad_state + i) + load(t.grad_prior + i));
        if (a.x_step) {
            store_rows(t.grad_x, rows, a.n_inputs, t.mp, g.grad_x + step * a.x_step + first * a.n_inputs);
            memset(t.grad_x, 0, rows * t.mp * sizeof(float));
        }
    }
    if (!a.x_step) store_rows(t.grad_x, rows, a.n_inputs, t.mp, g.grad_x + first * a.n_inputs);
    store_states<Cell>(a, first, rows, t.grad_state, g.grad_log_rate_in);
    int64_t n_partial = a.n_inputs + a.n_latents + Cell::kStates;
    for (int64_t block = 0; block * kRowBlock < rows; ++block) {
        float* partial = g.partial + (first / kRowBlock + block) * n_partial;
        memcpy(partial, t.grad_log_sigma + block * t.mp, a.n_inputs * sizeof(float));
        memcpy(partial + a.n_inputs, t.grad_log_bias + block * t.kp, a.n_latents * sizeof(float));
        memcpy(partial + a.n_inputs + a.n_latents, t.grad_log_lr + block * Cell::kStates, Cell::kStates * sizeof(float));
    }
}

// ---- the dictionary's gradient: one large product over all steps and rows -----------------------------------------

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
