// The gradient of a rollout for one tile of rows, back through its trajectory from the last step to the first.
//
// An update has two halves, with the seam where the gradient of its drive has been decoded: from there on it needs that of all
// neurons. Alone, a tile goes through all updates at once. Where other processes have more neurons, all tiles come to a seam,
// the gradients are added up, and they go on to the next: what a tile keeps meanwhile is apart from its scratch.
#pragma once

#include "forward.h"

IPVAE_BEGIN

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

// What a row block keeps from one update to the next.
template <class Cell> inline int64_t backward_kept(const RolloutArgs& a) {
    int64_t kp = padded(a.n_latents), mp = padded(a.n_inputs);
    return kRowBlock * (2 * Cell::kStates * kp + mp) + mp + kp + kPanel;
}

template <class Cell> inline int64_t backward_scratch(const RolloutArgs& a, int rows) {
    int64_t kp = padded(a.n_latents), mp = padded(a.n_inputs);
    return rows * ((2 * Cell::kStates + 5) * kp + 2 * mp) + product_scratch(kp > mp ? kp : mp);
}

template <class Cell>
inline GradTile<Cell> make_grad_tile(const RolloutArgs& a, int64_t first, int rows, float* kept, float* memory) {
    Scratch stays{kept}, scratch{memory};
    GradTile<Cell> t;
    t.first = first;
    t.rows = rows;
    t.kp = padded(a.n_latents);
    t.mp = padded(a.n_inputs);
    int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
    t.grad_state = stays.take(blocks * kRowBlock * Cell::kStates * t.kp);
    t.grad_prior = stays.take(blocks * kRowBlock * Cell::kStates * t.kp);
    t.grad_x = stays.take(blocks * kRowBlock * t.mp);
    t.grad_log_sigma = stays.take(blocks * t.mp);
    t.grad_log_bias = stays.take(blocks * t.kp);
    t.grad_log_lr = stays.take(blocks * kPanel);
    float** of_states[] = {&t.state, &t.prior};
    float** of_latents[] = {&t.drive, &t.code, &t.memo, &t.grad_code, &t.grad_drive};
    float** of_inputs[] = {&t.error, &t.grad_error};
    for (float** piece : of_states) *piece = scratch.take(rows * Cell::kStates * t.kp);
    for (float** piece : of_latents) *piece = scratch.take(rows * t.kp);
    for (float** piece : of_inputs) *piece = scratch.take(rows * t.mp);
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
    product(t.rows, t.grad_error, t.mp, a.n_inputs, a.encoder, a.n_inputs * kPanel, t.kp, t.grad_code, t.kp, t.product);
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

// The state before an update, and its draw.
template <class Cell> inline void load_update(const RolloutArgs& a, const GradTile<Cell>& t, int64_t update) {
    load_path(a, t, update, t.state);
    load_draw(a, t, update + update / a.n_inner);
}

template <class Cell> inline void open_tile(const RolloutGradArgs& g, const GradTile<Cell>& t) {
    load_states<Cell>(g.forward, t.first, t.rows, g.grad_log_rate, 0.f, t.grad_state);
    memset(t.grad_x, 0, t.rows * t.mp * sizeof(float));
    int64_t blocks = (t.rows + kRowBlock - 1) / kRowBlock;
    memset(t.grad_log_sigma, 0, blocks * (t.mp + t.kp + kPanel) * sizeof(float));
}

// The step's loss, where the update is its last, and the update; what its drive's gradient decodes to is left in grad_error.
template <class Cell>
inline void begin_update_backward(const RolloutGradArgs& g, const Cell& cell, const GradTile<Cell>& t, int64_t update) {
    const RolloutArgs& a = g.forward;
    int64_t step = update / a.n_inner;
    load_path(a, t, step * a.n_inner, t.prior);
    if (update + 1 == (step + 1) * a.n_inner) {
        load_path(a, t, update + 1, t.state);
        recon_backward(g, cell, t, step);
        for (int r = 0; r < t.rows; ++r) {
            int64_t s = t.state_of(r);
            cell.kl_backward(g.grad_kl[step * a.n_rows + t.first + r], t.state + s, t.prior + s, t.grad_state + s,
                             t.grad_prior + s);
        }
    }
    int64_t row = update * a.n_rows + t.first;
    load_update(a, t, update);
    load_rows(a.drives + row * a.n_latents, t.rows, a.n_latents, t.kp, 0.f, t.drive);
    for (int r = 0; r < t.rows; ++r) {
        int64_t k = r * t.kp, s = t.state_of(r), block = r / kRowBlock;
        cell.update_backward(t.state + s, t.prior + s, t.drive + k, t.code + k, t.memo + k, t.grad_state + s,
                             t.grad_prior + s, t.grad_drive + k, t.grad_log_bias + block * t.kp,
                             t.grad_log_lr + block * Cell::kStates);
    }
    store_rows(t.grad_drive, t.rows, a.n_latents, t.kp, g.grad_drives + row * a.n_latents);
    product(t.rows, t.grad_drive, t.kp, a.n_latents, a.decoder, a.n_latents * kPanel, t.mp, t.grad_error, t.mp, t.product);
}

// drive = encoder (e precision): d/de = precision * (dictionary grad_drive), d/d log sigma = -2 e d/de
template <class Cell>
inline void end_update_backward(const RolloutGradArgs& g, const Cell& cell, const GradTile<Cell>& t, int64_t update) {
    const RolloutArgs& a = g.forward;
    int64_t step = update / a.n_inner;
    for (int r = 0; r < t.rows; ++r) {
        float* log_sigma = t.grad_log_sigma + r / kRowBlock * t.mp;
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            int64_t at = r * t.mp + i;
            vf grad = load(t.grad_error + at) * load(a.precision + i);
            store(t.grad_error + at, grad);
            store(log_sigma + i, load(log_sigma + i) - 2.f * load(t.error + at) * grad);
        }
    }
    through_draw(g, cell, t, update + step);
    if (update > step * a.n_inner) return;
    for (int64_t i = 0; i < t.rows * Cell::kStates * t.kp; i += kWidth)
        store(t.grad_state + i, load(t.grad_state + i) + load(t.grad_prior + i));
    if (a.x_step) {
        store_rows(t.grad_x, t.rows, a.n_inputs, t.mp, g.grad_x + step * a.x_step + t.first * a.n_inputs);
        memset(t.grad_x, 0, t.rows * t.mp * sizeof(float));
    }
}

