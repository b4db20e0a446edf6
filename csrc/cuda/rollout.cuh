// A whole rollout, and its gradient, in one launch. plan.h says how blocks, teams and tiles divide the work.
//
// Floors for B 200, K 512, M 256, T 16, hard counts, on an H100 (3.35 TB/s; 495 TFLOP/s of dense TF32; 132 SMs, 128 lanes,
// 1.7 GHz; arithmetic on paper, not measured):
//   forward, bytes: 0.9 MB in; in training a trajectory of 46 MB out, 14 us; inference writes 0.4 MB.
//   forward, operations: per step two decodes of two TF32 products each and an encode of three, 5.9 GFLOP over 16 steps,
//     12 us; 3.3 million draws with half as many updates, some 400 instructions each, 46 us: bound by issue.
//   backward, bytes: 33 MB in, 13 MB out, 14 us. Operations: a decode and two encodes of three products each, 7.5 GFLOP,
//     15 us. The dictionary's gradient is formed by torch: 2.5 GFLOP of float32, 38 us at 67 TFLOP/s.
//   barriers: per state two of the team and two of the block, so 36 and 34 in either direction; forward a third of the
//     block where a draw that can be sparse has a row that is not.
// The products are counted as dense. A row that fires less than an eighth of its neurons is decoded event by event
// (dictionary.cuh); noting what fired takes some 10 instructions for 32 codes, where drawing them takes 400.
// The plan for it is clusters of 4 blocks to 8 rows: 100 blocks, each with a slice of 128 neurons in 128 KB.
//
// Both draws that see one state, the fresh one of step t and that of the update of step t + 1, are decoded together: this
// saves a meeting of the team per step, and a read of the dictionary. The backward does the same with the two encodes.
//
// Tried: nothing, for want of a GPU; results were compared on a host emulation only. Untried: wgmma; the Gram form; a
// transposed dictionary for the events of a slice that is not on chip; counts kept in 8 bits; a team meeting split into
// arrive and wait, with the draws of the next state in between; 512 threads.
#pragma once

#include "../common/schedule.h"
#include "cells.cuh"
#include "dictionary.cuh"

IPVAE_BEGIN

struct RolloutKernel {
    RolloutArgs args;
    Plan plan;
    const uint64_t* seed;
    const float* dictionary;  // [n_inputs, n_latents]
    const float* log_sigma;   // [n_inputs]
    const float* log_bias;    // [n_latents]
    const float* log_lr;      // [S]
    float* workspace;         // [teams, team, plan.workspace]
};

struct RolloutGradKernel {
    RolloutKernel forward;
    const float *grad_recon, *grad_kl;  // [n_steps, n_rows]
    const float* grad_log_rate;         // [S, n_rows, n_latents]
    float* grad_log_rate_in;            // [S, n_rows, n_latents]
    float* grad_x;                      // as x
    float* grad_errors;                 // as errors
    float* grad_drives;                 // as drives
    float* partial;                     // [tiles, n_inputs + n_latents + S team] d log_sigma, d log_bias, d log_lr
};

