"""The kernels of the stepped driver: products with everything else in their epilogues; see ``stepped.py``."""

import triton
import triton.language as tl

from ...backend.triton.math import exp
from ...backend.triton.philox import load_key
from ...backend.triton.tuning import autotune, config
from .parts import (
    COUNTS,
    FEW,
    POISSON,
    add_product,
    add_rest,
    advance,
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
    decay: tl.float32,
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
    EXPECTED: tl.constexpr,
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
            update, j, n_inner, path_slots, wide, at, inside, leak, decay, clamp_u, clamp_du, clamp_xi,
            clamp_dxi, NEURONS, SINGLE, CELL,
        )  # fmt: skip
        if kl_sums_ptr is not None:
            if j == n_inner - 1:
                terms = tl.where(inside, kl_of(u, xi, prior, prior_xi, RELEASED, CELL), 0.0)
                sums = tl.sum(terms, axis=1)[:, None]
                tl.store(kl_sums_ptr + (t * neuron_tiles + tile) * n_rows + row, sums, mask=row < n_rows)
        for draw in range(first_draw, first_draw + n_draws):
            step, high = stream_of(draw, first_step, n_inner, SINGLE)
            counts, slopes = draw_from(
                u, xi, inside, k0, k1, sample, step, high, first, draw % (n_inner + 1) == n_inner,
                temperature, n_arrivals, NEURONS, ESTIMATOR, EXPECTED, CELL,
            )  # fmt: skip
            slot = tl.cast(draw, tl.int64) % draw_slots
            tl.store(counts_ptr + slot * wide + at, counts, mask=inside)
            if slopes_ptr is not None:
                tl.store(slopes_ptr + slot * wide + at, slopes, mask=inside)
            if largest_ptr is not None:
                largest = tl.max(tl.where(inside, counts, 0.0), axis=1)[:, None]
                largest_at = (slot * neuron_tiles + tile) * n_rows + row
                tl.store(largest_ptr + largest_at, largest, mask=row < n_rows)


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
    decay: tl.float32,
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
                n_inner, wide, at, inside, leak, decay, clamp_u, clamp_du, clamp_xi, clamp_dxi, CELL,
            )  # fmt: skip
            sums_at = (update * neuron_tiles + tile) * n_rows + row
            tl.store(lr_sums_ptr + sums_at, tl.sum(to_lr, axis=1)[:, None], mask=row < n_rows)
            if CELL != POISSON:
                sums_at += tl.cast(n_updates, tl.int64) * neuron_tiles * n_rows
                tl.store(lr_sums_ptr + sums_at, tl.sum(to_lr_xi, axis=1)[:, None], mask=row < n_rows)
        store_state(grad_u_ptr + later % 2 * states * wide, grad, grad_xi, wide, at, inside, CELL)
