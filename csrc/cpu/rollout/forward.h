// A rollout for one tile of rows: the state stays in scratch memory for all steps.
//
// The driver owns the loop over time, the linear decoder and the records; a cell (cpu/cells) draws from a row's state,
// updates it and compares it with its prior.
//
// Neurons are taken in blocks of a fixed size. A block keeps its state and has its part of the dictionary: it draws, decodes
// its part of the mean, and is updated from the residual. The parts are added in the order of the blocks, whichever thread
// has them, so a result depends neither on how many threads share the neurons nor on whether they share rows instead. One
// thread has all blocks, or a team has some each and meets once for every mean (Share).
#pragma once

#include "../draw.h"
#include "../kernels.h"
#include "../products/direct.h"

IPVAE_BEGIN

constexpr int kDrawRows = 8;  // rows drawn together: enough to fill vectors, few enough for the L1 cache
constexpr int kSlots = 2;     // draws that share a state: that of the next update, and the fresh one of the step
enum Slot : int { kUpdateSlot = 0, kLossSlot = 1 };

inline int64_t n_blocks(const RolloutArgs& a) { return (a.n_latents + kNeuronBlock - 1) / kNeuronBlock; }
inline int64_t widest_block(const RolloutArgs& a) {
    return padded(a.n_latents < kNeuronBlock ? a.n_latents : kNeuronBlock);
}

// Numbers of a block that all blocks of a row are summed over, in order.
enum Term : int { kKlTerm, kSpikesTerm, kSilentTerm, kTerms };

// The neurons of one block, for the rows of a tile.
template <class Cell> struct Block {
    RolloutArgs args;  // of these neurons alone: how many, their inhibition, the index of the first
    int64_t index, first, kp;
    int rows;
    float *state, *prior;  // [rows, kStates, kp]
    float* aux;            // [rows, kAux, kp]
    float *code, *memo;    // [kSlots, rows, kp] what the decoder sees (counts), and what the backward needs of it (slopes)
    float* drive;          // [rows, kp]

    float* state_of(int r) const { return state + r * Cell::kStates * kp; }
    float* prior_of(int r) const { return prior + r * Cell::kStates * kp; }
    float* aux_of(int r) const { return aux + r * Cell::kAux * kp; }
    float* code_of(int slot) const { return code + slot * rows * kp; }
    float* memo_of(int slot) const { return memo + slot * rows * kp; }
};

template <class Cell> struct Tile {
    const RolloutArgs& a;
    Share share;
    int64_t first;  // row of the batch
    int rows;
    int64_t mp;                  // padded number of inputs
    float* blocks;               // of all neurons
    float *error, *weighted;     // [kSlots, rows, mp] residual, and residual times precision
    float *part, *own_terms;     // of a thread that is alone: [kSlots, rows, mp] of one block; [blocks, kTerms, rows]
    float* draw_scratch;
    ProductScratch product;
    int64_t n_means, n_records;  // formed so far: the memory that a team shares holds two, in turns

    int64_t size() const { return rows * mp; }
    float* part_of(int64_t block) const {
        return share.meet ? share.parts + (n_means % 2 * n_blocks(a) + block) * kSlots * size() : part;
    }
    float* terms_of(int64_t block) const {
        return share.meet ? share.terms + (n_records % 2 * n_blocks(a) + block) * kTerms * rows
                          : own_terms + block * kTerms * rows;
    }
    bool leads() const { return share.begin == 0; }
};

template <class Cell> inline int64_t block_floats(const RolloutArgs& a, int rows) {
    return rows * (2 * Cell::kStates + Cell::kAux + 2 * kSlots + 1) * widest_block(a);
}

inline bool reads_dictionary(const RolloutArgs& a) { return kReadsDictionary && (a.dictionary || a.dictionary_bf16); }

// Memory of a thread: with the blocks and what belongs to them where it is alone.
template <class Cell> inline int64_t forward_scratch(const RolloutArgs& a, int rows, bool alone) {
    int64_t kp = widest_block(a), mp = padded(a.n_inputs);
    int64_t own = n_blocks(a) * block_floats<Cell>(a, rows) + kSlots * rows * mp + padded(n_blocks(a) * kTerms * rows);
    return (alone ? own : 0) + 2 * kSlots * rows * mp + draw_scratch(kDrawRows, kp) + product_scratch(kp > mp ? kp : mp);
}