// What forward and backward share: where a block stands, and its arrays.
template <class Cell, int kRows, class Thread> struct Block {
    const RolloutKernel& k;
    const RolloutArgs& a;
    const Plan& plan;
    Thread& thread;
    Cell cell;
    int64_t first;        // neuron of the slice
    int64_t width;        // neurons of the slice
    int64_t begin, end;   // inputs whose residual this block forms
    int64_t ls, lm;       // strides of rows of neurons and of inputs
    int64_t tile = 0;

    static constexpr int kWarps = Thread::kCount / 32;
    static constexpr int kStates = Cell::kStates;

    IPVAE_DEVICE Block(const RolloutKernel& kernel, Thread& t)
        : k(kernel), a(kernel.args), plan(kernel.plan), thread(t), cell(kernel.args, kernel.log_lr) {
        first = thread.rank * plan.slice;
        width = a.n_latents - first < plan.slice ? a.n_latents - first : plan.slice;
        width = width < 0 ? 0 : width;
        begin = thread.rank * plan.chunk;
        end = begin + plan.chunk < a.n_inputs ? begin + plan.chunk : a.n_inputs;
        ls = plan.slice_stride;
        lm = plan.input_stride;
    }

    IPVAE_DEVICE float* of(int name, int rank) const {
        const Place& place = plan.place[name];
        if (place.shared) return thread.in_shared_of(rank, reinterpret_cast<float*>(thread.shared) + place.offset);
        return k.workspace + (thread.team_index * plan.team + rank) * plan.workspace + place.offset;
    }
    IPVAE_DEVICE float* own(int name) const {
        const Place& place = plan.place[name];
        if (place.shared) return reinterpret_cast<float*>(thread.shared) + place.offset;
        return k.workspace + (thread.team_index * plan.team + thread.rank) * plan.workspace + place.offset;
    }

    template <class Function> IPVAE_DEVICE void each(int64_t n, Function function) const {
        for (int64_t i = thread.index(); i < n; i += Thread::kCount) function(i);
    }
    IPVAE_DEVICE void clear(int name, int64_t n) const {
        float* to = own(name);
        each(n, [&](int64_t i) { to[i] = 0.f; });
    }
    // function(row of the tile, row of the batch); a warp has a row to itself.
    template <class Function> IPVAE_DEVICE void each_row(Function function) const {
        for (int r = thread.warp(); r < kRows && tile * kRows + r < a.n_rows; r += kWarps) function(r, tile * kRows + r);
    }
    // function(neuron of the slice, how many there are from it on) for quads; a lane has a quad to itself.
    template <class Function> IPVAE_DEVICE void each_quad(Function function) const {
        for (int64_t n = 4 * thread.lane(); n < width; n += 128) function(n, width - n);
    }
    // function(input) for those of this block.
    template <class Function> IPVAE_DEVICE void each_input(Function function) const {
        for (int64_t p = begin + thread.lane(); p < end; p += 32) function(p);
    }

    // What does not change between tiles.
    IPVAE_DEVICE void load_constants() const {
        if (plan.resident) {
            float* phi = own(kPhi);
            each(plan.inputs * (plan.slice / 4), [&](int64_t i) {
                int p = static_cast<int>(i / (plan.slice / 4)), n = 4 * static_cast<int>(i % (plan.slice / 4));
                Quad q = quad(0.f);
                if (p < a.n_inputs && n < width) q = load_quad(k.dictionary + p * a.n_latents + first + n, width - n);
                IPVAE_UNROLL for (int j = 0; j < 4; ++j) phi[p * plan.slice + ResidentPhi::swizzled(p, n + j)] = q.v[j];
            });
        }
        float* inhibition = own(kInhibition);
        each(plan.slice, [&](int64_t i) { inhibition[i] = i < width ? exp(k.log_bias[first + i]) : 0.f; });
        float* precision = own(kPrecision);
        each(end - begin, [&](int64_t i) { precision[i] = exp(-2.f * k.log_sigma[begin + i]); });
    }

    // function(the slice of the dictionary)
    template <class Function> IPVAE_DEVICE void with_phi(Function function) const {
        if (plan.resident) {
            // Not by own(): the compiler must see that this lies in shared memory.
            const float* at = reinterpret_cast<const float*>(thread.shared) + plan.place[kPhi].offset;
            function(ResidentPhi{at, static_cast<int>(plan.slice)});
        } else {
            function(StreamedPhi{k.dictionary + first, a.n_latents, a.n_inputs, width});
        }
    }

    template <bool kDecode, int kColumns>
    IPVAE_DEVICE void multiply(const float* operand, float* out) const {
        int64_t m = kDecode ? plan.inputs : plan.slice, depth = kDecode ? plan.slice : plan.inputs;
        int64_t in = kDecode ? ls : lm, to = kDecode ? lm : ls;
        with_phi([&](const auto& phi) { product<kDecode, kColumns>(thread, phi, m, depth, operand, in, out, to); });
    }

    // The product with the whole dictionary, from the team's shares.
    IPVAE_DEVICE float whole(int64_t column, int64_t input) const {
        float sum = 0.f;
        for (int rank = 0; rank < plan.team; ++rank) sum += of(kPartial, rank)[column * lm + input];
        return sum;
    }
    // To every block's copy.
    IPVAE_DEVICE void gather(int64_t column, int64_t input, float value) const {
        for (int rank = 0; rank < plan.team; ++rank) of(kGathered, rank)[column * lm + input] = value;
    }

    // States of a quad: from [S, n_rows, n_latents] of the batch, and from [S, rows, slice] of the block.
    using State = typename Cell::State;
    IPVAE_DEVICE State load_batch(const float* from, int64_t row, int64_t n, int64_t valid) const {
        State s;
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            s.of[i] = load_quad(from + (i * a.n_rows + row) * a.n_latents + first + n, valid);
        return s;
    }
    IPVAE_DEVICE void store_batch(float* to, int64_t row, int64_t n, int64_t valid, const State& s) const {
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            store_quad(to + (i * a.n_rows + row) * a.n_latents + first + n, valid, s.of[i]);
    }
    IPVAE_DEVICE State load_own(int name, int64_t r, int64_t n) const {
        State s;
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            s.of[i] = *reinterpret_cast<const Quad*>(own(name) + (i * kRows + r) * ls + n);
        return s;
    }
    IPVAE_DEVICE void store_own(int name, int64_t r, int64_t n, const State& s) const {
        IPVAE_UNROLL for (int i = 0; i < kStates; ++i)
            *reinterpret_cast<Quad*>(own(name) + (i * kRows + r) * ls + n) = s.of[i];
    }
    IPVAE_DEVICE int64_t state_size() const { return kStates * a.n_rows * a.n_latents; }
};

