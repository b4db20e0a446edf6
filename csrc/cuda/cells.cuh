// The cells of the rollout driver (cuda/rollout), four neighbouring neurons at a time. The arithmetic is that of
// csrc/cpu/cells.
#pragma once

#include "draw.cuh"

#include "../common/cells/cell.h"
#include "../common/cells/gaussian.h"
#include "../common/normal.h"
#include "../common/cells/poisson.h"

IPVAE_BEGIN

// States of four neurons.
template <int kStates> struct States {
    Quad of[kStates];
};

// What the backward of an update gives; the gradient of log_lr is summed over the four.
template <int kStates> struct CellGrad {
    States<kStates> state, prior;
    Quad drive, log_bias;
    float log_lr[kStates];
};

struct PoissonLanes {
    static constexpr int kStates = 1;  // the log rate
    static constexpr bool kUsesMemo = false;
    using State = States<1>;

    DrawOptions options;
    CellConstants constants;
    Kl kl_kind;

    IPVAE_DEVICE PoissonLanes(const RolloutArgs& a, const float* log_lr)
        : options{static_cast<Estimator>(a.estimator), a.temperature, a.n_arrivals},
          constants{exp(log_lr[0]), a.leak, a.decay, a.clamp_u, a.clamp_du}, kl_kind(static_cast<Kl>(a.kl)) {}

    // Whether codes can be exactly 0: those of relaxed estimators hardly ever are.
    IPVAE_DEVICE bool silences() const { return !uses_arrivals(options.estimator); }

    // What the draws from one state share: rates.
    IPVAE_DEVICE Quad prepare(const State& s) const {
        Quad rate;
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) rate.v[j] = rate_of(s.of[0].v[j]);
        return rate;
    }

    // What the decoder sees (counts, or the rates expected), and what the backward needs (slopes).
    IPVAE_DEVICE void draw(const State&, const Quad& rate, bool expected, const Stream& stream, uint32_t neuron, Quad& code,
                           Quad& memo) const {
        if (!expected) return draw_counts(options, stream, neuron, rate, code, memo);
        code = rate;
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) memo.v[j] = rate_slope(rate.v[j]);
    }

    IPVAE_DEVICE State update(const State& s, const State& prior, const Quad& drive, const Quad&, const Quad&,
                              const Quad& inhibition) const {
        State after;
        IPVAE_UNROLL for (int j = 0; j < 4; ++j)
            after.of[0].v[j] = update_log_rate(s.of[0].v[j], prior.of[0].v[j], drive.v[j], inhibition.v[j], constants);
        return after;
    }

    IPVAE_DEVICE float kl(const State& s, const State& prior, int j) const {
        float u = s.of[0].v[j], p = prior.of[0].v[j];
        return kl_divergence(u, p, kl_kind == kReleased ? 0.f : exp(p), kl_kind);
    }

    // Adds scale dKL / d state to to_state, and writes scale dKL / d prior.
    IPVAE_DEVICE void kl_backward(float scale, const State& s, const State& prior, State& to_state, State& to_prior) const {
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
            KlGrad<float> kl = kl_divergence_grad(s.of[0].v[j], prior.of[0].v[j], kl_kind);
            to_state.of[0].v[j] += scale * kl.u;
            to_prior.of[0].v[j] = scale * kl.u_prior;
        }
    }

    IPVAE_DEVICE CellGrad<1> update_backward(const State& grad, const State& s, const State& prior, const Quad& drive,
                                             const Quad&, const Quad&, const Quad& inhibition, int64_t valid) const {
        CellGrad<1> out;
        out.log_lr[0] = 0.f;
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
            UpdateGrad<float> d = update_log_rate_grad(grad.of[0].v[j], s.of[0].v[j], prior.of[0].v[j], drive.v[j],
                                                       inhibition.v[j], constants);
            out.state.of[0].v[j] = d.u;
            out.prior.of[0].v[j] = d.u_prior;
            out.drive.v[j] = d.drive;
            out.log_bias.v[j] = d.inhibition * inhibition.v[j];
            out.log_lr[0] += j < valid ? d.log_lr : 0.f;
        }
        return out;
    }

    // Adds to to_state what reaches it through a draw's code, whose gradient is -grad_code.
    IPVAE_DEVICE void draw_backward(const Quad& grad_code, const State&, const Quad&, const Quad& slopes,
                                    State& to_state) const {
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) to_state.of[0].v[j] -= slopes.v[j] * grad_code.v[j];
    }
};