// Memory that a team shares.
template <class Cell> inline TeamFloats team_floats(const RolloutArgs& a, int rows) {
    int64_t blocks = n_blocks(a);
    return {blocks * block_floats<Cell>(a, rows), 2 * blocks * kSlots * rows * padded(a.n_inputs), 2 * blocks * kTerms * rows};
}

template <class Cell>
inline Tile<Cell> make_tile(const RolloutArgs& a, int64_t first, int rows, const Share& share, float* memory) {
    Scratch scratch{memory};
    int64_t mp = padded(a.n_inputs), kp = widest_block(a);
    Tile<Cell> t{a, share, first, rows, mp};
    t.error = scratch.take(kSlots * t.size());
    t.weighted = scratch.take(kSlots * t.size());
    t.blocks = share.blocks;
    if (!share.meet) {
        t.blocks = scratch.take(n_blocks(a) * block_floats<Cell>(a, rows));
        t.part = scratch.take(kSlots * t.size());
        t.own_terms = scratch.take(padded(n_blocks(a) * kTerms * rows));
    }
    t.draw_scratch = scratch.take(draw_scratch(kDrawRows, kp));
    t.product = product_scratch_at(scratch.next, kp > mp ? kp : mp);
    return t;
}

template <class Cell> inline Block<Cell> block_at(const Tile<Cell>& t, int64_t index) {
    Block<Cell> b;
    b.args = t.a;
    b.index = index;
    b.first = index * kNeuronBlock;
    b.rows = t.rows;
    b.args.n_latents = t.a.n_latents - b.first < kNeuronBlock ? t.a.n_latents - b.first : kNeuronBlock;
    b.args.neuron_offset += (uint32_t)b.first;
    b.args.inhibition += b.first;
    b.kp = padded(b.args.n_latents);
    Scratch scratch{t.blocks + index * block_floats<Cell>(t.a, t.rows)};
    b.state = scratch.take(t.rows * Cell::kStates * b.kp);
    b.prior = scratch.take(t.rows * Cell::kStates * b.kp);
    b.aux = scratch.take(t.rows * Cell::kAux * b.kp);
    b.code = scratch.take(kSlots * t.rows * b.kp);
    b.memo = scratch.take(kSlots * t.rows * b.kp);
    b.drive = scratch.take(t.rows * b.kp);
    return b;
}

// Calls function(block, its cell) for the blocks of this thread, in order.
template <class Cell, class Function> inline void for_blocks(const Tile<Cell>& t, Function function) {
    for (int64_t i = t.share.begin; i < t.share.end; ++i) {
        Block<Cell> block = block_at(t, i);
        function(block, Cell(block.args));
    }
}

// The neurons of a block in rows of n_latents, from and to their place in the block.
template <class Cell> inline void store_block(const Tile<Cell>& t, const Block<Cell>& b, const float* from, float* to) {
    for (int r = 0; r < t.rows; ++r)
        memcpy(to + r * t.a.n_latents + b.first, from + r * b.kp, b.args.n_latents * sizeof(float));
}
// States [kStates, n_rows, n_latents] of the batch.
template <class Cell> inline void store_block_states(const Tile<Cell>& t, const Block<Cell>& b, float* to) {
    for (int r = 0; r < t.rows; ++r)
        for (int s = 0; s < Cell::kStates; ++s)
            memcpy(to + (s * t.a.n_rows + t.first + r) * t.a.n_latents + b.first, b.state + (r * Cell::kStates + s) * b.kp,
                   b.args.n_latents * sizeof(float));
}
template <class Cell> inline void load_block_states(const Tile<Cell>& t, const Block<Cell>& b, const float* from) {
    for (int r = 0; r < t.rows; ++r)
        for (int s = 0; s < Cell::kStates; ++s)
            load_rows(from + (s * t.a.n_rows + t.first + r) * t.a.n_latents + b.first, 1, b.args.n_latents, b.kp,
                      Cell::kPadding, b.state + (r * Cell::kStates + s) * b.kp);
}