// Zero beyond the last neuron: the products sum over the padding.
IPVAE_DEVICE Quad valid_part(const Quad& q, int64_t valid) {
    Quad out;
    IPVAE_UNROLL for (int j = 0; j < 4; ++j) out.v[j] = j < valid ? q.v[j] : 0.f;
    return out;
}

// ---- forward ------------------------------------------------------------------------------------------------------

template <class Cell, int kRows, class Thread> struct Forward : Block<Cell, kRows, Thread> {
    using Base = Block<Cell, kRows, Thread>;
    using State = typename Base::State;
    using Base::a, Base::begin, Base::cell, Base::end, Base::first, Base::k, Base::lm, Base::ls, Base::own, Base::plan,
        Base::thread, Base::tile, Base::width;

    // Rows of the operand and of the partial product: the fresh draw's, then those of the update's draw.
    static constexpr int kLossColumn = 0, kUpdateColumn = kRows;

    int64_t i = 0;               // updates done so far: the state's index
    bool loss = false, update = false, recorded = false;  // which draws the state gets; whether its step is recorded
    int64_t record = 0;          // index of the record

    IPVAE_DEVICE Forward(const RolloutKernel& kernel, Thread& t) : Base(kernel, t) {}

    IPVAE_DEVICE int64_t steps_done() const { return i / a.n_inner; }

    IPVAE_DEVICE void look_at_state(int64_t index) {
        i = index;
        bool step_ends = i > 0 && i % a.n_inner == 0;
        int64_t done = static_cast<int64_t>(a.step) + steps_done();  // up to 2^32, one more than a uint32_t holds
        recorded = step_ends && done % a.record_every == 0;
        record = done / a.record_every - a.step / a.record_every - 1;
        loss = recorded && wants_loss_draw(a);
        update = i < a.n_steps * a.n_inner;
    }
    IPVAE_DEVICE int64_t loss_draw() const { return (steps_done() - 1) * (a.n_inner + 1) + a.n_inner; }
    IPVAE_DEVICE int64_t update_draw() const { return steps_done() * (a.n_inner + 1) + i % a.n_inner; }

    IPVAE_DEVICE Stream loss_stream(int64_t row) const {
        uint32_t step = a.step + static_cast<uint32_t>(steps_done() - 1);
        return make_stream(*k.seed, loss_draw_of(step), a.sample_offset + static_cast<uint32_t>(row));
    }
    IPVAE_DEVICE Stream update_stream(int64_t row) const {
        uint32_t step = a.step + static_cast<uint32_t>(steps_done()), sample = a.sample_offset + static_cast<uint32_t>(row);
        return make_stream(*k.seed, update_draw_of(a.single_draw, step, static_cast<uint32_t>(i % a.n_inner)), sample);
    }

    IPVAE_DEVICE void save_draw(int64_t draw, int64_t row, int64_t n, int64_t valid, const Quad& code, const Quad& memo) const {
        if (!a.drawn) return;
        int64_t at = (draw * a.n_rows + row) * a.n_latents + first + n;
        store_quad(a.drawn + at, valid, code);
        store_quad(a.slopes + at, valid, memo);
    }

    IPVAE_DEVICE uint32_t* fired(int64_t column) const {
        return reinterpret_cast<uint32_t*>(own(kFired)) + column * (1 + plan.slice / 32);
    }
    // Notes which codes of a row are not 0, for decode(); the row's warp has drawn them.
    IPVAE_DEVICE void note_fired(int column) const {
        const float* codes = own(kOperand) + column * ls;
        uint32_t* to = fired(column);
        int count = 0;
        for (int64_t n = thread.lane(); n < plan.slice; n += 32) {
            uint32_t who = thread.ballot(codes[n] != 0.f);
            count += bit_count(who);
            if (thread.lane() == 0) to[1 + n / 32] = who;
        }
        if (thread.lane() == 0) to[0] = static_cast<uint32_t>(count);
    }

    // The state with index i: from the one before by an update, or from the batch; then its draws.
    IPVAE_DEVICE void advance_state() const {
        float *operand = own(kOperand), *drives = own(kProduct), *memos = own(kMemo), *inhibition = own(kInhibition);
        bool step_ends = i > 0 && i % a.n_inner == 0;
        this->each_row([&](int r, int64_t row) {
            float kl = 0.f, spikes = 0.f, silent = 0.f;
            this->each_quad([&](int64_t n, int64_t valid) {
                State s;
                Quad *update_code = reinterpret_cast<Quad*>(operand + (kUpdateColumn + r) * ls + n);
                Quad *memo_at = reinterpret_cast<Quad*>(memos + r * ls + n);
                if (i == 0) {
                    s = this->load_batch(a.log_rate, row, n, valid);
                } else {
                    State before = this->load_own(kState, r, n);
                    State prior = a.n_inner > 1 ? this->load_own(kPrior, r, n) : before;
                    Quad drive = *reinterpret_cast<const Quad*>(drives + r * ls + n);
                    s = cell.update(before, prior, drive, *update_code, Cell::kUsesMemo ? *memo_at : drive,
                                    *reinterpret_cast<const Quad*>(inhibition + n));
                    if (a.drives) store_quad(a.drives + ((i - 1) * a.n_rows + row) * a.n_latents + first + n, valid, drive);
                    if (recorded && a.kl_out) {
                        IPVAE_UNROLL for (int j = 0; j < 4; ++j) kl += j < valid ? cell.kl(s, prior, j) : 0.f;
                    }
                }
                if (a.n_inner > 1 && (i == 0 || step_ends)) this->store_own(kPrior, r, n, s);
                this->store_own(kState, r, n, s);
                if (a.path) this->store_batch(a.path + i * this->state_size(), row, n, valid, s);
                if (recorded && a.log_rates) this->store_batch(a.log_rates + record * this->state_size(), row, n, valid, s);
                if (!update) this->store_batch(a.log_rate_out, row, n, valid, s);
                if (!loss && !update) return;

                auto shared_by_draws = cell.prepare(s);
                uint32_t neuron = a.neuron_offset + static_cast<uint32_t>(first + n);
                Quad code, memo;
                if (loss) {
                    cell.draw(s, shared_by_draws, loss_stream(row), neuron, code, memo);
                    code = valid_part(code, valid);
                    *reinterpret_cast<Quad*>(operand + (kLossColumn + r) * ls + n) = code;
                    save_draw(loss_draw(), row, n, valid, code, memo);
                    if (a.counts) store_quad(a.counts + (record * a.n_rows + row) * a.n_latents + first + n, valid, code);
                    IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
                        spikes += code.v[j];
                        silent += j < valid && code.v[j] == 0.f ? 1.f : 0.f;
                    }
                }
                if (update) {
                    if (!(a.single_draw && loss)) {
                        cell.draw(s, shared_by_draws, update_stream(row), neuron, code, memo);
                        code = valid_part(code, valid);
                    }
                    *update_code = code;
                    if (Cell::kUsesMemo) *memo_at = memo;
                    save_draw(update_draw(), row, n, valid, code, memo);
                }
            });
            if (cell.silences()) {
                thread.sync_warp();
                if (loss) note_fired(kLossColumn + r);
                if (update) note_fired(kUpdateColumn + r);
            }
            if (!recorded) return;
            kl = thread.sum(kl);
            spikes = thread.sum(spikes);
            silent = thread.sum(silent);
            if (thread.lane() == 0) {
                float* sums = this->of(kLatentSums, 0) + (thread.rank * kRows + r) * 3;
                sums[0] = kl;
                sums[1] = spikes;
                sums[2] = silent;
            }
        });
    }

    // Whether a row of codes is decoded on tensor cores; else event by event.
    IPVAE_DEVICE bool dense(int64_t column) const {
        int cost = plan.resident ? ResidentPhi::kEventCost : StreamedPhi::kEventCost;
        return !cell.silences() || static_cast<int64_t>(fired(column)[0]) * cost > plan.slice;
    }
    // Whether any row of a draw is.
    IPVAE_DEVICE bool some_dense(int column) const {
        return thread.any(thread.lane() < kRows && dense(column + thread.lane()));
    }

    IPVAE_DEVICE void decode() const {
        const float* operand = own(kOperand);
        float* partial = own(kPartial);
        bool dense_loss = loss && some_dense(kLossColumn), dense_update = update && some_dense(kUpdateColumn);
        if (dense_loss && dense_update)
            this->template multiply<true, kRows / 4>(operand, partial);
        else if (dense_update)
            this->template multiply<true, kRows / 8>(operand + kUpdateColumn * ls, partial + kUpdateColumn * lm);
        else if (dense_loss)
            this->template multiply<true, kRows / 8>(operand, partial);
        if (!cell.silences()) return;
        if (dense_loss || dense_update) thread.sync_block();  // sparse rows of such a draw are written over
        int64_t from = loss ? kLossColumn : kUpdateColumn, columns = (update ? 2 * kRows : kRows) - from;
        int64_t parts = (plan.inputs + kEventInputs - 1) / kEventInputs;
        for (int64_t unit = thread.warp(); unit < columns * parts; unit += Base::kWarps) {
            int64_t column = from + unit / parts, input = unit % parts * kEventInputs;
            if (dense(column)) continue;
            this->with_phi([&](const auto& phi) {
                add_events(thread, phi, input, plan.inputs, fired(column) + 1, plan.slice / 32, operand + column * ls,
                           partial + column * lm);
            });
        }
    }

    // Residuals of this block's inputs, and the losses' sums over them.
    IPVAE_DEVICE void form_errors() const {
        const float *precision = own(kPrecision), *offset = own(kOffset);
        const float* x_loss = a.x + (steps_done() - 1) * a.x_step;
        const float* x_update = a.x + steps_done() * a.x_step;
        this->each_row([&](int r, int64_t row) {
            float recon = 0.f, squared = 0.f;
            this->each_input([&](int64_t p) {
                if (loss) {
                    float decoded = this->whole(kLossColumn + r, p), e = x_loss[row * a.n_inputs + p] - decoded;
                    squared += e * e;
                    recon += 0.5f * e * e * precision[p - begin] + offset[p - begin];
                    if (a.errors) a.errors[(loss_draw() * a.n_rows + row) * a.n_inputs + p] = e;
                    if (a.reconstruction) a.reconstruction[(record * a.n_rows + row) * a.n_inputs + p] = decoded;
                }
                if (update) {
                    float e = x_update[row * a.n_inputs + p] - this->whole(kUpdateColumn + r, p);
                    if (a.errors) a.errors[(update_draw() * a.n_rows + row) * a.n_inputs + p] = e;
                    this->gather(r, p, e * precision[p - begin]);
                }
            });
            if (!loss) return;
            recon = thread.sum(recon);
            squared = thread.sum(squared);
            if (thread.lane() == 0) {
                float* sums = this->of(kInputSums, 0) + (thread.rank * kRows + r) * 2;
                sums[0] = recon;
                sums[1] = squared;
            }
        });
    }

    // Block 0 adds up what the team's blocks summed; block 0's thread r does row r.
    IPVAE_DEVICE float team_sum(int name, int r, int which, int each) const {
        float sum = 0.f;
        for (int rank = 0; rank < plan.team; ++rank) sum += own(name)[(rank * kRows + r) * each + which];
        return sum;
    }
    template <class Function> IPVAE_DEVICE void first_block(Function function) const {
        int r = thread.index();
        if (thread.rank == 0 && r < kRows && tile * kRows + r < a.n_rows) function(r, record * a.n_rows + tile * kRows + r);
    }
    IPVAE_DEVICE void record_latent_sums() const {
        if (recorded) first_block([&](int r, int64_t at) {
            if (a.kl_out) a.kl_out[at] = team_sum(kLatentSums, r, 0, 3);
            if (a.spikes) a.spikes[at] = team_sum(kLatentSums, r, 1, 3);
            if (a.zeros) a.zeros[at] = team_sum(kLatentSums, r, 2, 3) / static_cast<float>(a.n_latents);
        });
    }
    IPVAE_DEVICE void record_input_sums() const {
        if (loss) first_block([&](int r, int64_t at) {
            if (a.recon) a.recon[at] = team_sum(kInputSums, r, 0, 2);
            if (a.squared_error) a.squared_error[at] = team_sum(kInputSums, r, 1, 2);
        });
    }

    IPVAE_DEVICE void run() {
        this->load_constants();
        float* offset = own(kOffset);
        this->each(end - begin, [&](int64_t j) { offset[j] = k.log_sigma[begin + j] + 0.918938533f; });
        for (tile = thread.team_index; tile < plan.tiles; tile += plan.teams) {
            this->clear(kOperand, 2 * kRows * ls);
            this->clear(kFired, 2 * kRows * (1 + plan.slice / 32));  // rows beyond the batch fire nothing
            this->clear(kGathered, kRows * lm);
            thread.sync_team();  // nothing reaches an array before it is cleared
            for (int64_t index = 0; index <= a.n_steps * a.n_inner; ++index) {
                look_at_state(index);
                advance_state();
                thread.sync_block();
                decode();
                thread.sync_team();
                form_errors();
                record_latent_sums();
                thread.sync_team();
                if (update) this->template multiply<false, kRows / 8>(own(kGathered), own(kProduct));
                record_input_sums();
                thread.sync_block();
            }
        }
        thread.sync_team();  // no block leaves while others may still read its shared memory
    }
};

