// A whole rollout for one tile of rows: the state stays in the tile's scratch for all steps.
//
// The driver owns the loop over time, the linear decoder and the records; a cell (cpu/cells) draws from a
// row's state, updates it and compares it with its prior.
#pragma once

#include "../draw.h"
#include "../kernels.h"
#include "../products/matmul.h"

IPVAE_BEGIN

constexpr int kDrawRows = 8;  // rows drawn together: enough to fill vectors, few enough for the L1 cache

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

IPVAE_END
