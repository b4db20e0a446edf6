"""The stepped driver: two matrix products per update, with everything else in their epilogues. Any sizes.

Per update and row 4 K M operations in the two products. Bytes beside the dictionary (read once per product
and tile of rows, from L2 where it fits): u, prior and the new u, the counts written and read, the error
written and read; in training the slopes and drives as well, 6 K + 2 M floats in all. For K >> 100 the
products dominate.

- ``residual_kernel``: error = x - counts Phi^T, for the one or two draws of a log rate at once (the fresh
  draw of a step and that of the next update are independent draws of the same log rate: they share a launch).
- ``update_kernel``: drive = (error / var) Phi; in its epilogue the new log rate, the KL, and the next draws.
- ``pull_kernel``, ``push_kernel``: the same two products of the backward.

An epilogue takes 16 rows of its tile at a time, so that a sampler holds four neurons a thread: with the
product's whole tile in registers every thread holds 16 or 32, and the compiler spilled 0.7 to 4 KB of each.
The product goes from one to the other through L2, as the drive that training saves anyway.

Every kernel is a pure function of its inputs, so that tuning may run it repeatedly, and reads the seed from
the device, so that a CUDA graph that captures a call can be replayed with new noise. Draws are indexed t
(n_inner + 1) + j: the updates' draws of step t, then its fresh one.
"""

from collections.abc import Callable
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ...backend import triton as backend
from ...backend.triton.math import exp
from ...backend.triton.philox import load_key
from ...backend.triton.tuning import autotune, config
from ...poisson.estimators import code
from ...poisson.triton import draw_into
from ..config import CELLS, RolloutConfig
from ..schedule import update_stream
from .parts import (
    COUNTS,
    FEW,
    POISSON,
    PRODUCTS,
    add_product,
    add_rest,
    advance,
    arrival_limit,
    decode_product,
    draw_from,
    encode,
    kl_of,
    load_rates,
    load_state,
    store_state,
    stream_of,
    through_draw,
    through_kl,
    update_backward,
)

NEURONS = 64  # of a tile; fixed, so that sums over tiles have one order
PIXELS = 64
DEPTH = 32  # of a product at a time
SLICE = 16  # rows that an epilogue takes at a time

CONFIGS = (
    config(8, 2, registers=255, BLOCK_B=64),
    config(8, 3, registers=255, BLOCK_B=32),
    config(8, 3, registers=255, BLOCK_B=128),
    config(4, 3, registers=255, BLOCK_B=32),
)
NARROW_FIRST = (CONFIGS[1], CONFIGS[0], *CONFIGS[2:])  # with 64 rows, decoding counts spills 8 bytes on sm_80


