"""The pointwise half of a step and the KL, with their derivatives: ``csrc/common/cells/poisson.h`` in Triton.

Equations in the module docstring of ``update/op.py``; everything is float32 and elementwise.
"""

import triton
import triton.language as tl

from .math import exp, exp_pair, max_keep_nan, soft_clamp

FLOOR = tl.constexpr(-8.0)  # of the update and of the log rate


@triton.jit
def update(u, prior, drive, inhibition, rate, leak, decay, clamp_u, clamp_du):
    """The new log rate; ``rate`` is the learning rate."""
    pre = rate * (drive - inhibition - leak * (u - prior) - decay * u)
    du, _ = soft_clamp(max_keep_nan(pre, FLOOR), clamp_du)
    new, _ = soft_clamp(max_keep_nan(u + du, FLOOR), clamp_u)
    return new


@triton.jit
def update_grad(grad, u, prior, drive, inhibition, rate, leak, decay, clamp_u, clamp_du):
    """Gradients of u, prior, drive (that of the inhibition is its negative) and of log(rate)."""
    pre = rate * (drive - inhibition - leak * (u - prior) - decay * u)
    du, slope_du = soft_clamp(max_keep_nan(pre, FLOOR), clamp_du)
    moved = u + du
    _, slope_u = soft_clamp(max_keep_nan(moved, FLOOR), clamp_u)
    grad_moved = tl.where(moved < FLOOR, 0.0, grad * slope_u)
    grad_pre = tl.where(pre < FLOOR, 0.0, grad_moved * slope_du)
    grad_drive = rate * grad_pre
    return grad_moved - (leak + decay) * grad_drive, leak * grad_drive, grad_drive, grad_pre * pre


@triton.jit
def _kl_shape(d, exp_d):
    """1 + e^d (d - 1), by its series for small d, where the closed form loses all digits."""
    series = 1.0 / 30 + d * (1.0 / 144 + d * (1.0 / 840 + d * (1.0 / 5760)))
    series = 0.5 + d * (1.0 / 3 + d * (1.0 / 8 + d * series))
    return tl.where(tl.abs(d) < 0.5, d * d * series, 1.0 + exp_d * (d - 1.0))


@triton.jit
def kl(u, prior, RELEASED: tl.constexpr):
    """KL of each neuron; "released" is e^(u - prior) times the exact one."""
    d = u - prior
    return exp(u if RELEASED else prior) * _kl_shape(d, exp(d))


@triton.jit
def kl_grad(u, prior, RELEASED: tl.constexpr):
    """Derivatives of :func:`kl` with respect to u and prior."""
    d = u - prior
    exp_d, expm1_d = exp_pair(d)
    if RELEASED:
        rate = exp(u)
        slope = rate * exp_d * d
        grad_u = rate * _kl_shape(d, exp_d) + slope
        grad_prior = -slope
    else:
        rate = exp(prior)
        grad_u = rate * exp_d * d
        grad_prior = -rate * expm1_d
    return grad_u, grad_prior
