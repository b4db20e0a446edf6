// A rollout: all steps of a tile of rows by one team of blocks.
#pragma once

#include "block.cuh"

IPVAE_BEGIN

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
                    cell.draw(s, shared_by_draws, false, loss_stream(row), neuron, code, memo);
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
                        cell.draw(s, shared_by_draws, a.expected, update_stream(row), neuron, code, memo);
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

IPVAE_END