@triton.jit
def _decode(
    acc, latents_ptr, dictionary_ptr, row, pixel, n_rows, n_pixels, n_neurons,
    DEPTH: tl.constexpr, PRODUCT: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Acc + latents [n_rows, K] Phi^T for rows [R, 1] and pixels [1, N]. REST: what COUNTS leaves out."""
    for begin in range(0, n_neurons, DEPTH):
        neuron = begin + tl.arange(0, DEPTH)
        latents = tl.load(
            latents_ptr + row * n_neurons + neuron[None, :],
            mask=(row < n_rows) & (neuron[None, :] < n_neurons),
            other=0.0,
        )
        phi = tl.load(
            dictionary_ptr + pixel.to(tl.int64) * n_neurons + neuron[:, None],
            mask=(pixel < n_pixels) & (neuron[:, None] < n_neurons),
            other=0.0,
        )
        acc = add_rest(acc, latents, phi) if REST else add_product(acc, latents, phi, PRODUCT)
    return acc


@triton.jit
def _largest(largest_ptr, row, n_rows, neuron_tiles, ROWS: tl.constexpr):
    """The largest count of rows [R, 1]."""
    largest = tl.zeros((ROWS, 1), tl.float32)
    for tile in range(neuron_tiles):
        of_tile = tl.load(largest_ptr + tl.cast(tile, tl.int64) * n_rows + row, mask=row < n_rows, other=0.0)
        largest = tl.maximum(largest, of_tile)
    return tl.max(largest)


@autotune(NARROW_FIRST, key=("n_pixels", "n_neurons", "rows_class", "PRODUCT"))
@triton.jit(do_not_specialize=("first_draw",), do_not_specialize_on_alignment=("rows_class",))
def residual_kernel(
    counts_ptr,  # [draw slots, B, K]
    x_ptr,  # [B, M], or [T, B, M]
    dictionary_ptr,  # [M, K]
    log_sigma_ptr,  # [M]
    errors_ptr,  # [draw slots, B, M]
    recon_sums_ptr,  # [T, pixel tiles, B], or None
    largest_ptr,  # [draw slots, neuron tiles, B], or None unless PRODUCT is COUNTS
    first_draw,
    x_step,
    n_rows,
    n_pixels,
    n_neurons,
    n_inner,
    draw_slots,
    neuron_tiles,
    rows_class,
    PRODUCT: tl.constexpr,
    PIXELS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Error x - counts Phi^T of one or more draws, and the loss of fresh ones."""
    row_tiles, pixel_tiles = tl.cdiv(n_rows, BLOCK_B), tl.cdiv(n_pixels, PIXELS)
    tile = (tl.program_id(0) // row_tiles) % pixel_tiles
    draw = first_draw.to(tl.int64) + tl.program_id(0) // row_tiles // pixel_tiles
    t, slot = draw // (n_inner + 1), draw % draw_slots
    row = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    pixel = tile * PIXELS + tl.arange(0, PIXELS)[None, :]
    inside = (row < n_rows) & (pixel < n_pixels)
    latents_ptr = counts_ptr + slot * n_rows * n_neurons
    acc = _decode(
        tl.zeros((BLOCK_B, PIXELS), tl.float32), latents_ptr, dictionary_ptr, row, pixel,
        n_rows, n_pixels, n_neurons, DEPTH, PRODUCT, False,
    )  # fmt: skip
    if PRODUCT == COUNTS:
        if _largest(largest_ptr + slot * neuron_tiles * n_rows, row, n_rows, neuron_tiles, BLOCK_B) > FEW:
            acc = _decode(
                acc, latents_ptr, dictionary_ptr, row, pixel,
                n_rows, n_pixels, n_neurons, DEPTH, PRODUCT, True,
            )  # fmt: skip
    at = row * n_pixels + pixel
    error = tl.load(x_ptr + t * x_step + at, mask=inside, other=0.0) - acc
    tl.store(errors_ptr + slot * n_rows * n_pixels + at, error, mask=inside)
    if recon_sums_ptr is not None:
        if draw % (n_inner + 1) == n_inner:
            log_sigma = tl.load(log_sigma_ptr + pixel, mask=pixel < n_pixels, other=0.0)
            terms = 0.5 * error * error * exp(-2.0 * log_sigma) + (log_sigma + 0.918938533)
            sums = tl.sum(tl.where(inside, terms, 0.0), axis=1)[:, None]
            tl.store(recon_sums_ptr + (t * pixel_tiles + tile) * n_rows + row, sums, mask=row < n_rows)


@autotune(NARROW_FIRST, key=("n_pixels", "n_neurons", "rows_class", "PRODUCT", "ESTIMATOR", "CELL"))
@triton.jit(
    do_not_specialize=("update", "first_draw", "n_draws", "first_step", "sample_offset", "neuron_offset"),
    do_not_specialize_on_alignment=("rows_class",),
)
def update_kernel(
    errors_ptr,  # [draw slots, B, M]: x - Phi z
    dictionary_ptr,  # [M, K]
    log_sigma_ptr,  # [M]
    log_bias_ptr,  # [K]
    log_lr_ptr,  # [], or [2]
    seed_ptr,  # int64 []
    path_ptr,  # [path slots, S, B, K]; S is 1, or 2 for mean and xi of a Gaussian cell
    drives_ptr,  # [drive slots, B, K]
    counts_ptr,  # [draw slots, B, K]
    slopes_ptr,  # [draw slots, B, K], or None; Gaussian: standard normals
    kl_sums_ptr,  # [T, neuron tiles, B], or None
    largest_ptr,  # [draw slots, neuron tiles, B], or None
    update,
    first_draw,
    n_draws,
    first_step,
    sample_offset,
    neuron_offset,
    n_rows,
    n_pixels,
    n_neurons,
    n_inner,
    path_slots,
    drive_slots,
    draw_slots,
    rows_class,
    leak: tl.float32,
    clamp_u: tl.float32,
    clamp_du: tl.float32,
    clamp_xi: tl.float32,
    clamp_dxi: tl.float32,
    temperature: tl.float32,
    n_arrivals,
    CELL: tl.constexpr,
    PRODUCT: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    SINGLE: tl.constexpr,
    RELEASED: tl.constexpr,
    NEURONS: tl.constexpr,
    SLICE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """One update of the log rate, and the draws first_draw .. first_draw + n_draws - 1 of the new one."""
    row_tiles, neuron_tiles = tl.cdiv(n_rows, BLOCK_B), tl.cdiv(n_neurons, NEURONS)
    tile = tl.program_id(0) // row_tiles
    first_row = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_B
    neuron = tile * NEURONS + tl.arange(0, NEURONS)[None, :]
    block_row = first_row + tl.arange(0, BLOCK_B)[:, None]
    block_at = block_row * n_neurons + neuron
    block_inside = (block_row < n_rows) & (neuron < n_neurons)
    update = update.to(tl.int64)
    t, j = update // n_inner, update % n_inner
    wide = tl.cast(n_rows, tl.int64) * n_neurons
    drive_ptr = drives_ptr + update % drive_slots * wide
    error_ptr = errors_ptr + (t * (n_inner + 1) + j) % draw_slots * n_rows * n_pixels
    acc = encode(
        error_ptr, log_sigma_ptr, dictionary_ptr, block_row, neuron, n_rows, n_pixels, n_neurons,
        BLOCK_B, NEURONS, DEPTH, PRODUCT,
    )  # fmt: skip
    tl.store(drive_ptr + block_at, acc, mask=block_inside)
    tl.debug_barrier()

    inhibition = exp(tl.load(log_bias_ptr + neuron, mask=neuron < n_neurons, other=0.0))
    rate, rate_xi = load_rates(log_lr_ptr, CELL)
    k0, k1 = load_key(seed_ptr)
    first = tile * NEURONS + neuron_offset
    for begin in range(0, tl.minimum(BLOCK_B, n_rows - first_row), SLICE):
        row = first_row + begin + tl.arange(0, SLICE)[:, None]
        inside = (row < n_rows) & (neuron < n_neurons)
        at = row * n_neurons + neuron
        drive = tl.load(drive_ptr + at, mask=inside, other=0.0)
        sample = (row + sample_offset).to(tl.uint32)
        u, xi, prior, prior_xi = advance(
            drive, path_ptr, inhibition, rate, rate_xi, k0, k1, sample, first, first_step,
            update, j, n_inner, path_slots, wide, at, inside, leak, clamp_u, clamp_du, clamp_xi, clamp_dxi,
            NEURONS, SINGLE, CELL,
        )  # fmt: skip
        if kl_sums_ptr is not None:
            if j == n_inner - 1:
                terms = tl.where(inside, kl_of(u, xi, prior, prior_xi, RELEASED, CELL), 0.0)
                sums = tl.sum(terms, axis=1)[:, None]
                tl.store(kl_sums_ptr + (t * neuron_tiles + tile) * n_rows + row, sums, mask=row < n_rows)
        for draw in range(first_draw, first_draw + n_draws):
            step, high = stream_of(draw, first_step, n_inner, SINGLE)
            counts, slopes = draw_from(
                u, xi, inside, k0, k1, sample, step, high, first, temperature, n_arrivals,
                NEURONS, ESTIMATOR, CELL,
            )  # fmt: skip
            slot = tl.cast(draw, tl.int64) % draw_slots
            tl.store(counts_ptr + slot * wide + at, counts, mask=inside)
            if slopes_ptr is not None:
                tl.store(slopes_ptr + slot * wide + at, slopes, mask=inside)
            if largest_ptr is not None:
                largest = tl.max(tl.where(inside, counts, 0.0), axis=1)[:, None]
                largest_at = (slot * neuron_tiles + tile) * n_rows + row
                tl.store(largest_ptr + largest_at, largest, mask=row < n_rows)


@triton.jit(do_not_specialize=("high", "step", "sample_offset", "neuron_offset"))
def latents_kernel(
    state_ptr,  # [2, B, K]
    seed_ptr,  # int64 []
    latents_ptr,  # [B, K]
    normals_ptr,  # [B, K], or None
    n_rows,
    n_neurons,
    high,
    step,
    sample_offset,
    neuron_offset,
    CELL: tl.constexpr,
    ROWS: tl.constexpr,
    NEURONS: tl.constexpr,
):
    """One draw of a Gaussian cell from a state, outside of an update."""
    tiles = tl.cdiv(n_neurons, NEURONS)
    first = (tl.program_id(0) % tiles) * NEURONS
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    neuron = first + tl.arange(0, NEURONS)[None, :]
    inside = (row < n_rows) & (neuron < n_neurons)
    at = row * n_neurons + neuron
    mean, xi = load_state(state_ptr, tl.cast(n_rows, tl.int64) * n_neurons, at, inside, CELL)
    k0, k1 = load_key(seed_ptr)
    sample = (row + sample_offset).to(tl.uint32)
    latents, normals = draw_from(
        mean, xi, inside, k0, k1, sample, step.to(tl.uint32), high.to(tl.uint32),
        first + neuron_offset, 0.0, None, NEURONS, 0, CELL,
    )  # fmt: skip
    tl.store(latents_ptr + at, latents, mask=inside)
    if normals_ptr is not None:
        tl.store(normals_ptr + at, normals, mask=inside)


@autotune(CONFIGS, key=("n_pixels", "n_neurons", "rows_class", "PRODUCT"))
@triton.jit(do_not_specialize=("update",), do_not_specialize_on_alignment=("rows_class",))
def push_kernel(
    grad_drives_ptr,  # [T n_inner, B, K]
    dictionary_ptr,  # [M, K]
    log_sigma_ptr,  # [M]
    grad_errors_ptr,  # [T (n_inner + 1), B, M]
    update,
    n_rows,
    n_pixels,
    n_neurons,
    n_inner,
    rows_class,
    PRODUCT: tl.constexpr,
    PIXELS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """From the gradient of an update's drive to that of its error: precision (grad_drive Phi^T)."""
    row_tiles = tl.cdiv(n_rows, BLOCK_B)
    row = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    pixel = tl.program_id(0) // row_tiles * PIXELS + tl.arange(0, PIXELS)[None, :]
    update = update.to(tl.int64)
    draw = update // n_inner * (n_inner + 1) + update % n_inner
    latents_ptr = grad_drives_ptr + update * n_rows * n_neurons
    acc = _decode(
        tl.zeros((BLOCK_B, PIXELS), tl.float32), latents_ptr, dictionary_ptr, row, pixel,
        n_rows, n_pixels, n_neurons, DEPTH, PRODUCT, False,
    )  # fmt: skip
    acc *= exp(-2.0 * tl.load(log_sigma_ptr + pixel, mask=pixel < n_pixels, other=0.0))
    at = draw * n_rows * n_pixels + row * n_pixels + pixel
    tl.store(grad_errors_ptr + at, acc, mask=(row < n_rows) & (pixel < n_pixels))


@autotune(CONFIGS, key=("n_pixels", "n_neurons", "rows_class", "PRODUCT", "CELL"))
@triton.jit(do_not_specialize=("update",), do_not_specialize_on_alignment=("rows_class",))
def pull_kernel(
    grad_errors_ptr,  # [T (n_inner + 1), B, M]
    dictionary_ptr,  # [M, K]
    log_bias_ptr,  # [K]
    log_lr_ptr,  # [], or [2]
    grad_kl_ptr,  # [T, B]
    path_ptr,  # [T n_inner + 1, S, B, K]
    counts_ptr,  # [T (n_inner + 1), B, K]
    slopes_ptr,  # [T (n_inner + 1), B, K]
    drives_ptr,  # [T n_inner, B, K]
    grad_u_ptr,  # [2, S, B, K]
    grad_prior_ptr,  # [2, S, B, K]
    grad_drives_ptr,  # [T n_inner, B, K]
    grad_means_ptr,  # [T n_inner, B, K], or None for a Poisson cell
    lr_sums_ptr,  # [S, T n_inner, neuron tiles, B]
    products_ptr,  # [2, B, K]
    update,
    n_updates,
    n_rows,
    n_pixels,
    n_neurons,
    n_inner,
    rows_class,
    leak: tl.float32,
    clamp_u: tl.float32,
    clamp_du: tl.float32,
    clamp_xi: tl.float32,
    clamp_dxi: tl.float32,
    CELL: tl.constexpr,
    PRODUCT: tl.constexpr,
    RELEASED: tl.constexpr,
    NEURONS: tl.constexpr,
    SLICE: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Finishes the backward of update + 1 (through its counts) and takes that of update.

    With update = -1 only the former is left; with update = n_updates - 1 there is nothing to finish.
    """
    row_tiles, neuron_tiles = tl.cdiv(n_rows, BLOCK_B), tl.cdiv(n_neurons, NEURONS)
    tile = tl.program_id(0) // row_tiles
    first_row = (tl.program_id(0) % row_tiles).to(tl.int64) * BLOCK_B
    neuron = tile * NEURONS + tl.arange(0, NEURONS)[None, :]
    block_row = first_row + tl.arange(0, BLOCK_B)[:, None]
    block_at = block_row * n_neurons + neuron
    block_inside = (block_row < n_rows) & (neuron < n_neurons)
    update = update.to(tl.int64)
    later = update + 1
    t, j = update // n_inner, update % n_inner
    later_draw = later // n_inner * (n_inner + 1) + later % n_inner
    fresh_draw = t * (n_inner + 1) + n_inner
    finishes, opens = later < n_updates, (update >= 0) & (later % n_inner == 0)
    states: tl.constexpr = 1 if CELL == POISSON else 2
    wide, narrow = tl.cast(n_rows, tl.int64) * n_neurons, tl.cast(n_rows, tl.int64) * n_pixels
    if finishes:
        acc = encode(
            grad_errors_ptr + later_draw * narrow, None, dictionary_ptr, block_row, neuron,
            n_rows, n_pixels, n_neurons, BLOCK_B, NEURONS, DEPTH, PRODUCT,
        )  # fmt: skip
        tl.store(products_ptr + block_at, acc, mask=block_inside)
    if opens:
        acc = encode(
            grad_errors_ptr + fresh_draw * narrow, None, dictionary_ptr, block_row, neuron,
            n_rows, n_pixels, n_neurons, BLOCK_B, NEURONS, DEPTH, PRODUCT,
        )  # fmt: skip
        tl.store(products_ptr + wide + block_at, acc, mask=block_inside)
    tl.debug_barrier()

    inhibition = exp(tl.load(log_bias_ptr + neuron, mask=neuron < n_neurons, other=0.0))
    rate, rate_xi = load_rates(log_lr_ptr, CELL)
    for begin in range(0, tl.minimum(BLOCK_B, n_rows - first_row), SLICE):
        row = first_row + begin + tl.arange(0, SLICE)[:, None]
        inside = (row < n_rows) & (neuron < n_neurons)
        at = row * n_neurons + neuron
        grad, grad_xi = load_state(grad_u_ptr + (update + 2) % 2 * states * wide, wide, at, inside, CELL)
        grad_prior = tl.zeros((SLICE, NEURONS), tl.float32)
        grad_prior_xi = grad_prior
        if finishes:
            product = tl.load(products_ptr + at, mask=inside, other=0.0)
            grad, grad_xi = through_draw(
                grad, grad_xi, product, later_draw, later, path_ptr, counts_ptr, slopes_ptr,
                wide, at, inside, CELL,
            )  # fmt: skip
            prior_ptr = grad_prior_ptr + later % 2 * states * wide
            grad_prior, grad_prior_xi = load_state(prior_ptr, wide, at, inside, CELL)
            if later % n_inner == 0:
                grad += grad_prior
                grad_xi += grad_prior_xi
        if opens:
            product = tl.load(products_ptr + wide + at, mask=inside, other=0.0)
            grad, grad_xi = through_draw(
                grad, grad_xi, product, fresh_draw, later, path_ptr, counts_ptr, slopes_ptr,
                wide, at, inside, CELL,
            )  # fmt: skip
            upstream = tl.load(grad_kl_ptr + t * n_rows + row, mask=row < n_rows, other=0.0)
            grad, grad_xi, grad_prior, grad_prior_xi = through_kl(
                grad, grad_xi, upstream, update, j, path_ptr, wide, at, inside, RELEASED, CELL
            )
        if update >= 0:
            grad, grad_xi, _, to_lr, to_lr_xi = update_backward(
                grad, grad_xi, grad_prior, grad_prior_xi, path_ptr, drives_ptr, counts_ptr, slopes_ptr,
                grad_prior_ptr, grad_drives_ptr, grad_means_ptr, inhibition, rate, rate_xi, update, j,
                n_inner, wide, at, inside, leak, clamp_u, clamp_du, clamp_xi, clamp_dxi, CELL,
            )  # fmt: skip
            sums_at = (update * neuron_tiles + tile) * n_rows + row
            tl.store(lr_sums_ptr + sums_at, tl.sum(to_lr, axis=1)[:, None], mask=row < n_rows)
            if CELL != POISSON:
                sums_at += tl.cast(n_updates, tl.int64) * neuron_tiles * n_rows
                tl.store(lr_sums_ptr + sums_at, tl.sum(to_lr_xi, axis=1)[:, None], mask=row < n_rows)
        store_state(grad_u_ptr + later % 2 * states * wide, grad, grad_xi, wide, at, inside, CELL)


class Buffers(NamedTuple):
    """Where a rollout keeps what it computes. With slots, index i lies in slot i modulo their number.

    Attributes:
        path: [path slots, B, K], log rates before each update and after the last; slot 0 holds the first.
            Gaussian cells: [path slots, 2, B, K].
        counts: [draw slots, B, K].
        slopes: [draw slots, B, K], or None where no gradient is wanted.
        errors: [draw slots, B, M].
        drives: [drive slots, B, K].
        recon_sums: [T, pixel tiles, B], or None.
        kl_sums: [T, neuron tiles, B], or None.
        largest: [draw slots, neuron tiles, B], the largest count, or None where counts are not integers.
    """

    path: Tensor
    counts: Tensor
    slopes: Tensor | None
    errors: Tensor
    drives: Tensor
    recon_sums: Tensor | None
    kl_sums: Tensor | None
    largest: Tensor | None


def sums_shape(cfg: RolloutConfig, batch: int, dictionary: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``recon_sums`` and ``kl_sums``."""
    pixels, neurons = dictionary.shape
    pixel_tiles, neuron_tiles = backend.ceil_div(pixels, PIXELS), backend.ceil_div(neurons, NEURONS)
    return (cfg.steps, pixel_tiles, batch), (cfg.steps, neuron_tiles, batch)


def largest_of(counts: Tensor, cfg: RolloutConfig) -> Tensor | None:
    """``Buffers.largest`` for counts [draw slots, B, K]."""
    if decode_product(cfg) != COUNTS.value:
        return None
    slots, rows, neurons = counts.shape
    return counts.new_zeros((slots, backend.ceil_div(neurons, NEURONS), rows))


def forward(
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    seed: Tensor,
    cfg: RolloutConfig,
    buffers: Buffers,
    wants_fresh: Callable[[int], bool],
    after_step: Callable[[int], None],
) -> None:
    """Runs all steps; ``wants_fresh(t)`` asks for the fresh draw of step t, ``after_step(t)`` follows it."""
    (pixels, neurons), rows, n = dictionary.shape, x.shape[-2], cfg.n_inner
    total, rows_class = cfg.steps * n, backend.next_power_of_2(max(rows, 1))
    x_step = rows * pixels if x.dim() == 3 else 0
    neuron_tiles = backend.ceil_div(neurons, NEURONS)
    path_slots, drive_slots, draw_slots = (
        len(part) for part in (buffers.path, buffers.drives, buffers.counts)
    )

    def residual(first: int, count: int) -> None:
        def grid(meta: dict[str, int]) -> tuple[int]:
            tiles = backend.ceil_div(rows, meta["BLOCK_B"]) * backend.ceil_div(pixels, PIXELS)
            return (backend.check_grid(tiles * count),)

        residual_kernel[grid](
            *(buffers.counts, x, dictionary, log_sigma, buffers.errors, buffers.recon_sums, buffers.largest),
            *(first, x_step, rows, pixels, neurons, n, draw_slots, neuron_tiles, rows_class),
            PRODUCT=decode_product(cfg),
            PIXELS=PIXELS,
            DEPTH=DEPTH,
        )

    def update(i: int, first: int, count: int) -> None:
        def grid(meta: dict[str, int]) -> tuple[int]:
            return (backend.check_grid(backend.ceil_div(rows, meta["BLOCK_B"]) * neuron_tiles),)

        update_kernel[grid](
            *(buffers.errors, dictionary, log_sigma, log_bias, log_lr, seed, buffers.path, buffers.drives),
            *(buffers.counts, buffers.slopes, buffers.kl_sums, buffers.largest),
            *(i, first, count, cfg.step, cfg.sample_offset, cfg.neuron_offset),
            *(rows, pixels, neurons, n, path_slots, drive_slots, draw_slots, rows_class),
            *(cfg.leak, cfg.clamp_u, cfg.clamp_du, cfg.clamp_xi, cfg.clamp_dxi),
            *(cfg.temperature, arrival_limit(cfg)),
            CELL=CELLS.index(cfg.cell),
            PRODUCT=PRODUCTS[cfg.matmul_precision],
            ESTIMATOR=code(cfg.estimator, cfg.temperature),
            SINGLE=cfg.single_draw,
            RELEASED=cfg.kl == "released",
            NEURONS=NEURONS,
            SLICE=SLICE,
            DEPTH=DEPTH,
        )

    _first_draw(buffers, seed, cfg)
    residual(0, 1)
    for i in range(total):
        t, j = divmod(i, n)
        draw = t * (n + 1) + j
        last, more = j == n - 1, i + 1 < total
        # After draw comes, with the last update of a step, the fresh one, and then the next update's.
        first = draw + 2 if last and not wants_fresh(t) else draw + 1
        end = draw + 2 + (last and more) if last else draw + 2
        update(i, first, end - first)
        if end > first:
            residual(first, end - first)
        if last:
            after_step(t)


def _first_draw(buffers: Buffers, seed: Tensor, cfg: RolloutConfig) -> None:
    """Draw 0, from the initial state."""
    stream = update_stream(cfg, 0, 0)
    start, counts = buffers.path[0], buffers.counts[0]
    slopes = None if buffers.slopes is None else buffers.slopes[0]
    if cfg.cell == "poisson":
        draw_into(start, seed, stream, cfg.estimator, cfg.temperature, cfg.n_arrivals, counts, slopes)
        if buffers.largest is not None:
            buffers.largest[0] = counts.amax(1)
        return
    rows, neurons = counts.shape
    tiles = backend.ceil_div(rows, SLICE) * backend.ceil_div(neurons, NEURONS)
    latents_kernel[(backend.check_grid(tiles),)](
        *(start, seed, counts, slopes, rows, neurons, stream.high_word, stream.step),
        *(stream.sample_offset, stream.neuron_offset),
        CELL=CELLS.index(cfg.cell),
        ROWS=SLICE,
        NEURONS=NEURONS,
    )


def backward(
    grad_kl: Tensor,
    grad_log_rate: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    path: Tensor,
    counts: Tensor,
    slopes: Tensor,
    drives: Tensor,
    grad_errors: Tensor,
    grad_drives: Tensor,
    grad_means: Tensor | None,
    cfg: RolloutConfig,
) -> tuple[Tensor, Tensor]:
    """Fills ``grad_errors`` (whose fresh draws are given), ``grad_drives`` and, Gaussian, ``grad_means``.

    Returns:
        Gradients of log_lr, and of the log rate before the first step.
    """
    (pixels, neurons), rows, n = dictionary.shape, grad_log_rate.shape[-2], cfg.n_inner
    total, rows_class = cfg.steps * n, backend.next_power_of_2(max(rows, 1))
    product = PRODUCTS[cfg.matmul_precision]
    grads, priors = (grad_log_rate.new_empty((2, *grad_log_rate.shape)) for _ in range(2))
    products = grad_log_rate.new_empty((2, rows, neurons))
    lr_sums = log_lr.new_empty((*log_lr.shape, total, backend.ceil_div(neurons, NEURONS), rows))
    grads[(total + 1) % 2] = grad_log_rate

    def pull(i: int) -> None:
        def grid(meta: dict[str, int]) -> tuple[int]:
            tiles = backend.ceil_div(rows, meta["BLOCK_B"]) * backend.ceil_div(neurons, NEURONS)
            return (backend.check_grid(tiles),)

        pull_kernel[grid](
            *(grad_errors, dictionary, log_bias, log_lr, grad_kl, path, counts, slopes, drives),
            *(grads, priors, grad_drives, grad_means, lr_sums, products),
            *(i, total, rows, pixels, neurons, n, rows_class),
            *(cfg.leak, cfg.clamp_u, cfg.clamp_du, cfg.clamp_xi, cfg.clamp_dxi),
            CELL=CELLS.index(cfg.cell),
            PRODUCT=product,
            RELEASED=cfg.kl == "released",
            NEURONS=NEURONS,
            SLICE=SLICE,
            DEPTH=DEPTH,
        )

    def push(i: int) -> None:
        def grid(meta: dict[str, int]) -> tuple[int]:
            tiles = backend.ceil_div(rows, meta["BLOCK_B"]) * backend.ceil_div(pixels, PIXELS)
            return (backend.check_grid(tiles),)

        push_kernel[grid](
            *(grad_drives, dictionary, log_sigma, grad_errors, i, rows, pixels, neurons, n, rows_class),
            PRODUCT=product,
            PIXELS=PIXELS,
            DEPTH=DEPTH,
        )

    for i in reversed(range(total)):
        pull(i)
        push(i)
    pull(-1)
    return lr_sums.sum((-3, -2, -1)), grads[0]
