// The Poisson cell of the rollout driver (cpu/rollout), a row at a time: log rates in, counts out.
#pragma once

#include "../draw.h"
#include "../kernels.h"
#include "../rows.h"

#include "../../common/cells/poisson.h"

IPVAE_BEGIN

struct PoissonCell {
    static constexpr int kStates = 1;  // the log rate
    static constexpr int kAux = Rates::arrays;  // computed once for the two draws that share a log rate
    static constexpr float kPadding = kFloor;

    DrawOptions draw_options;
    CellConstants constants;
    const float* inhibition;  // [kp]
    Kl kl_kind;
    int64_t n_latents, kp;
    uint32_t first_neuron;

    explicit PoissonCell(const RolloutArgs& a)
        : draw_options{(Estimator)a.estimator, a.temperature, a.n_arrivals},
          constants{a.learning_rate, a.leak, a.decay, a.clamp_u, a.clamp_du},
          inhibition(a.inhibition), kl_kind((Kl)a.kl), n_latents(a.n_latents), kp(padded(a.n_latents)),
          first_neuron(a.neuron_offset) {}

    Rates rates(float* aux) const { return {aux, aux + kp}; }

    // What the draws from a new state need.
    void prepare(const float* u, float* aux) const {
        rates_of(u, kp, draw_options.hard(), rates(aux));
        silence_padding(aux);
    }

    // Counts, or the rates expected, and slopes [rows, kp]; `sample` is that of the first row.
    void draw(int rows, const float*, float* aux, bool expected, float* counts, float* slopes, Stream stream,
              uint32_t sample, float* scratch) const {
        if (expected) return expect(rows, aux, counts, slopes);
        ipvae::IPVAE_TARGET::draw(
            draw_options, rows, [&](int r) { return rates(aux + r * kAux * kp); }, [&](int) { return first_neuron; },
            [&](int r) { return sample + (uint32_t)r; }, counts, slopes, kp, stream, scratch);
        for (int r = 0; r < rows; ++r) silence(counts + r * kp, slopes + r * kp);
    }

    // One update of u and of what the draws need; kFirst: u is the prior. Returns, with kKl, KL(result || prior).
    template <bool kKl, bool kFirst>
    float update(float* u, const float* prior, float* aux, const float* drive, const float*, const float*) const {
        // In passes: one chain of dependent instructions through all of a neuron's exponentials is too long for the CPU to
        // overlap with the next neurons'. What the draws need comes last; until then its memory holds the results.
        Rates r = rates(aux);
        float* next = r.survival;
        for (int64_t k = 0; k < kp; k += kWidth)
            store(next + k, log_rate_change(load(u + k), kFirst ? load(u + k) : load(prior + k), load(drive + k),
                                            load(inhibition + k), constants));
        for (int64_t k = 0; k < kp; k += kWidth) store(next + k, changed_log_rate(load(u + k), load(next + k), constants));
        vf total{};
        for (int64_t k = 0; k < kp; k += kWidth) {
            vf after = load(next + k), start = kFirst ? load(u + k) : load(prior + k);
            if constexpr (kKl) {
                // The rate of the prior is at hand where the prior is the state before; else it is formed if it is needed.
                vf prior_rate = kl_kind == kReleased ? vf{} : kFirst ? load(r.rate + k) - kRateFloor : exp(start);
                total = total + keep_first(kl_divergence(after, start, prior_rate, kl_kind), n_latents - k);
            }
            store(u + k, after);
        }
        rates_of(u, kp, draw_options.hard(), r);
        // An infinite learning rate times the padding's zero drive is NaN, which must not reach the row's sums.
        for (int64_t k = n_latents; k < kp; ++k) u[k] = kPadding;
        silence_padding(aux);
        return sum(total);
    }

    // Adds grad dKL/du to grad_u and writes grad dKL/d prior.
    void kl_backward(float grad, const float* u, const float* prior, float* grad_u, float* grad_prior) const {
        for (int64_t k = 0; k < kp; k += kWidth) {
            KlGrad<vf> kl = kl_divergence_grad(load(u + k), load(prior + k), kl_kind);
            store(grad_u + k, load(grad_u + k) + grad * kl.u);
            store(grad_prior + k, grad * kl.u_prior);
        }
    }

    // From the gradient of the result of an update, in grad_u, to those of its arguments. grad_prior and grad_log_bias are
    // added to, grad_u and grad_drive written; returns that of log_lr.
    void update_backward(const float* u, const float* prior, const float* drive, const float*, const float*, float* grad_u,
                         float* grad_prior, float* grad_drive, float* grad_log_bias, float* grad_log_lr) const {
        vf log_lr{};
        for (int64_t k = 0; k < kp; k += kWidth) {
            vf bias = load(inhibition + k);
            UpdateGrad<vf> d = update_log_rate_grad(load(grad_u + k), load(u + k), load(prior + k), load(drive + k), bias,
                                                    constants);
            store(grad_u + k, d.u);
            store(grad_prior + k, load(grad_prior + k) + d.u_prior);
            store(grad_drive + k, d.drive);
            store(grad_log_bias + k, load(grad_log_bias + k) + d.inhibition * bias);
            log_lr = log_lr + d.log_lr;
        }
        grad_log_lr[0] += sum(log_lr);
    }

    // Adds to grad_u what reaches it through the counts, whose gradient is -grad_counts.
    void draw_backward(const float* grad_counts, const float*, const float*, const float* slopes, float* grad_u) const {
        for (int64_t k = 0; k < kp; k += kWidth)
            store(grad_u + k, load(grad_u + k) - load(slopes + k) * load(grad_counts + k));
    }

  private:
    void expect(int rows, float* aux, float* counts, float* slopes) const {
        for (int r = 0; r < rows; ++r, aux += kAux * kp, counts += kp, slopes += kp) {
            for (int64_t k = 0; k < kp; k += kWidth) {
                vf rate = load(rates(aux).rate + k);
                store(counts + k, rate);
                store(slopes + k, rate_slope(rate));
            }
            silence(counts, slopes);
        }
    }
    void silence(float* counts, float* slopes) const {
        for (int64_t k = n_latents; k < kp; ++k) counts[k] = slopes[k] = 0.f;
    }
    void silence_padding(float* aux) const {
        Rates r = rates(aux);
        for (int64_t k = n_latents; k < kp; ++k) {
            r.rate[k] = kRateFloor;
            for (int level = 0; level < kLevels; ++level) r.survival[level * kp + k] = 0.f;
        }
    }
};

IPVAE_END
