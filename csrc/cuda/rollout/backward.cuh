// The gradient of a rollout: back through the trajectory of a tile of rows by one team of blocks.
#pragma once

#include "block.cuh"

IPVAE_BEGIN

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