// ---- backward -----------------------------------------------------------------------------------------------------

template <class Cell, int kRows, class Thread> struct Backward : Block<Cell, kRows, Thread> {
    using Base = Block<Cell, kRows, Thread>;
    using State = typename Base::State;
    using Base::a, Base::begin, Base::cell, Base::end, Base::first, Base::k, Base::lm, Base::ls, Base::own, Base::plan,
        Base::thread, Base::tile, Base::width;
    const RolloutGradKernel& g;

    static constexpr int kLossColumn = 0, kUpdateColumn = kRows;
    static constexpr int kStates = Cell::kStates;

    IPVAE_DEVICE Backward(const RolloutGradKernel& kernel, Thread& t) : Base(kernel.forward, t), g(kernel) {}

    IPVAE_DEVICE int64_t n_updates() const { return a.n_steps * a.n_inner; }
    // State i got a fresh draw where it ends a step, and one for the update where it is not the last.
    IPVAE_DEVICE bool has_loss(int64_t i) const { return i > 0 && i % a.n_inner == 0; }
    IPVAE_DEVICE bool has_update(int64_t i) const { return i < n_updates(); }
    IPVAE_DEVICE int64_t loss_draw(int64_t i) const { return (i / a.n_inner - 1) * (a.n_inner + 1) + a.n_inner; }
    IPVAE_DEVICE int64_t update_draw(int64_t i) const { return i / a.n_inner * (a.n_inner + 1) + i % a.n_inner; }
    IPVAE_DEVICE const float* path(int64_t i) const { return a.path + i * this->state_size(); }

    // Through the update from state i on: the gradient of state i + 1 becomes that of state i and of the drive.
    IPVAE_DEVICE void through_update(int64_t i) const {
        float *operand = own(kOperand), *grad_bias = own(kGradBias), *grad_lr = own(kGradLr);
        const float* inhibition = own(kInhibition);
        this->each_row([&](int r, int64_t row) {
            float lr[kStates] = {};
            this->each_quad([&](int64_t n, int64_t valid) {
                int64_t at = (i * a.n_rows + row) * a.n_latents + first + n;
                int64_t draw = (update_draw(i) * a.n_rows + row) * a.n_latents + first + n;
                Quad code = quad(0.f), memo = quad(0.f);
                if (Cell::kUsesMemo) {
                    code = load_quad(a.drawn + draw, valid);
                    memo = load_quad(a.slopes + draw, valid);
                }
                CellGrad<kStates> d = cell.update_backward(
                    this->load_own(kState, r, n), this->load_batch(path(i), row, n, valid),
                    this->load_batch(path(i / a.n_inner * a.n_inner), row, n, valid), load_quad(a.drives + at, valid), code,
                    memo, *reinterpret_cast<const Quad*>(inhibition + n), valid);
                State prior = this->load_own(kPrior, r, n);
                IPVAE_UNROLL for (int s = 0; s < kStates; ++s) {
                    IPVAE_UNROLL for (int j = 0; j < 4; ++j) prior.of[s].v[j] += d.prior.of[s].v[j];
                    lr[s] += d.log_lr[s];
                }
                this->store_own(kPrior, r, n, prior);
                this->store_own(kState, r, n, d.state);
                Quad* bias = reinterpret_cast<Quad*>(grad_bias + r * ls + n);
                IPVAE_UNROLL for (int j = 0; j < 4; ++j) bias->v[j] += d.log_bias.v[j];
                d.drive = valid_part(d.drive, valid);
                *reinterpret_cast<Quad*>(operand + r * ls + n) = d.drive;
                store_quad(g.grad_drives + at, valid, d.drive);
            });
            IPVAE_UNROLL for (int s = 0; s < kStates; ++s) {
                float sum = thread.sum(lr[s]);
                if (thread.lane() == 0) grad_lr[r * kStates + s] += sum;
            }
        });
    }

    // Gradients of the residuals of state i's draws. recon = sum e^2 precision / 2 + log sigma; drive = Phi^T (e precision).
    IPVAE_DEVICE void form_grad_errors(int64_t i) const {
        const float* precision = own(kPrecision);
        float *grad_sigma = own(kGradSigma), *grad_x = own(kGradX);
        int64_t step = i / a.n_inner;
        this->each_row([&](int r, int64_t row) {
            this->each_input([&](int64_t p) {
                int64_t local = r * plan.chunk + p - begin;
                float sigma = grad_sigma[local], x = grad_x[local];
                if (has_update(i)) {
                    int64_t at = (update_draw(i) * a.n_rows + row) * a.n_inputs + p;
                    float grad = this->whole(r, p) * precision[p - begin];
                    g.grad_errors[at] = grad;
                    this->gather(kUpdateColumn + r, p, grad);
                    sigma -= 2.f * a.errors[at] * grad;
                    x += grad;
                    if (a.x_step && i % a.n_inner == 0) {
                        g.grad_x[step * a.x_step + row * a.n_inputs + p] = x;
                        x = 0.f;
                    }
                }
                if (has_loss(i)) {
                    int64_t at = (loss_draw(i) * a.n_rows + row) * a.n_inputs + p;
                    float upstream = g.grad_recon[(step - 1) * a.n_rows + row];
                    float e = a.errors[at], weighted = e * precision[p - begin], grad = upstream * weighted;
                    g.grad_errors[at] = grad;
                    this->gather(kLossColumn + r, p, grad);
                    sigma += upstream * (1.f - e * weighted);
                    x += grad;
                }
                grad_sigma[local] = sigma;
                grad_x[local] = x;
            });
        });
    }

    // Through the draws from state i, and at the end of a step through its KL.
    IPVAE_DEVICE void through_draws(int64_t i) const {
        const float* grad_codes = own(kProduct);
        this->each_row([&](int r, int64_t row) {
            this->each_quad([&](int64_t n, int64_t valid) {
                State grad = this->load_own(kState, r, n), s = this->load_batch(path(i), row, n, valid);
                auto through = [&](int64_t draw, int column) {
                    int64_t at = (draw * a.n_rows + row) * a.n_latents + first + n;
                    Quad code = Cell::kUsesMemo ? load_quad(a.drawn + at, valid) : quad(0.f);
                    cell.draw_backward(*reinterpret_cast<const Quad*>(grad_codes + (column + r) * ls + n), s, code,
                                       load_quad(a.slopes + at, valid), grad);
                };
                if (has_update(i)) through(update_draw(i), kUpdateColumn);
                if (has_update(i) && i % a.n_inner == 0) {
                    State prior = this->load_own(kPrior, r, n);  // state i was the prior of the step that follows
                    IPVAE_UNROLL for (int j = 0; j < 4; ++j)
                        IPVAE_UNROLL for (int q = 0; q < kStates; ++q) grad.of[q].v[j] += prior.of[q].v[j];
                }
                if (has_loss(i)) {
                    through(loss_draw(i), kLossColumn);
                    State prior;
                    cell.kl_backward(g.grad_kl[(i / a.n_inner - 1) * a.n_rows + row], s,
                                     this->load_batch(path(i - a.n_inner), row, n, valid), grad, prior);
                    this->store_own(kPrior, r, n, prior);
                }
                this->store_own(kState, r, n, grad);
                if (i == 0) this->store_batch(g.grad_log_rate_in, row, n, valid, grad);
            });
        });
    }

    IPVAE_DEVICE void encode(int64_t i) const {
        const float* gathered = own(kGathered);
        float* out = own(kProduct);
        if (has_loss(i) && has_update(i))
            this->template multiply<false, kRows / 4>(gathered, out);
        else if (has_update(i))
            this->template multiply<false, kRows / 8>(gathered + kUpdateColumn * lm, out + kUpdateColumn * ls);
        else
            this->template multiply<false, kRows / 8>(gathered, out);
    }

    // Sums over the rows of the tile, in order.
    IPVAE_DEVICE void store_parameters() const {
        float* partial = g.partial + tile * (a.n_inputs + a.n_latents + kStates * plan.team);
        auto over_rows = [&](int name, int64_t stride, int64_t at) {
            float sum = 0.f;
            for (int r = 0; r < kRows; ++r) sum += own(name)[r * stride + at];
            return sum;
        };
        this->each(end - begin, [&](int64_t p) { partial[begin + p] = over_rows(kGradSigma, plan.chunk, p); });
        this->each(width, [&](int64_t n) { partial[a.n_inputs + first + n] = over_rows(kGradBias, ls, n); });
        this->each(kStates, [&](int64_t s) {
            partial[a.n_inputs + a.n_latents + s * plan.team + thread.rank] = over_rows(kGradLr, kStates, s);
        });
        if (a.x_step) return;
        const float* grad_x = own(kGradX);
        this->each_row([&](int r, int64_t row) {
            this->each_input([&](int64_t p) { g.grad_x[row * a.n_inputs + p] = grad_x[r * plan.chunk + p - begin]; });
        });
    }

    IPVAE_DEVICE void run() {
        this->load_constants();
        for (tile = thread.team_index; tile < plan.tiles; tile += plan.teams) {
            this->clear(kOperand, kRows * ls);
            this->clear(kGathered, 2 * kRows * lm);
            this->clear(kPrior, kStates * kRows * ls);
            this->clear(kGradBias, kRows * ls);
            this->clear(kGradSigma, kRows * plan.chunk);
            this->clear(kGradX, kRows * plan.chunk);
            this->clear(kGradLr, kRows * kStates);
            this->each_row([&](int r, int64_t row) {
                this->each_quad([&](int64_t n, int64_t valid) {
                    this->store_own(kState, r, n, this->load_batch(g.grad_log_rate, row, n, valid));
                });
            });
            thread.sync_team();
            for (int64_t i = n_updates(); i >= 0; --i) {
                if (has_update(i)) {
                    through_update(i);
                    thread.sync_block();
                    this->template multiply<true, kRows / 8>(own(kOperand), own(kPartial));
                }
                thread.sync_team();
                form_grad_errors(i);
                thread.sync_team();
                encode(i);
                thread.sync_block();
                through_draws(i);
            }
            thread.sync_block();
            store_parameters();
            thread.sync_team();
        }
        thread.sync_team();
    }
};

IPVAE_END
