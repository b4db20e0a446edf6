"""What both drivers use of a tile: products in the precision asked for, streams, the step and its backward.

Tiles are [R, N], rows by neurons; ``at`` are their offsets within one [B, K] slot of ``wide`` elements,
``inside`` says which are real. Updates are counted i = t n_inner + j. A state has one [B, K] half (Poisson:
u, the log rate) or two (Gaussian: u, the mean, and xi, log sigma); nobody reads a Poisson cell's xi.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ... import cells
from ...backend.triton import gaussian_cell, interpreted, poisson, poisson_cell
from ...backend.triton.math import exp
from ...poisson.estimators import COMPILED, ESTIMATORS, code
from ..config import RolloutConfig

PRODUCTS = {"float32": "tf32x3", "tf32": "tf32", "bf16": "bf16"}
"""How ``RolloutConfig.matmul_precision`` is computed: three TF32 products carry 22 bits of each factor."""
COUNTS = tl.constexpr("counts")
"""How integer counts are decoded in float32: three bfloat16 products, of exact factors, at half the cost."""

POISSON = tl.constexpr(cells.code("poisson"))
GAUSSIAN = tl.constexpr(cells.code("gaussian"))
RELU = tl.constexpr(cells.code("gaussian_relu"))
_INTERPRETED = tl.constexpr(interpreted())
FEW = tl.constexpr(256.0)  # up to here every count is exact in bfloat16


class Gradients(NamedTuple):
    """What a backward leaves for :func:`ipvae_kernels.rollout.eager.gather`.

    Attributes:
        errors: [T, n_inner + 1, B, M].
        drives: [T n_inner, B, K].
        means: Gaussian cells: the gradient of minus the inhibition, which is not that of the drive; or None.
    """

    errors: Tensor
    drives: Tensor
    means: Tensor | None


def cell_code(cell: str) -> int:
    """The number of a cell that these kernels know."""
    known = {"poisson": POISSON, "gaussian": GAUSSIAN, "gaussian_relu": RELU}
    return int(known[cell].value)


def stores_means(cell: str) -> bool:
    """Whether the backward of an update stores the gradient of minus the inhibition, not the drive's."""
    return {"poisson": False, "gaussian": True, "gaussian_relu": True}[cell]


def decode_product(cfg: RolloutConfig) -> str:
    """How latents are decoded: COUNTS for integers in "float32", else one of ``PRODUCTS``."""
    drawn = COMPILED[code(cfg.estimator, cfg.temperature)]
    integers = cells.CELLS[cfg.cell].counts and ESTIMATORS[drawn].half_width is None and not cfg.expected
    return COUNTS.value if integers and cfg.matmul_precision == "float32" else PRODUCTS[cfg.matmul_precision]


def arrival_limit(cfg: RolloutConfig) -> float | None:
    """``n_arrivals`` as kernels take it: None is compiled in."""
    return None if cfg.n_arrivals is None else float(cfg.n_arrivals)


@triton.jit
def _add_bf16(acc, a, b):
    if _INTERPRETED:  # Triton's interpreter would multiply the bits of bfloat16 as integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def _split(x):
    """Three bfloat16 tiles whose sum is x, in 24 bits."""
    high = x.to(tl.bfloat16)
    x -= high.to(tl.float32)
    middle = x.to(tl.bfloat16)
    x -= middle.to(tl.float32)
    return high, middle, x.to(tl.bfloat16)