// ---- the seam of a step: draw, decode a part | meet | residual | encode and update -----------------------------------

template <class Cell>
inline void draw_block(const Tile<Cell>& t, const Block<Cell>& b, const Cell& cell, Slot slot, const DrawOf& draw) {
    bool expected = slot == kUpdateSlot && t.a.expected;
    for (int r = 0; r < t.rows; r += kDrawRows) {
        int rows = t.rows - r < kDrawRows ? t.rows - r : kDrawRows;
        uint32_t sample = t.a.sample_offset + (uint32_t)(t.first + r);
        cell.draw(rows, b.state_of(r), b.aux_of(r), expected, b.code_of(slot) + r * b.kp, b.memo_of(slot) + r * b.kp,
                  make_stream(t.a.seed, draw, sample), sample, t.draw_scratch);
    }
}

// Calls function(columns of the dictionary that are a block's) where it is read as it is.
template <class Cell, class Function> inline void with_columns(const Tile<Cell>& t, const Block<Cell>& b, Function function) {
    t.a.dictionary ? function(t.a.dictionary + b.first) : function(t.a.dictionary_bf16 + b.first);
}

// A block's parts of the means of some slots; alone, their sum is left in part_of the first block.
template <class Cell> inline void decode_block(const Tile<Cell>& t, const Block<Cell>& b, int first, int slots) {
    auto decode = t.a.draws_counts ? counts_product : product;
    // Alone, the first block's part is the sum, and the next ones' lie where the error will.
    bool sum = !t.share.meet && b.index > 0;
    float* to = sum ? t.error : t.part_of(b.index);
    // Rates are never 0, so counts beside them are decoded apart: by spikes where they are few.
    int together = kMergesSlots && !t.a.expected ? slots : 1;
    for (int slot = first; slot < first + slots; slot += together) {
        int64_t at = slot * t.size();
        int rows = together * t.rows;
        if (reads_dictionary(t.a))
            with_columns(t, b, [&](const auto* columns) {
                transposed_product(rows, b.code_of(slot), b.kp, b.args.n_latents, columns, t.a.n_latents, t.a.n_inputs,
                                   to + at, t.mp);
            });
        else
            decode(rows, b.code_of(slot), b.kp, b.args.n_latents, t.a.decoder + b.first * kPanel, t.a.n_latents * kPanel, t.mp,
                   to + at, t.mp, t.product);
    }
    for (int64_t i = first * t.size(); sum && i < (first + slots) * t.size(); i += kWidth)
        store(t.part + i, load(t.part + i) + load(to + i));
}

// All parts are there, once every thread of a team has come. False: the call is to end.
template <class Cell> inline bool meet(const Tile<Cell>& t) { return !t.share.meet || t.share.meet(t.share.team); }

// The sum of all blocks, and of those of other processes, is left in the part of the first block. False: end.
template <class Cell> inline bool exchange(const Tile<Cell>& t, int first, int slots) {
    if (t.leads()) {
        float* sums = t.part_of(0) + first * t.size();
        int64_t n = slots * t.size();
        for (int64_t b = 1; b < n_blocks(t.a); ++b) {
            const float* part = t.part_of(b) + first * t.size();
            for (int64_t i = 0; i < n; i += kWidth) store(sums + i, load(sums + i) + load(part + i));
        }
        t.share.exchange(t.share.team, sums, n);
    }
    return meet(t);
}

// error = x - mean of a slot, at the frame of a step, and the same times precision; zero in the padding.
template <class Cell> inline void residual(const Tile<Cell>& t, int from, int to, int64_t step) {
    int64_t parts = t.share.meet && !t.share.exchange ? n_blocks(t.a) : 1;
    for (int r = 0; r < t.rows; ++r) {
        const float* x = t.a.x + step * t.a.x_step + (t.first + r) * t.a.n_inputs;
        for (int64_t i = 0; i < t.mp; i += kWidth) {
            int64_t at = from * t.size() + r * t.mp + i;
            vf mean = load(t.part_of(0) + at);
            for (int64_t b = 1; b < parts; ++b) mean = mean + load(t.part_of(b) + at);
            vf e = (i < t.a.n_inputs ? load_part(x + i, t.a.n_inputs - i) : vf{}) - mean;
            int64_t out = to * t.size() + r * t.mp + i;
            store(t.error + out, e);
            store(t.weighted + out, e * load(t.a.precision + i));
        }
    }
}

