"""What both drivers use of a tile: products in the precision asked for, streams, the step and its backward.

Tiles are [R, N], rows by neurons; ``at`` are their offsets within one [B, K] slot of ``wide`` elements,
``inside`` says which are real. Updates are counted i = t n_inner + j.
"""

import triton
import triton.language as tl

from .._triton import cell, interpreted
from .._triton.math import exp
from .config import RolloutConfig

PRODUCTS = {"float32": "tf32x3", "tf32": "tf32", "bf16": "bf16"}
"""How ``RolloutConfig.precision`` is computed: three TF32 products carry 22 bits of each factor."""

_INTERPRETED = tl.constexpr(interpreted())


def arrival_limit(cfg: RolloutConfig) -> float | None:
    """``n_arrivals`` as kernels take it: None is compiled in."""
    return None if cfg.n_arrivals is None else float(cfg.n_arrivals)


@triton.jit
def add_product(acc, a, b, PRODUCT: tl.constexpr):
    """Acc + a b of float32 tiles, on tensor cores, accumulated in float32."""
    if PRODUCT == "bf16":
        a = a.to(tl.bfloat16)
        b = b.to(tl.bfloat16)
        if _INTERPRETED:  # Triton's interpreter would multiply the bits of bfloat16 as integers
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc)
    else:
        acc = tl.dot(a, b, acc, input_precision=PRODUCT)
    return acc


@triton.jit
def encode(
    error_ptr, log_sigma_ptr, dictionary_ptr, row, neuron, n_rows, n_pixels, n_neurons,
    ROWS: tl.constexpr, NEURONS: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Errors [n_rows, M], over var unless log_sigma is None, times Phi; rows [R, 1], neurons [1, N]."""
    acc = tl.zeros((ROWS, NEURONS), tl.float32)
    for begin in range(0, n_pixels, DEPTH):
        pixel = begin + tl.arange(0, DEPTH)
        real = pixel < n_pixels
        error = tl.load(
            error_ptr + row * n_pixels + pixel[None, :], mask=(row < n_rows) & real[None, :], other=0.0
        )
        if log_sigma_ptr is not None:
            error *= exp(-2.0 * tl.load(log_sigma_ptr + pixel, mask=real, other=0.0))[None, :]
        phi = tl.load(
            dictionary_ptr + pixel[:, None].to(tl.int64) * n_neurons + neuron,
            mask=real[:, None] & (neuron < n_neurons),
            other=0.0,
        )
        acc = add_product(acc, error, phi, PRODUCT)
    return acc


@triton.jit
def stream_of(draw, first_step, n_inner, SINGLE: tl.constexpr):
    """Step and high word of draw t (n_inner + 1) + j of a rollout; j = n_inner is the fresh one."""
    draw = tl.cast(draw, tl.int64)
    j = draw % (n_inner + 1)
    step = draw // (n_inner + 1) + first_step
    fresh = j == n_inner
    high = tl.where(fresh, 1 << 28, j << 20)
    if SINGLE:
        reuse = (j < n_inner) & (step > 0)
        high = tl.where(reuse, 1 << 28, high)
        step = tl.where(reuse, step - 1, step)
    return step.to(tl.uint32), high.to(tl.uint32)


@triton.jit
def advance(
    drive, path_ptr, inhibition, rate, i, j, path_slots, wide, at, inside, leak, clamp_u, clamp_du
):  # fmt: skip
    """Update i: stores the new log rate in the path; returns it and the prior of its step."""
    u = tl.load(path_ptr + i % path_slots * wide + at, mask=inside, other=0.0)
    prior = tl.load(path_ptr + (i - j) % path_slots * wide + at, mask=inside, other=0.0)
    new = cell.update(u, prior, drive, inhibition, rate, leak, clamp_u, clamp_du)
    tl.store(path_ptr + (i + 1) % path_slots * wide + at, new, mask=inside)
    return new, prior


@triton.jit
def through_counts(grad, product, draw, slopes_ptr, wide, at, inside):
    """grad, less what reaches the log rates through the counts of a draw; product is grad_error Phi."""
    return grad - product * tl.load(slopes_ptr + draw * wide + at, mask=inside, other=0.0)


@triton.jit
def through_kl(grad, upstream, i, j, path_ptr, wide, at, inside, RELEASED: tl.constexpr):
    """Grad with that of the KL after update i, the last of its step; and the gradient of the prior."""
    posterior = tl.load(path_ptr + (i + 1) * wide + at, mask=inside, other=0.0)
    prior = tl.load(path_ptr + (i - j) * wide + at, mask=inside, other=0.0)
    kl_u, kl_prior = cell.kl_grad(posterior, prior, RELEASED)
    return grad + upstream * kl_u, upstream * kl_prior


@triton.jit
def retreat(
    grad, grad_prior, path_ptr, drives_ptr, grad_priors_ptr, grad_drives_ptr, inhibition, rate, i, j,
    wide, at, inside, leak, clamp_u, clamp_du,
):  # fmt: skip
    """The backward of update i: stores gradients of prior and drive, returns those of u, drive and log_lr."""
    grad, to_prior, grad_drive, to_lr = cell.update_grad(
        grad,
        tl.load(path_ptr + i * wide + at, mask=inside, other=0.0),
        tl.load(path_ptr + (i - j) * wide + at, mask=inside, other=0.0),
        tl.load(drives_ptr + i * wide + at, mask=inside, other=0.0),
        inhibition,
        rate,
        leak,
        clamp_u,
        clamp_du,
    )
    grad_drive = tl.where(inside, grad_drive, 0.0)
    tl.store(grad_priors_ptr + i % 2 * wide + at, grad_prior + to_prior, mask=inside)
    tl.store(grad_drives_ptr + i * wide + at, grad_drive, mask=inside)
    return grad, grad_drive, tl.where(inside, to_lr, 0.0)
