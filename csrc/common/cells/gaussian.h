// The pointwise half of a step of the Gaussian relatives (iG-VAE, iG-relu-VAE): latents mean + sigma eps, the update of
// mean and xi = log sigma, the KL between successive posteriors, and their derivatives. Equations in the class
// GaussianCell of ipvae_kernels/cells.
#pragma once

#include "../math.h"

IPVAE_BEGIN

// c tanh(v / c) and its derivative, from e^-2|v / c|: no digits cancel in either.
template <class F> struct TanhClamp {
    F value, slope;
};

template <class F> IPVAE_HD TanhClamp<F> tanh_clamp(F v, float c) {
    // Beyond 80 nothing changes but that denormal numbers slow the CPU down.
    ExpPair<F> e = exp_pair(-min_keep_nan(abs(v) * (2.f / c), splat<F>(80.f)));
    F inv = reciprocal(1.f + e.exp), size = c * (-e.expm1 * inv);
    return {v < splat<F>(0.f) ? -size : size, 4.f * e.exp * inv * inv};
}

struct GaussianConstants {
    float learning_rate, learning_rate_xi;  // exp(log_lr)
    float leak;                             // beta_inner, or 0 with one inner iteration
    float clamp_u, clamp_du, clamp_xi, clamp_dxi;
};

template <class F> struct Gaussian {
    F mean, xi;
};

// The update before its clamps, and the parts it is made of. `drive` is that of the sample: times the activation's
// derivative.
template <class F> struct GaussianMoves {
    F mean, xi;
    F variance;   // sigma^2
    F pull;       // leak (sigma / sigma_prior)^2
    F toward;     // variance drive - pull (mean - mean_prior)
    F toward_xi;  // drive eps sigma
};

template <class F>
IPVAE_HD GaussianMoves<F> gaussian_moves(Gaussian<F> s, Gaussian<F> prior, F sigma, F drive, F eps, F inhibition,
                                         const GaussianConstants& c) {
    GaussianMoves<F> m;
    m.variance = sigma * sigma;
    m.toward = m.variance * drive;
    m.toward_xi = sigma * eps * drive;
    m.pull = splat<F>(0.f);
    F along = m.toward_xi;
    if (c.leak != 0.f) {
        ExpPair<F> ratio = exp_pair(2.f * (s.xi - prior.xi));
        m.pull = c.leak * ratio.exp;
        m.toward = m.toward - m.pull * (s.mean - prior.mean);
        along = along - c.leak * ratio.expm1;
    }
    m.mean = c.learning_rate * (m.toward - inhibition);
    m.xi = 0.5f * c.learning_rate_xi * along;
    return m;
}

template <class F>
IPVAE_HD Gaussian<F> update_gaussian(Gaussian<F> s, Gaussian<F> prior, F sigma, F drive, F eps, F inhibition,
                                     const GaussianConstants& c) {
    GaussianMoves<F> m = gaussian_moves(s, prior, sigma, drive, eps, inhibition, c);
    return {tanh_clamp(s.mean + tanh_clamp(m.mean, c.clamp_du).value, c.clamp_u).value,
            tanh_clamp(s.xi + tanh_clamp(m.xi, c.clamp_dxi).value, c.clamp_xi).value};
}

// Gradients of the update, given that of its result; eps is held constant.
template <class F> struct GaussianGrad {
    Gaussian<F> state, prior, log_lr;
    F drive, inhibition;
};

template <class F>
IPVAE_HD GaussianGrad<F> update_gaussian_grad(Gaussian<F> grad, Gaussian<F> s, Gaussian<F> prior, F sigma, F drive, F eps,
                                              F inhibition, const GaussianConstants& c) {
    GaussianMoves<F> m = gaussian_moves(s, prior, sigma, drive, eps, inhibition, c);
    TanhClamp<F> du = tanh_clamp(m.mean, c.clamp_du), dxi = tanh_clamp(m.xi, c.clamp_dxi);
    GaussianGrad<F> out;
    out.state = {grad.mean * tanh_clamp(s.mean + du.value, c.clamp_u).slope,
                 grad.xi * tanh_clamp(s.xi + dxi.value, c.clamp_xi).slope};
    F to_mean = out.state.mean * du.slope, to_xi = out.state.xi * dxi.slope;  // gradients of the moves
    out.log_lr = {to_mean * m.mean, to_xi * m.xi};
    to_mean = c.learning_rate * to_mean;
    to_xi = 0.5f * c.learning_rate_xi * to_xi;
    out.inhibition = -to_mean;
    out.drive = to_mean * m.variance + to_xi * sigma * eps;
    F pulled = 2.f * m.pull;  // d pull / d xi
    out.prior = {to_mean * m.pull, to_mean * pulled * (s.mean - prior.mean) + to_xi * pulled};
    out.state.mean = out.state.mean - out.prior.mean;
    out.state.xi = out.state.xi + 2.f * to_mean * m.toward + to_xi * (m.toward_xi - pulled);
    return out;
}

// (e^2d - 1)/2 - d, which is d^2 for small d: the closed form loses all digits there, the series does not.
template <class F> IPVAE_HD F log_ratio_kl(F d) {
    F y = 2.f * d;
    F series = 0.25f + y * (1.f / 12 + y * (1.f / 48 + y * (1.f / 240 + y * (1.f / 1440 + y * (1.f / 10080 + y * (1.f / 80640))))));
    series = y * y * series;
    auto large = abs(y) >= splat<F>(0.5f);
    if (!any(large)) return series;
    return large ? 0.5f * expm1(y) - d : series;
}

template <class F> IPVAE_HD F gaussian_kl(Gaussian<F> s, Gaussian<F> prior) {
    F distance = (s.mean - prior.mean) * exp(-prior.xi);
    return 0.5f * distance * distance + log_ratio_kl(s.xi - prior.xi);
}

template <class F> struct GaussianKlGrad {
    Gaussian<F> state, prior;
};

template <class F> IPVAE_HD GaussianKlGrad<F> gaussian_kl_grad(Gaussian<F> s, Gaussian<F> prior) {
    F precision = exp(-prior.xi), distance = (s.mean - prior.mean) * precision;
    F spread = expm1(2.f * (s.xi - prior.xi)), slope = distance * precision;
    return {{slope, spread}, {-slope, -distance * distance - spread}};
}

IPVAE_END