// Precision-weighted errors to the drives of a block, and one update of every row.
template <class Cell>
inline void update_block(const Tile<Cell>& t, const Block<Cell>& b, const Cell& cell, bool first, bool kl) {
    if (reads_dictionary(t.a))
        with_columns(t, b, [&](const auto* columns) {
            direct_product(t.rows, t.weighted, t.mp, t.a.n_inputs, columns, t.a.n_latents, b.args.n_latents, b.drive, b.kp);
        });
    else  // several blocks have only the instruction sets that pack floats
        product(t.rows, t.weighted, t.mp, t.a.n_inputs, t.a.encoder + b.first * t.a.n_inputs, t.a.n_inputs * kPanel, b.kp,
                b.drive, b.kp, t.product);
    float* terms = t.terms_of(b.index) + kKlTerm * t.rows;
    for (int r = 0; r < t.rows; ++r) {
        float *state = b.state_of(r), *prior = b.prior_of(r), *aux = b.aux_of(r);
        const float *drive = b.drive + r * b.kp, *code = b.code + r * b.kp, *memo = b.memo + r * b.kp;
        float of_row = first ? kl ? cell.template update<true, true>(state, prior, aux, drive, code, memo)
                                  : cell.template update<false, true>(state, prior, aux, drive, code, memo)
                       : kl ? cell.template update<true, false>(state, prior, aux, drive, code, memo)
                            : cell.template update<false, false>(state, prior, aux, drive, code, memo);
        if (kl) terms[r] = of_row;
    }
}

// ---- records --------------------------------------------------------------------------------------------------------

template <class Cell> inline void save_draw(const Tile<Cell>& t, int slot, int64_t draw_index) {
    const RolloutArgs& a = t.a;
    if (!a.drawn) return;
    int64_t row = draw_index * a.n_rows + t.first;
    for_blocks(t, [&](const Block<Cell>& b, const Cell&) {
        store_block(t, b, b.code_of(slot), a.drawn + row * a.n_latents);
        store_block(t, b, b.memo_of(slot), a.slopes + row * a.n_latents);
    });
    if (t.leads()) store_rows(t.error + slot * t.size(), t.rows, a.n_inputs, t.mp, a.errors + row * a.n_inputs);
}

template <class Cell> inline void save_path(const Tile<Cell>& t, int64_t index) {
    if (!t.a.path) return;
    float* to = t.a.path + index * Cell::kStates * t.a.n_rows * t.a.n_latents;
    for_blocks(t, [&](const Block<Cell>& b, const Cell&) { store_block_states(t, b, to); });
}

template <class Cell> inline void record_reconstruction_terms(const Tile<Cell>& t, int64_t at) {
    const RolloutArgs& a = t.a;
    for (int r = 0; r < t.rows; ++r) {
        vf squared{}, weighted{};
        int64_t row = kLossSlot * t.size() + r * t.mp;
        for (int64_t i = row; i < row + t.mp; i += kWidth) {
            vf e = load(t.error + i);
            squared = squared + e * e;
            weighted = weighted + e * load(t.weighted + i);
        }
        if (a.recon) a.recon[at + r] = 0.5f * sum(weighted) + a.log_normalizer;
        if (a.squared_error) a.squared_error[at + r] = sum(squared);
    }
}