@triton.jit
def add_product(acc, a, b, PRODUCT: tl.constexpr):
    """Acc + a b of float32 tiles, on tensor cores, accumulated in float32.

    COUNTS takes of each count the leading 8 bits, which are all up to FEW; :func:`add_rest` adds the others.
    """
    if PRODUCT == COUNTS:
        high, middle, low = _split(b)
        a = a.to(tl.bfloat16)
        acc = _add_bf16(acc, a, low)
        acc = _add_bf16(acc, a, middle)
        acc = _add_bf16(acc, a, high)
    elif PRODUCT == "bf16":
        acc = _add_bf16(acc, a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        acc = tl.dot(a, b, acc, input_precision=PRODUCT)
    return acc


@triton.jit
def add_rest(acc, counts, b):
    """What ``add_product(acc, counts, b, COUNTS)`` leaves out of counts beyond FEW."""
    rest = counts - counts.to(tl.bfloat16).to(tl.float32)
    acc = add_product(acc, rest - rest.to(tl.bfloat16).to(tl.float32), b, COUNTS)
    return add_product(acc, rest, b, COUNTS)


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
def load_state(state_ptr, wide, at, inside, CELL: tl.constexpr):
    """Both halves of a state: mean and xi of a Gaussian cell; a log rate has one, which stands for both."""
    u = tl.load(state_ptr + at, mask=inside, other=0.0)
    xi = u
    if CELL != POISSON:
        xi = tl.load(state_ptr + wide + at, mask=inside, other=0.0)
    return u, xi


@triton.jit
def store_state(state_ptr, u, xi, wide, at, inside, CELL: tl.constexpr):
    """Stores what :func:`load_state` loads."""
    tl.store(state_ptr + at, u, mask=inside)
    if CELL != POISSON:
        tl.store(state_ptr + wide + at, xi, mask=inside)


@triton.jit
def load_rates(log_lr_ptr, CELL: tl.constexpr):
    """Learning rates of both halves of a state."""
    rate = exp(tl.load(log_lr_ptr))
    rate_xi = rate
    if CELL != POISSON:
        rate_xi = exp(tl.load(log_lr_ptr + 1))
    return rate, rate_xi


@triton.jit
def draw_from(
    u, xi, inside, k0, k1, sample, step, high, first, fresh, temperature, n_arrivals,
    N: tl.constexpr, ESTIMATOR: tl.constexpr, EXPECTED: tl.constexpr, CELL: tl.constexpr,
):  # fmt: skip
    """What the decoder sees, and the memo of the draw: slopes of counts, or standard normals of latents.

    EXPECTED: rates in place of counts, but in the fresh draw of a step.
    """
    if CELL == POISSON:
        u = tl.where(inside, u, -20.0)  # nothing outside keeps a sampler running
        if EXPECTED:
            if fresh:
                code, memo = poisson.draw(
                    u, k0, k1, sample, step, high, first, temperature, n_arrivals, N, ESTIMATOR
                )
            else:
                code, memo = poisson.draw(
                    u, k0, k1, sample, step, high, first, temperature, n_arrivals, N, poisson.EXPECTED
                )
        else:
            code, memo = poisson.draw(
                u, k0, k1, sample, step, high, first, temperature, n_arrivals, N, ESTIMATOR
            )
    else:
        tl.static_assert((CELL == GAUSSIAN) | (CELL == RELU))
        code, memo = gaussian_cell.draw(u, xi, k0, k1, sample, step, high, first, N, CELL == RELU)
    return code, memo


@triton.jit
def advance(
    drive, path_ptr, inhibition, rate, rate_xi, k0, k1, sample, first, first_step, i, j, n_inner, path_slots,
    wide, at, inside, leak, decay, clamp_u, clamp_du, clamp_xi, clamp_dxi,
    N: tl.constexpr, SINGLE: tl.constexpr, CELL: tl.constexpr,
):  # fmt: skip
    """Update i: stores the new state in the path; returns both halves of it and of the prior of its step.

    A Gaussian cell draws the latents of the update once more: cheaper than to store and load them.
    """
    states: tl.constexpr = 1 if CELL == POISSON else 2
    u, xi = load_state(path_ptr + i % path_slots * states * wide, wide, at, inside, CELL)
    prior, prior_xi = load_state(path_ptr + (i - j) % path_slots * states * wide, wide, at, inside, CELL)
    if CELL == POISSON:
        new = poisson_cell.update(u, prior, drive, inhibition, rate, leak, decay, clamp_u, clamp_du)
        new_xi = new
    else:
        tl.static_assert((CELL == GAUSSIAN) | (CELL == RELU))
        step, high = stream_of(i // n_inner * (n_inner + 1) + j, first_step, n_inner, SINGLE)
        latents, eps = gaussian_cell.draw(u, xi, k0, k1, sample, step, high, first, N, CELL == RELU)
        if CELL == RELU:
            drive = tl.where(latents > 0.0, drive, 0.0)
        new, new_xi = gaussian_cell.update(
            u, xi, prior, prior_xi, drive, eps, inhibition, rate, rate_xi, leak,
            clamp_u, clamp_du, clamp_xi, clamp_dxi,
        )  # fmt: skip
    store_state(path_ptr + (i + 1) % path_slots * states * wide, new, new_xi, wide, at, inside, CELL)
    return new, new_xi, prior, prior_xi


@triton.jit
def kl_of(u, xi, prior, prior_xi, RELEASED: tl.constexpr, CELL: tl.constexpr):
    """KL of each neuron."""
    if CELL == POISSON:
        value = poisson_cell.kl(u, prior, RELEASED)
    else:
        tl.static_assert((CELL == GAUSSIAN) | (CELL == RELU))
        value = gaussian_cell.kl(u, xi, prior, prior_xi)
    return value


@triton.jit
def through_draw(
    grad, grad_xi, product, draw, i, path_ptr, counts_ptr, slopes_ptr, wide, at, inside, CELL: tl.constexpr
):  # fmt: skip
    """The gradient of state i, less what reaches it through a draw from it; product is grad_error Phi."""
    memo = tl.load(slopes_ptr + draw * wide + at, mask=inside, other=0.0)
    if CELL == POISSON:
        grad -= product * memo
    else:
        tl.static_assert((CELL == GAUSSIAN) | (CELL == RELU))
        if CELL == RELU:
            code = tl.load(counts_ptr + draw * wide + at, mask=inside, other=0.0)
            product = tl.where(code > 0.0, product, 0.0)
        xi = tl.load(path_ptr + (2 * i + 1) * wide + at, mask=inside, other=0.0)
        grad -= product
        grad_xi -= product * memo * exp(xi)
    return grad, grad_xi


@triton.jit
def through_kl(
    grad, grad_xi, upstream, i, j, path_ptr, wide, at, inside, RELEASED: tl.constexpr, CELL: tl.constexpr
):  # fmt: skip
    """The gradient with that of the KL after update i, the last of its step; and that of the prior."""
    states: tl.constexpr = 1 if CELL == POISSON else 2
    posterior, xi = load_state(path_ptr + (i + 1) * states * wide, wide, at, inside, CELL)
    prior, prior_xi = load_state(path_ptr + (i - j) * states * wide, wide, at, inside, CELL)
    if CELL == POISSON:
        to_u, to_prior = poisson_cell.kl_grad(posterior, prior, RELEASED)
        to_xi, to_prior_xi = to_u, to_prior
    else:
        tl.static_assert((CELL == GAUSSIAN) | (CELL == RELU))
        to_u, to_xi, to_prior, to_prior_xi = gaussian_cell.kl_grad(posterior, xi, prior, prior_xi)
    return grad + upstream * to_u, grad_xi + upstream * to_xi, upstream * to_prior, upstream * to_prior_xi


@triton.jit
def update_backward(
    grad, grad_xi, grad_prior, grad_prior_xi, path_ptr, drives_ptr, counts_ptr, slopes_ptr,
    grad_priors_ptr, grad_drives_ptr, grad_means_ptr, inhibition, rate, rate_xi, i, j, n_inner,
    wide, at, inside, leak, decay, clamp_u, clamp_du, clamp_xi, clamp_dxi, CELL: tl.constexpr,
):  # fmt: skip
    """The backward of update i.

    Stores the gradients of prior, drive and, of a Gaussian cell, of minus the inhibition (that of a Poisson
    cell is the drive's); returns those of both halves of the state, of the drive and of log_lr.
    """
    states: tl.constexpr = 1 if CELL == POISSON else 2
    u, xi = load_state(path_ptr + i * states * wide, wide, at, inside, CELL)
    prior, prior_xi = load_state(path_ptr + (i - j) * states * wide, wide, at, inside, CELL)
    drive = tl.load(drives_ptr + i * wide + at, mask=inside, other=0.0)
    if CELL == POISSON:
        grad, to_prior, grad_drive, to_lr = poisson_cell.update_grad(
            grad, u, prior, drive, inhibition, rate, leak, decay, clamp_u, clamp_du
        )
        to_prior_xi, to_lr_xi = to_prior, to_lr
    else:
        tl.static_assert((CELL == GAUSSIAN) | (CELL == RELU))
        draw = i // n_inner * (n_inner + 1) + j
        eps = tl.load(slopes_ptr + draw * wide + at, mask=inside, other=0.0)
        active = inside
        if CELL == RELU:
            active = tl.load(counts_ptr + draw * wide + at, mask=inside, other=0.0) > 0.0
            drive = tl.where(active, drive, 0.0)
        (
            grad, grad_xi, to_prior, to_prior_xi, grad_drive, to_mean, to_lr, to_lr_xi,
        ) = gaussian_cell.update_grad(
            grad, grad_xi, u, xi, prior, prior_xi, drive, eps, inhibition, rate, rate_xi, leak,
            clamp_u, clamp_du, clamp_xi, clamp_dxi,
        )  # fmt: skip
        grad_drive = tl.where(active, grad_drive, 0.0)
        tl.store(grad_means_ptr + i * wide + at, to_mean, mask=inside)
    grad_drive = tl.where(inside, grad_drive, 0.0)
    to_prior += grad_prior
    to_prior_xi += grad_prior_xi
    store_state(grad_priors_ptr + i % 2 * states * wide, to_prior, to_prior_xi, wide, at, inside, CELL)
    tl.store(grad_drives_ptr + i * wide + at, grad_drive, mask=inside)
    return grad, grad_xi, grad_drive, tl.where(inside, to_lr, 0.0), tl.where(inside, to_lr_xi, 0.0)
