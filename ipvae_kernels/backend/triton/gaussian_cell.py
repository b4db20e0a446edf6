"""The Gaussian relatives: latents, update, KL and derivatives; ``csrc/common/cells/gaussian.h`` in Triton.

Equations at the class ``GaussianCell`` of ``cells/gaussian.py``; a state is mean and xi = log sigma. All is
float32 and elementwise, on tiles [R, N].
"""

import triton
import triton.language as tl

from .math import exp, exp_pair, log, max_keep_nan
from .philox import complement, first_words, uniform


@triton.jit
def _normal_quantile(p):
    """The quantile of the standard normal at p in [2^-33, 1/2]: PPND7 of Wichura, AS 241 (1988)."""
    q = p - 0.5
    central = q >= -0.425
    r = tl.where(central, 0.180625 - q * q, tl.sqrt_rn(-log(p)) - 1.6)
    above = tl.where(central, 59.109374720, 0.17023821103) * r + tl.where(central, 159.29113202, 1.3067284816)
    above = (above * r + tl.where(central, 50.434271938, 2.7568153900)) * r
    above += tl.where(central, 3.3871327179, 1.4234372777)
    below = tl.where(central, 67.187563600, 0.0) * r + tl.where(central, 78.757757664, 0.12021132975)
    below = (below * r + tl.where(central, 17.895169469, 0.73700164250)) * r + 1.0
    return tl.where(central, q, -1.0) * above / below


@triton.jit
def normal(word):
    """Standard normal, from the tail that is nearer."""
    low, high = uniform(word), uniform(complement(word))
    tail = _normal_quantile(tl.minimum(low, high))
    return tl.where(low < high, tail, -tail)


@triton.jit
def draw(mean, xi, k0, k1, sample, step, high, first, N: tl.constexpr, RELU: tl.constexpr):
    """Latents after the activation, and their standard normals; arguments as of ``poisson.draw``."""
    eps = normal(first_words(k0, k1, sample, step, high, first, N))
    latents = mean + exp(xi) * eps
    if RELU:
        latents = max_keep_nan(latents, 0.0)
    return latents, eps


@triton.jit
def _tanh_clamp(v, ceiling):
    """c tanh(v / c) and its derivative, from e^-2|v / c|: no digits cancel in either."""
    exponent = tl.abs(v) * (2.0 / ceiling)
    small, small_m1 = exp_pair(-tl.where(exponent > 80.0, 80.0, exponent))
    inverse = 1.0 / (1.0 + small)
    size = ceiling * (-small_m1 * inverse)
    return tl.where(v < 0.0, -size, size), 4.0 * small * inverse * inverse


@triton.jit
def _moves(mean, xi, prior, prior_xi, drive, eps, inhibition, rate, rate_xi, leak):
    """The updates before their clamps; sigma, leak r, sigma^2 e - leak r (mean - prior), e eps sigma."""
    sigma = exp(xi)
    toward_xi = sigma * eps * drive
    ratio, ratio_m1 = exp_pair(tl.where(leak != 0.0, 2.0 * (xi - prior_xi), 0.0))
    pull = leak * ratio
    toward = sigma * sigma * drive - pull * (mean - prior)
    along_xi = toward_xi - leak * ratio_m1
    return rate * (toward - inhibition), 0.5 * rate_xi * along_xi, sigma, pull, toward, toward_xi


@triton.jit
def update(
    mean, xi, prior, prior_xi, drive, eps, inhibition, rate, rate_xi, leak,
    clamp_u, clamp_du, clamp_xi, clamp_dxi,
):  # fmt: skip
    """The new mean and xi; ``drive`` is times the activation's derivative, the rates are exp(log_lr)."""
    move, move_xi, _, _, _, _ = _moves(mean, xi, prior, prior_xi, drive, eps, inhibition, rate, rate_xi, leak)
    du, _ = _tanh_clamp(move, clamp_du)
    dxi, _ = _tanh_clamp(move_xi, clamp_dxi)
    new, _ = _tanh_clamp(mean + du, clamp_u)
    new_xi, _ = _tanh_clamp(xi + dxi, clamp_xi)
    return new, new_xi


@triton.jit
def update_grad(
    grad, grad_xi, mean, xi, prior, prior_xi, drive, eps, inhibition, rate, rate_xi, leak,
    clamp_u, clamp_du, clamp_xi, clamp_dxi,
):  # fmt: skip
    """Gradients of mean, xi, prior, prior_xi, drive, of minus the inhibition, and of both log rates.

    The normals are held constant.
    """
    move, move_xi, sigma, pull, toward, toward_xi = _moves(
        mean, xi, prior, prior_xi, drive, eps, inhibition, rate, rate_xi, leak
    )
    du, slope_du = _tanh_clamp(move, clamp_du)
    dxi, slope_dxi = _tanh_clamp(move_xi, clamp_dxi)
    _, slope_u = _tanh_clamp(mean + du, clamp_u)
    _, slope_xi = _tanh_clamp(xi + dxi, clamp_xi)
    grad, grad_xi = grad * slope_u, grad_xi * slope_xi
    to_move, to_move_xi = grad * slope_du, grad_xi * slope_dxi
    to_lr, to_lr_xi = to_move * move, to_move_xi * move_xi
    to_mean, to_xi = rate * to_move, 0.5 * rate_xi * to_move_xi
    grad_drive = to_mean * sigma * sigma + to_xi * sigma * eps
    to_prior = to_mean * pull
    to_prior_xi = 2.0 * pull * (to_mean * (mean - prior) + to_xi)
    grad_xi += 2.0 * to_mean * toward + to_xi * (toward_xi - 2.0 * pull)
    return grad - to_prior, grad_xi, to_prior, to_prior_xi, grad_drive, to_mean, to_lr, to_lr_xi


@triton.jit
def _log_ratio_kl(d):
    """(e^2d - 1)/2 - d, by its series for small d, where the closed form loses all digits."""
    y = 2.0 * d
    series = 1.0 / 240 + y * (1.0 / 1440 + y * (1.0 / 10080 + y * (1.0 / 80640)))
    series = 0.25 + y * (1.0 / 12 + y * (1.0 / 48 + y * series))
    _, expm1 = exp_pair(y)
    return tl.where(tl.abs(y) < 0.5, y * y * series, 0.5 * expm1 - d)


@triton.jit
def kl(mean, xi, prior, prior_xi):
    """KL of each neuron."""
    distance = (mean - prior) * exp(-prior_xi)
    return 0.5 * distance * distance + _log_ratio_kl(xi - prior_xi)


@triton.jit
def kl_grad(mean, xi, prior, prior_xi):
    """Derivatives of :func:`kl` with respect to mean, xi, prior and prior_xi."""
    precision = exp(-prior_xi)
    distance = (mean - prior) * precision
    _, spread = exp_pair(2.0 * (xi - prior_xi))
    slope = distance * precision
    return slope, spread, -slope, -distance * distance - spread