template <class Cell> inline void count_terms(const Tile<Cell>& t, const Block<Cell>& b) {
    float* terms = t.terms_of(b.index);
    for (int r = 0; r < t.rows; ++r) {
        vf spikes{}, silent{};
        for (int64_t k = 0; k < b.kp; k += kWidth) {
            vf z = load(b.code_of(kLossSlot) + r * b.kp + k);
            spikes = spikes + z;
            silent = silent + (z == vf{} ? splat<vf>(1.f) : vf{});
        }
        terms[kSpikesTerm * t.rows + r] = sum(spikes);
        terms[kSilentTerm * t.rows + r] = sum(silent) - (float)(b.kp - b.args.n_latents);
    }
}

// What each thread records of its blocks.
template <class Cell> inline void record_blocks(const Tile<Cell>& t, int64_t index) {
    const RolloutArgs& a = t.a;
    int64_t at = index * a.n_rows + t.first;
    for_blocks(t, [&](const Block<Cell>& b, const Cell&) {
        if (a.spikes || a.zeros) count_terms(t, b);
        if (a.log_rates) store_block_states(t, b, a.log_rates + index * Cell::kStates * a.n_rows * a.n_latents);
        if (a.counts) store_block(t, b, b.code_of(kLossSlot), a.counts + at * a.n_latents);
    });
}

template <class Cell> inline float sum_of_blocks(const Tile<Cell>& t, Term term, int r) {
    float total = t.terms_of(0)[term * t.rows + r];
    for (int64_t b = 1; b < n_blocks(t.a); ++b) total += t.terms_of(b)[term * t.rows + r];
    return total;
}

// What the thread with the first block records of all.
template <class Cell> inline void record_sums(const Tile<Cell>& t, int64_t step, int64_t index) {
    const RolloutArgs& a = t.a;
    int64_t at = index * a.n_rows + t.first;
    if (a.recon || a.squared_error) record_reconstruction_terms(t, at);
    for (int r = 0; r < t.rows; ++r) {
        if (a.spikes) a.spikes[at + r] = sum_of_blocks(t, kSpikesTerm, r);
        if (a.zeros) a.zeros[at + r] = sum_of_blocks(t, kSilentTerm, r) / (float)a.n_latents;
        if (a.kl_out) a.kl_out[at + r] = sum_of_blocks(t, kKlTerm, r);
    }
    if (a.reconstruction) {
        const float* x = a.x + step * a.x_step + t.first * a.n_inputs;
        const float* error = t.error + kLossSlot * t.size();
        for (int r = 0; r < t.rows; ++r)
            for (int64_t i = 0; i < a.n_inputs; ++i)
                a.reconstruction[(at + r) * a.n_inputs + i] = x[r * a.n_inputs + i] - error[r * t.mp + i];
    }
}

// ---- the loop over time -----------------------------------------------------------------------------------------------

// The draws from the state that an update leaves: that of the next update, and the fresh one of the step.
struct Draws {
    bool update, loss;
    bool same;  // the fresh draw drives the next update too
    DrawOf of_update, of_loss;
    int64_t step, next_step;  // whose frames they are compared with

    bool draws_update() const { return update && !same; }
    bool any() const { return update || loss; }
    int first() const { return draws_update() ? kUpdateSlot : kLossSlot; }
    int slots() const { return draws_update() && loss ? 2 : 1; }
};

inline Draws draws_after(const RolloutArgs& a, int64_t step, int64_t inner, bool loss) {
    bool last = inner + 1 == a.n_inner, update = !last || step + 1 < a.n_steps;
    int64_t next_step = last ? step + 1 : step, next_inner = last ? 0 : inner + 1;
    return {update, loss, update && loss && a.single_draw,
            update_draw_of(a.single_draw, a.step + (uint32_t)next_step, (uint32_t)next_inner),
            loss_draw_of(a.step + (uint32_t)step), step, next_step};
}

template <class Cell>
inline void draw_and_decode(const Tile<Cell>& t, const Block<Cell>& b, const Cell& cell, const Draws& draws) {
    if (draws.draws_update()) draw_block(t, b, cell, kUpdateSlot, draws.of_update);
    if (draws.loss) draw_block(t, b, cell, kLossSlot, draws.of_loss);
    if (draws.same) {
        memcpy(b.code_of(kUpdateSlot), b.code_of(kLossSlot), t.rows * b.kp * sizeof(float));
        memcpy(b.memo_of(kUpdateSlot), b.memo_of(kLossSlot), t.rows * b.kp * sizeof(float));
    }
    decode_block(t, b, draws.first(), draws.slots());
}

