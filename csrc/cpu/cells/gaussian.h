// The Gaussian cell of the rollout driver (cpu/rollout), a row at a time: means and log sigmas in, activated samples out.
#pragma once

#include "../draw.h"
#include "../kernels.h"
#include "../rows.h"

#include "../../common/cells/cell.h"
#include "../../common/cells/gaussian.h"
#include "../../common/normal.h"

IPVAE_BEGIN

struct GaussianCell {
    static constexpr int kStates = 2;  // mean and xi = log sigma
    static constexpr int kAux = 1;     // sigma, computed once for the two draws that share a state
    static constexpr float kPadding = 0.f;

    GaussianConstants constants;
    const float* inhibition;  // [kp]
    bool relu;
    int64_t n_latents, kp;
    uint32_t first_neuron;  // global index

    explicit GaussianCell(const RolloutArgs& a)
        : constants{a.learning_rate, a.learning_rate_xi, a.leak, a.clamp_u, a.clamp_du, a.clamp_xi, a.clamp_dxi},
          inhibition(a.inhibition), relu(a.cell == kGaussianReluCell), n_latents(a.n_latents), kp(padded(a.n_latents)),
          first_neuron(a.neuron_offset) {}

    void prepare(const float* state, float* sigma) const {
        for (int64_t k = 0; k < kp; k += kWidth) store(sigma + k, exp(load(state + kp + k)));
    }

    // Activated samples and their standard normals [rows, kp]; `sample` is that of the first row.
    void draw(int rows, const float* state, const float* sigma, bool, float* code, float* eps, Stream stream, uint32_t sample,
              float*) const {
        for (int r = 0; r < rows; ++r, state += kStates * kp, sigma += kAux * kp, code += kp, eps += kp) {
            stream.sample = sample + (uint32_t)r;
            draw_row(state, sigma, code, eps, stream);
        }
    }

    // One update of the state and of sigma; kFirst: the state is the prior. Returns, with kKl, KL(result || prior).
    template <bool kKl, bool kFirst>
    float update(float* state, const float* prior, float* sigma, const float* drive, const float* code,
                 const float* eps) const {
        vf total{};
        for (int64_t k = 0; k < kp; k += kWidth) {
            Gaussian<vf> before = at(state, k), start = kFirst ? before : at(prior, k);
            Gaussian<vf> after = update_gaussian(before, start, load(sigma + k), load(drive + k) * slope(code + k),
                                                 load(eps + k), load(inhibition + k), constants);
            if constexpr (kKl) total = total + keep_first(gaussian_kl(after, start), n_latents - k);
            put(state, k, after);
            store(sigma + k, exp(after.xi));
        }
        // An infinite learning rate times the padding's zero drive is NaN, which must not reach the row's sums.
        for (int64_t k = n_latents; k < kp; ++k) state[k] = state[kp + k] = kPadding;
        return sum(total);
    }

    // Adds grad dKL/d state to grad_state and writes grad dKL/d prior.
    void kl_backward(float grad, const float* state, const float* prior, float* grad_state, float* grad_prior) const {
        for (int64_t k = 0; k < kp; k += kWidth) {
            GaussianKlGrad<vf> kl = gaussian_kl_grad(at(state, k), at(prior, k));
            add(grad_state, k, {grad * kl.state.mean, grad * kl.state.xi});
            put(grad_prior, k, {grad * kl.prior.mean, grad * kl.prior.xi});
        }
    }

    // From the gradient of the result of an update, in grad_state, to those of its arguments. grad_prior, grad_log_bias
    // and grad_log_lr are added to, grad_state and grad_drive written.
    void update_backward(const float* state, const float* prior, const float* drive, const float* code, const float* eps,
                         float* grad_state, float* grad_prior, float* grad_drive, float* grad_log_bias,
                         float* grad_log_lr) const {
        vf log_lr{}, log_lr_xi{};
        for (int64_t k = 0; k < kp; k += kWidth) {
            Gaussian<vf> s = at(state, k);
            vf bias = load(inhibition + k), active = slope(code + k);
            GaussianGrad<vf> d = update_gaussian_grad(at(grad_state, k), s, at(prior, k), exp(s.xi),
                                                      load(drive + k) * active, load(eps + k), bias, constants);
            put(grad_state, k, d.state);
            add(grad_prior, k, d.prior);
            store(grad_drive + k, d.drive * active);
            store(grad_log_bias + k, load(grad_log_bias + k) + d.inhibition * bias);
            log_lr = log_lr + d.log_lr.mean;
            log_lr_xi = log_lr_xi + d.log_lr.xi;
        }
        grad_log_lr[0] += sum(log_lr);
        grad_log_lr[1] += sum(log_lr_xi);
    }

    // Adds to grad_state what reaches it through the code, whose gradient is -grad_code.
    void draw_backward(const float* grad_code, const float* state, const float* code, const float* eps,
                       float* grad_state) const {
        for (int64_t k = 0; k < kp; k += kWidth) {
            vf sample = -slope(code + k) * load(grad_code + k);
            add(grad_state, k, {sample, sample * load(eps + k) * exp(load(state + kp + k))});
        }
    }

  private:
    void draw_row(const float* state, const float* sigma, float* code, float* eps, const Stream& stream) const {
        for (int64_t group = 0; group < kp; group += kGroup) {
            vu words[4];
            first_words(stream, first_neuron + (uint32_t)group, words);
            for (int j = 0; j < 4; ++j) {
                int64_t k = group + j * kWidth;
                vf e = normal<vf>(words[j]), sample = load(state + k) + load(sigma + k) * e;
                store(eps + k, e);
                store(code + k, relu ? max_keep_nan(sample, vf{}) : sample);
            }
        }
        for (int64_t k = n_latents; k < kp; ++k) code[k] = eps[k] = 0.f;
    }

    // The activation's derivative at a sample, from the code it gave; 0 at 0.
    vf slope(const float* code) const {
        vf one = splat<vf>(1.f);
        return relu ? (load(code) > vf{} ? one : vf{}) : one;
    }
    Gaussian<vf> at(const float* state, int64_t k) const { return {load(state + k), load(state + kp + k)}; }
    void put(float* state, int64_t k, Gaussian<vf> s) const {
        store(state + k, s.mean);
        store(state + kp + k, s.xi);
    }
    void add(float* state, int64_t k, Gaussian<vf> s) const {
        Gaussian<vf> to = at(state, k);
        put(state, k, {to.mean + s.mean, to.xi + s.xi});
    }
};

IPVAE_END