struct GaussianLanes {
    static constexpr int kStates = 2;  // mean and xi = log sigma
    static constexpr bool kUsesMemo = true;
    using State = States<2>;

    GaussianConstants constants;
    bool relu;

    IPVAE_DEVICE GaussianLanes(const RolloutArgs& a, const float* log_lr)
        : constants{exp(log_lr[0]), exp(log_lr[1]), a.leak, a.clamp_u, a.clamp_du, a.clamp_xi, a.clamp_dxi},
          relu(a.cell == kGaussianReluCell) {}

    static IPVAE_DEVICE Gaussian<float> at(const State& s, int j) { return {s.of[0].v[j], s.of[1].v[j]}; }
    static IPVAE_DEVICE void put(State& s, int j, Gaussian<float> v) {
        s.of[0].v[j] = v.mean;
        s.of[1].v[j] = v.xi;
    }

    IPVAE_DEVICE bool silences() const { return relu; }

    // Sigma.
    IPVAE_DEVICE Quad prepare(const State& s) const {
        Quad sigma;
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) sigma.v[j] = exp(s.of[1].v[j]);
        return sigma;
    }

    // Activated samples, and their standard normals.
    IPVAE_DEVICE void draw(const State& s, const Quad& sigma, bool, const Stream& stream, uint32_t neuron, Quad& code,
                           Quad& eps) const {
        Words<uint32_t> words = shared_words<uint32_t>(stream, neuron >> 2);
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
            eps.v[j] = normal<float>(words.w[j]);
            float sample = s.of[0].v[j] + sigma.v[j] * eps.v[j];
            code.v[j] = relu ? max_keep_nan(sample, 0.f) : sample;
        }
    }

    // The activation's derivative at a sample, from the code it gave; 0 at 0.
    IPVAE_DEVICE float active(float code) const { return !relu || code > 0.f ? 1.f : 0.f; }

    IPVAE_DEVICE State update(const State& s, const State& prior, const Quad& drive, const Quad& code, const Quad& eps,
                              const Quad& inhibition) const {
        State after;
        Quad sigma = prepare(s);
        IPVAE_UNROLL for (int j = 0; j < 4; ++j)
            put(after, j, update_gaussian(at(s, j), at(prior, j), sigma.v[j], drive.v[j] * active(code.v[j]), eps.v[j],
                                          inhibition.v[j], constants));
        return after;
    }

    IPVAE_DEVICE float kl(const State& s, const State& prior, int j) const { return gaussian_kl(at(s, j), at(prior, j)); }

    IPVAE_DEVICE void kl_backward(float scale, const State& s, const State& prior, State& to_state, State& to_prior) const {
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
            GaussianKlGrad<float> kl = gaussian_kl_grad(at(s, j), at(prior, j));
            Gaussian<float> to = at(to_state, j);
            put(to_state, j, {to.mean + scale * kl.state.mean, to.xi + scale * kl.state.xi});
            put(to_prior, j, {scale * kl.prior.mean, scale * kl.prior.xi});
        }
    }

    IPVAE_DEVICE CellGrad<2> update_backward(const State& grad, const State& s, const State& prior, const Quad& drive,
                                             const Quad& code, const Quad& eps, const Quad& inhibition, int64_t valid) const {
        CellGrad<2> out;
        out.log_lr[0] = out.log_lr[1] = 0.f;
        Quad sigma = prepare(s);
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
            float slope = active(code.v[j]);
            GaussianGrad<float> d = update_gaussian_grad(at(grad, j), at(s, j), at(prior, j), sigma.v[j],
                                                         drive.v[j] * slope, eps.v[j], inhibition.v[j], constants);
            put(out.state, j, d.state);
            put(out.prior, j, d.prior);
            out.drive.v[j] = d.drive * slope;
            out.log_bias.v[j] = d.inhibition * inhibition.v[j];
            out.log_lr[0] += j < valid ? d.log_lr.mean : 0.f;
            out.log_lr[1] += j < valid ? d.log_lr.xi : 0.f;
        }
        return out;
    }

    IPVAE_DEVICE void draw_backward(const Quad& grad_code, const State& s, const Quad& code, const Quad& eps,
                                    State& to_state) const {
        Quad sigma = prepare(s);
        IPVAE_UNROLL for (int j = 0; j < 4; ++j) {
            float sample = -active(code.v[j]) * grad_code.v[j];
            Gaussian<float> to = at(to_state, j);
            put(to_state, j, {to.mean + sample, to.xi + sample * eps.v[j] * sigma.v[j]});
        }
    }
};

IPVAE_END