// What the draws leave of the frames, once all blocks have decoded theirs. False: end.
template <class Cell> inline bool residuals(Tile<Cell>& t, const Draws& draws) {
    if (!draws.any()) return true;
    if (!meet(t)) return false;
    if (t.share.exchange && !exchange(t, draws.first(), draws.slots())) return false;
    if (draws.update) residual(t, draws.same ? kLossSlot : kUpdateSlot, kUpdateSlot, draws.next_step);
    if (draws.loss) residual(t, kLossSlot, kLossSlot, draws.step);
    ++t.n_means;
    return true;
}

// The states before the first step, and its first draw. False: end.
template <class Cell> inline bool begin(Tile<Cell>& t) {
    const RolloutArgs& a = t.a;
    Draws draws{true, false, false, update_draw_of(a.single_draw, a.step, 0), {}, 0, 0};
    for_blocks(t, [&](const Block<Cell>& b, const Cell& cell) {
        load_block_states(t, b, a.log_rate);
        for (int r = 0; r < t.rows; ++r) cell.prepare(b.state_of(r), b.aux_of(r));
        memset(b.memo, 0, kSlots * t.rows * b.kp * sizeof(float));  // hard draws leave it alone
        draw_and_decode(t, b, cell, draws);
    });
    save_path(t, 0);
    return residuals(t, draws);
}

// One update, and the draws from the state it leaves; block by block, while what each needs is in the cache.
template <class Cell>
inline void update_and_draw(const Tile<Cell>& t, int64_t update, bool first, bool kl, const Draws& draws) {
    const RolloutArgs& a = t.a;
    for_blocks(t, [&](const Block<Cell>& b, const Cell& cell) {
        if (first && a.n_inner > 1) memcpy(b.prior, b.state, t.rows * Cell::kStates * b.kp * sizeof(float));
        update_block(t, b, cell, first, kl);
        if (a.drives) store_block(t, b, b.drive, a.drives + (update * a.n_rows + t.first) * a.n_latents);
        if (draws.any()) draw_and_decode(t, b, cell, draws);
    });
    save_path(t, update + 1);
}

// All steps of a tile of rows, for the blocks of one thread. False: a team was told to end.
template <class Cell>
inline bool rollout_tile(const RolloutArgs& a, int64_t first, int rows, const Share& share, float* memory) {
    TileScope scope;
    Tile<Cell> t = make_tile<Cell>(a, first, rows, share, memory);
    if (!begin(t)) return false;
    bool loss_draw = wants_loss_draw(a);
    for (int64_t step = 0; step < a.n_steps; ++step) {
        int64_t done = (int64_t)a.step + step + 1;  // up to 2^32, one more than a uint32_t holds
        bool recorded = done % a.record_every == 0;
        for (int64_t inner = 0; inner < a.n_inner; ++inner) {
            save_draw(t, kUpdateSlot, step * (a.n_inner + 1) + inner);
            bool last = inner + 1 == a.n_inner;
            Draws draws = draws_after(a, step, inner, last && recorded && loss_draw);
            update_and_draw(t, step * a.n_inner + inner, inner == 0, recorded && a.kl_out && last, draws);
            if (!residuals(t, draws)) return false;
        }
        if (!recorded) continue;
        if (loss_draw) save_draw(t, kLossSlot, step * (a.n_inner + 1) + a.n_inner);
        int64_t index = done / a.record_every - a.step / a.record_every - 1;
        record_blocks(t, index);
        if ((a.spikes || a.zeros || a.kl_out) && !meet(t)) return false;
        if (t.leads()) record_sums(t, step, index);
        ++t.n_records;
    }
    for_blocks(t, [&](const Block<Cell>& b, const Cell&) { store_block_states(t, b, a.log_rate_out); });
    return meet(t);  // before the next tile takes the memory
}

// States [kStates, n_rows, n_latents] of the batch to and from the rows of a tile of all neurons.
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

IPVAE_END
