// The pointwise half of a step: the log-rate update, the KL between successive posteriors, and their derivatives.
// Equations in the module docstring of ipvae_kernels/update/op.py.
#pragma once

#include "../math.h"

IPVAE_BEGIN

constexpr float kFloor = -8.f;  // of the update and of the log rate

// In the order of KLS in ipvae_kernels/poisson/divergence.py, with which a test compares the names.
enum Kl : int { kExact, kReleased };
constexpr const char* kKlNames[] = {"exact", "released"};

struct CellConstants {
    float learning_rate;  // eta = exp(log_lr)
    float leak;           // beta_inner, or 0 with one inner iteration
    float decay;          // of the log rate towards 0
    float clamp_u, clamp_du;
};

// What the learning rate and the clamps make a change of.
template <class F> IPVAE_HD F unclamped_change(F u, F u_prior, F drive, F inhibition, const CellConstants& c) {
    return c.learning_rate * (drive - inhibition - c.leak * (u - u_prior) - c.decay * u);
}

// The change du of a log rate, and the log rate it leads to.
template <class F> IPVAE_HD F log_rate_change(F u, F u_prior, F drive, F inhibition, const CellConstants& c) {
    F pre = unclamped_change(u, u_prior, drive, inhibition, c);
    return soft_clamp(max_keep_nan(pre, splat<F>(kFloor)), c.clamp_du).value;
}
template <class F> IPVAE_HD F changed_log_rate(F u, F du, const CellConstants& c) {
    return soft_clamp(max_keep_nan(u + du, splat<F>(kFloor)), c.clamp_u).value;
}

template <class F> IPVAE_HD F update_log_rate(F u, F u_prior, F drive, F inhibition, const CellConstants& c) {
    return changed_log_rate(u, log_rate_change(u, u_prior, drive, inhibition, c), c);
}

// Gradients of the update; `pre` is what log_lr multiplies, so d/d log_lr = grad_pre pre.
template <class F> struct UpdateGrad {
    F u, u_prior, drive, inhibition, log_lr;
};

template <class F>
IPVAE_HD UpdateGrad<F> update_log_rate_grad(F grad, F u, F u_prior, F drive, F inhibition, const CellConstants& c) {
    F pre = unclamped_change(u, u_prior, drive, inhibition, c);
    SoftClamp<F> soft_du = soft_clamp(max_keep_nan(pre, splat<F>(kFloor)), c.clamp_du);
    F v = u + soft_du.value;
    SoftClamp<F> soft_u = soft_clamp(max_keep_nan(v, splat<F>(kFloor)), c.clamp_u);
    F zero = splat<F>(0.f);
    F grad_v = v < splat<F>(kFloor) ? zero : grad * soft_u.slope;
    F grad_pre = pre < splat<F>(kFloor) ? zero : grad_v * soft_du.slope;
    UpdateGrad<F> out;
    out.drive = c.learning_rate * grad_pre;
    out.u = grad_v - (c.leak + c.decay) * out.drive;
    out.u_prior = c.leak * out.drive;
    out.inhibition = -out.drive;
    out.log_lr = grad_pre * pre;
    return out;
}

// 1 + e^d (d - 1), which is d^2/2 for small d: the closed form loses all digits there, the series does not.
template <class F> IPVAE_HD F kl_shape(F d) {
    F series = 0.5f + d * (1.f / 3 + d * (1.f / 8 + d * (1.f / 30 + d * (1.f / 144 + d * (1.f / 840 + d * (1.f / 5760))))));
    series = d * d * series;
    auto large = abs(d) >= splat<F>(0.5f);
    if (!any(large)) return series;
    return large ? 1.f + exp(d) * (d - 1.f) : series;
}

// KL(u || u_prior) of one neuron, in nats; "released" is e^(u - u_prior) times it, the released code's formula.
template <class F> IPVAE_HD F kl_divergence(F u, F u_prior, F prior_rate, Kl kind) {
    F scale = kind == kReleased ? exp(u) : prior_rate;
    return scale * kl_shape(u - u_prior);
}

template <class F> struct KlGrad {
    F u, u_prior;
};

// Its gradients.
template <class F> IPVAE_HD KlGrad<F> kl_divergence_grad(F u, F u_prior, Kl kind) {
    F d = u - u_prior;
    ExpPair<F> e = exp_pair(d);
    F prior_rate = exp(u_prior);
    if (kind == kExact) return {prior_rate * e.exp * d, -prior_rate * e.expm1};
    F rate = prior_rate * e.exp, slope = rate * e.exp * d;
    return {rate * kl_shape(d) + slope, -slope};
}

IPVAE_END