template <class Cell> inline void close_tile(const RolloutGradArgs& g, const GradTile<Cell>& t) {
    const RolloutArgs& a = g.forward;
    if (!a.x_step) store_rows(t.grad_x, t.rows, a.n_inputs, t.mp, g.grad_x + t.first * a.n_inputs);
    store_states<Cell>(a, t.first, t.rows, t.grad_state, g.grad_log_rate_in);
    int64_t n_partial = a.n_inputs + a.n_latents + Cell::kStates;
    for (int64_t block = 0; block * kRowBlock < t.rows; ++block) {
        float* partial = g.partial + (t.first / kRowBlock + block) * n_partial;
        memcpy(partial, t.grad_log_sigma + block * t.mp, a.n_inputs * sizeof(float));
        memcpy(partial + a.n_inputs, t.grad_log_bias + block * t.kp, a.n_latents * sizeof(float));
        memcpy(partial + a.n_inputs + a.n_latents, t.grad_log_lr + block * Cell::kStates, Cell::kStates * sizeof(float));
    }
}

// All updates of a tile, from the last.
template <class Cell>
inline void rollout_grad_tile(const RolloutGradArgs& g, int64_t first, int rows, float* kept, float* memory) {
    Cell cell(g.forward);
    TileScope scope;
    GradTile<Cell> t = make_grad_tile<Cell>(g.forward, first, rows, kept, memory);
    open_tile(g, t);
    for (int64_t update = g.forward.n_steps * g.forward.n_inner - 1; update >= 0; --update) {
        begin_update_backward(g, cell, t, update);
        end_update_backward(g, cell, t, update);
    }
    close_tile(g, t);
}

// From the seam of update + 1, or the end, to that of an update, or with -1 to the beginning. At a seam what the drives'
// gradients decode to, of one process or the sum of all, lies where the gradients of the draw's errors will.
template <class Cell>
inline void rollout_grad_seam(const RolloutGradArgs& g, int64_t update, int64_t first, int rows, float* kept, float* memory) {
    const RolloutArgs& a = g.forward;
    Cell cell(a);
    TileScope scope;
    GradTile<Cell> t = make_grad_tile<Cell>(a, first, rows, kept, memory);
    auto decoded = [&](int64_t u) { return g.grad_errors + ((u + u / a.n_inner) * a.n_rows + first) * a.n_inputs; };
    if (update + 1 == a.n_steps * a.n_inner) {
        open_tile(g, t);
    } else {
        load_update(a, t, update + 1);
        load_rows(decoded(update + 1), rows, a.n_inputs, t.mp, 0.f, t.grad_error);
        end_update_backward(g, cell, t, update + 1);
    }
    if (update < 0) return close_tile(g, t);
    begin_update_backward(g, cell, t, update);
    store_rows(t.grad_error, rows, a.n_inputs, t.mp, decoded(update));
}

IPVAE_END
