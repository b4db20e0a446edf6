"""The kernels of the resident driver, each one program per tile of rows: see ``resident.py``."""

import triton
import triton.language as tl

from ...backend.triton.math import any_of, exp
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

ROWS = 16  # of a program: the least of a matrix product
SCHEDULES = ((8, 1), (8, 2), (4, 1))  # warps, stages
FORWARD_CONFIGS = tuple(config(warps, stages) for warps, stages in SCHEDULES)
BACKWARD_CONFIGS = tuple(config(warps, stages, registers=248) for warps, stages in SCHEDULES)
NEURONS = 32  # of a chunk of the dictionary
DEPTH = 32  # of a product over pixels at a time


@triton.jit
def add_decoded(acc, latents, phi, DECODE: tl.constexpr):
    """Acc + latents phi, of any count."""
    acc = add_product(acc, latents, phi, DECODE)
    if DECODE == COUNTS:
        if any_of(latents > FEW):
            acc = add_rest(acc, latents, phi)
    return acc


@autotune(FORWARD_CONFIGS, key=("n_pixels", "n_neurons", "PRODUCT", "ESTIMATOR", "CELL"))
@triton.jit(do_not_specialize=("n_updates", "first_step", "sample_offset", "neuron_offset", "record_every"))
def forward_kernel(
    x_ptr,  # [B, M], or [T, B, M]
    dictionary_ptr,  # [M, K]
    log_sigma_ptr,  # [M]
    log_bias_ptr,  # [K]
    log_lr_ptr,  # [], or [2]
    start_ptr,  # [S, B, K]; S is 1, or 2 for mean and xi of a Gaussian cell
    seed_ptr,  # int64 []
    path_ptr,  # [path slots, S, B, K]
    errors_ptr,  # [error slots, B, M]
    drives_ptr,  # [T n_inner, B, K], or None; so may be all that follow
    counts_ptr,  # [T (n_inner + 1), B, K]
    slopes_ptr,  # [T (n_inner + 1), B, K]; Gaussian: standard normals
    recon_ptr,  # [R, B]
    kl_ptr,  # [R, B]
    squared_ptr,  # [R, B]
    spikes_ptr,  # [R, B]
    zeros_ptr,  # [R, B]
    record_log_rate_ptr,  # [R, S, B, K]
    record_counts_ptr,  # [R, B, K]
    record_mean_ptr,  # [R, B, M]
    n_updates,
    first_step,
    sample_offset,
    neuron_offset,
    record_every,
    x_step,
    n_rows,
    n_pixels,
    n_neurons,
    n_inner,
    path_slots,
    error_slots,
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
    DECODE: tl.constexpr,
    ESTIMATOR: tl.constexpr,
    SINGLE: tl.constexpr,
    EXPECTED: tl.constexpr,
    RELEASED: tl.constexpr,
    FRESH: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    NEURONS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """All steps of ROWS rows. FRESH: recorded steps take their fresh draw. PIXELS: at least M."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    pixel = tl.arange(0, PIXELS)[None, :]
    seen = (row < n_rows) & (pixel < n_pixels)
    states: tl.constexpr = 1 if CELL == POISSON else 2
    wide, narrow = tl.cast(n_rows, tl.int64) * n_neurons, tl.cast(n_rows, tl.int64) * n_pixels
    log_sigma = tl.load(log_sigma_ptr + pixel, mask=pixel < n_pixels, other=0.0)
    precision = exp(-2.0 * log_sigma)
    rate, rate_xi = load_rates(log_lr_ptr, CELL)
    k0, k1 = load_key(seed_ptr)
    sample = (row + sample_offset).to(tl.uint32)
    n_updates = tl.cast(n_updates, tl.int64)
    first_step = tl.cast(first_step, tl.int64)
    for back in range(-1, n_updates):  # pass -1 draws from the initial log rate
        i = tl.cast(back, tl.int64)
        t = tl.where(i < 0, 0, i // n_inner)
        j = tl.where(i < 0, 0, i % n_inner)
        draw_before = tl.where(i < 0, -1, t * (n_inner + 1) + j)
        last = (i >= 0) & (j == n_inner - 1)
        recorded = last & ((first_step + t + 1) % record_every == 0)
        record = (first_step + t + 1) // record_every - first_step // record_every - 1
        fresh_draw = t * (n_inner + 1) + n_inner
        error_ptr = errors_ptr + draw_before % error_slots * narrow
        # To draw: with the last update of a step its fresh counts, where wanted, then those of the next one.
        first_draw = draw_before + 1
        if last:
            if not FRESH or not recorded:
                first_draw += 1
        end_draw = tl.where(last, draw_before + 3, draw_before + 2)
        if i == n_updates - 1:
            end_draw -= 1
        mean_fresh = tl.zeros((ROWS, PIXELS), tl.float32)
        mean_next = tl.zeros((ROWS, PIXELS), tl.float32)
        kl_sum = tl.zeros((ROWS, 1), tl.float32)
        spikes = tl.zeros((ROWS, 1), tl.float32)
        silent = tl.zeros((ROWS, 1), tl.float32)
        for begin in range(0, n_neurons, NEURONS):
            neuron = begin + tl.arange(0, NEURONS)[None, :]
            inside = (row < n_rows) & (neuron < n_neurons)
            at = row * n_neurons + neuron
            if i < 0:
                u, xi = load_state(start_ptr, wide, at, inside, CELL)
                store_state(path_ptr, u, xi, wide, at, inside, CELL)
            else:
                drive = encode(
                    error_ptr, log_sigma_ptr, dictionary_ptr, row, neuron, n_rows, n_pixels, n_neurons,
                    ROWS, NEURONS, DEPTH, PRODUCT,
                )  # fmt: skip
                if drives_ptr is not None:
                    tl.store(drives_ptr + i * wide + at, drive, mask=inside)
                inhibition = exp(tl.load(log_bias_ptr + neuron, mask=neuron < n_neurons, other=0.0))
                u, xi, prior, prior_xi = advance(
                    drive, path_ptr, inhibition, rate, rate_xi, k0, k1, sample, begin + neuron_offset,
                    first_step, i, j, n_inner, path_slots, wide, at, inside, leak, decay, clamp_u, clamp_du,
                    clamp_xi, clamp_dxi, NEURONS, SINGLE, CELL,
                )  # fmt: skip
                if kl_ptr is not None:
                    if recorded:
                        terms = tl.where(inside, kl_of(u, xi, prior, prior_xi, RELEASED, CELL), 0.0)
                        kl_sum += tl.sum(terms, axis=1)[:, None]
                if record_log_rate_ptr is not None:
                    if recorded:
                        record_ptr = record_log_rate_ptr + record * states * wide
                        store_state(record_ptr, u, xi, wide, at, inside, CELL)
            # The counts first, then their products: samplers and the chunk would not share the registers.
            fresh = tl.zeros((ROWS, NEURONS), tl.float32)
            following = tl.zeros((ROWS, NEURONS), tl.float32)
            for draw in range(first_draw, end_draw):
                step, high = stream_of(draw, first_step, n_inner, SINGLE)
                counts, slopes = draw_from(
                    u, xi, inside, k0, k1, sample, step, high, begin + neuron_offset, draw == fresh_draw,
                    temperature, n_arrivals, NEURONS, ESTIMATOR, EXPECTED, CELL,
                )  # fmt: skip
                if counts_ptr is not None:
                    tl.store(counts_ptr + draw * wide + at, counts, mask=inside)
                if slopes_ptr is not None:
                    tl.store(slopes_ptr + draw * wide + at, slopes, mask=inside)
                counts = tl.where(inside, counts, 0.0)
                if draw == fresh_draw:
                    fresh = counts
                else:
                    following = counts
            phi = tl.load(  # transposed
                dictionary_ptr + pixel * n_neurons + tl.trans(neuron),
                mask=(pixel < n_pixels) & (tl.trans(neuron) < n_neurons),
                other=0.0,
            )
            if FRESH:
                if recorded:
                    mean_fresh = add_decoded(mean_fresh, fresh, phi, DECODE)
                    if record_counts_ptr is not None:
                        tl.store(record_counts_ptr + record * wide + at, fresh, mask=inside)
                    if spikes_ptr is not None:
                        spikes += tl.sum(fresh, axis=1)[:, None]
                    if zeros_ptr is not None:
                        silent += tl.sum(tl.where(inside & (fresh == 0.0), 1.0, 0.0), axis=1)[:, None]
            if i + 1 < n_updates:
                mean_next = add_decoded(mean_next, following, phi, DECODE)
        of_record = record * n_rows + row
        if recorded:
            if kl_ptr is not None:
                tl.store(kl_ptr + of_record, kl_sum, mask=row < n_rows)
            if FRESH:
                x = tl.load(x_ptr + t * x_step + row * n_pixels + pixel, mask=seen, other=0.0)
                error = tl.where(seen, x - mean_fresh, 0.0)
                tl.store(
                    errors_ptr + fresh_draw % error_slots * narrow + row * n_pixels + pixel, error, mask=seen
                )
                if recon_ptr is not None:
                    terms = 0.5 * error * error * precision + (log_sigma + 0.918938533)
                    recon = tl.sum(tl.where(seen, terms, 0.0), axis=1)[:, None]
                    tl.store(recon_ptr + of_record, recon, mask=row < n_rows)
                if squared_ptr is not None:
                    tl.store(
                        squared_ptr + of_record, tl.sum(error * error, axis=1)[:, None], mask=row < n_rows
                    )
                if spikes_ptr is not None:
                    tl.store(spikes_ptr + of_record, spikes, mask=row < n_rows)
                if zeros_ptr is not None:
                    tl.store(zeros_ptr + of_record, silent / n_neurons, mask=row < n_rows)
                if record_mean_ptr is not None:
                    tl.store(
                        record_mean_ptr + record * narrow + row * n_pixels + pixel, mean_fresh, mask=seen
                    )
        if i + 1 < n_updates:
            next_draw = end_draw - 1
            x = tl.load(
                x_ptr + next_draw // (n_inner + 1) * x_step + row * n_pixels + pixel, mask=seen, other=0.0
            )
            tl.store(
                errors_ptr + next_draw % error_slots * narrow + row * n_pixels + pixel,
                x - mean_next,
                mask=seen,
            )
        tl.debug_barrier()  # what this pass wrote of path and errors, the next one reads


@autotune(BACKWARD_CONFIGS, key=("n_pixels", "n_neurons", "PRODUCT", "CELL"))
@triton.jit(do_not_specialize=("n_updates",))
def backward_kernel(
    dictionary_ptr,  # [M, K]
    log_sigma_ptr,  # [M]
    log_bias_ptr,  # [K]
    log_lr_ptr,  # [], or [2]
    grad_kl_ptr,  # [T, B]
    grad_log_rate_ptr,  # [S, B, K]
    path_ptr,  # [T n_inner + 1, S, B, K]
    counts_ptr,  # [T (n_inner + 1), B, K]
    slopes_ptr,  # [T (n_inner + 1), B, K]
    drives_ptr,  # [T n_inner, B, K]
    grad_errors_ptr,  # [T (n_inner + 1), B, M]; those of fresh draws are given
    grad_u_ptr,  # [S, B, K]
    grad_prior_ptr,  # [2, S, B, K]
    grad_drives_ptr,  # [T n_inner, B, K]
    grad_means_ptr,  # [T n_inner, B, K], or None for a Poisson cell
    lr_sums_ptr,  # [S, row tiles]
    n_updates,
    n_rows,
    n_pixels,
    n_neurons,
    n_inner,
    leak: tl.float32,
    decay: tl.float32,
    clamp_u: tl.float32,
    clamp_du: tl.float32,
    clamp_xi: tl.float32,
    clamp_dxi: tl.float32,
    CELL: tl.constexpr,
    PRODUCT: tl.constexpr,
    RELEASED: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    NEURONS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The backward of all steps of ROWS rows: pass i finishes update i + 1 and takes update i."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    pixel = tl.arange(0, PIXELS)[None, :]
    seen = (row < n_rows) & (pixel < n_pixels)
    states: tl.constexpr = 1 if CELL == POISSON else 2
    wide, narrow = tl.cast(n_rows, tl.int64) * n_neurons, tl.cast(n_rows, tl.int64) * n_pixels
    precision = exp(-2.0 * tl.load(log_sigma_ptr + pixel, mask=pixel < n_pixels, other=0.0))
    rate, rate_xi = load_rates(log_lr_ptr, CELL)
    lr_sum = tl.zeros((ROWS, NEURONS), tl.float32)
    lr_sum_xi = lr_sum
    n_updates = tl.cast(n_updates, tl.int64)
    for back in range(0, n_updates + 1):
        later = n_updates - back
        i = later - 1
        t = tl.where(i < 0, 0, i // n_inner)
        j = tl.where(i < 0, 0, i % n_inner)
        later_draw = later // n_inner * (n_inner + 1) + later % n_inner
        fresh_draw = t * (n_inner + 1) + n_inner
        finishes = later < n_updates
        opens = (i >= 0) & (later % n_inner == 0)
        error = tl.zeros((ROWS, PIXELS), tl.float32)
        for begin in range(0, n_neurons, NEURONS):
            neuron = begin + tl.arange(0, NEURONS)[None, :]
            inside = (row < n_rows) & (neuron < n_neurons)
            at = row * n_neurons + neuron
            grad_prior = tl.zeros((ROWS, NEURONS), tl.float32)
            grad_prior_xi = grad_prior
            if finishes:
                grad, grad_xi = load_state(grad_u_ptr, wide, at, inside, CELL)
                product = encode(
                    grad_errors_ptr + later_draw * narrow, None, dictionary_ptr, row, neuron,
                    n_rows, n_pixels, n_neurons, ROWS, NEURONS, DEPTH, PRODUCT,
                )  # fmt: skip
                grad, grad_xi = through_draw(
                    grad, grad_xi, product, later_draw, later, path_ptr, counts_ptr, slopes_ptr,
                    wide, at, inside, CELL,
                )  # fmt: skip
                prior_ptr = grad_prior_ptr + later % 2 * states * wide
                grad_prior, grad_prior_xi = load_state(prior_ptr, wide, at, inside, CELL)
                if later % n_inner == 0:
                    grad += grad_prior
                    grad_xi += grad_prior_xi
            else:
                grad, grad_xi = load_state(grad_log_rate_ptr, wide, at, inside, CELL)
            # Not `if opens`: with a product in a branch here Triton 3.5 to 3.9 fail to compile n_inner > 1.
            for _ in range(0, opens.to(tl.int32)):
                product = encode(
                    grad_errors_ptr + fresh_draw * narrow, None, dictionary_ptr, row, neuron,
                    n_rows, n_pixels, n_neurons, ROWS, NEURONS, DEPTH, PRODUCT,
                )  # fmt: skip
                grad, grad_xi = through_draw(
                    grad, grad_xi, product, fresh_draw, later, path_ptr, counts_ptr, slopes_ptr,
                    wide, at, inside, CELL,
                )  # fmt: skip
                upstream = tl.load(grad_kl_ptr + t * n_rows + row, mask=row < n_rows, other=0.0)
                grad, grad_xi, grad_prior, grad_prior_xi = through_kl(
                    grad, grad_xi, upstream, i, j, path_ptr, wide, at, inside, RELEASED, CELL
                )
            if i >= 0:
                inhibition = exp(tl.load(log_bias_ptr + neuron, mask=neuron < n_neurons, other=0.0))
                grad, grad_xi, grad_drive, to_lr, to_lr_xi = update_backward(
                    grad, grad_xi, grad_prior, grad_prior_xi, path_ptr, drives_ptr, counts_ptr, slopes_ptr,
                    grad_prior_ptr, grad_drives_ptr, grad_means_ptr, inhibition, rate, rate_xi, i, j, n_inner,
                    wide, at, inside, leak, decay, clamp_u, clamp_du, clamp_xi, clamp_dxi, CELL,
                )  # fmt: skip
                lr_sum += to_lr
                lr_sum_xi += to_lr_xi
                phi = tl.load(  # transposed
                    dictionary_ptr + pixel * n_neurons + tl.trans(neuron),
                    mask=(pixel < n_pixels) & (tl.trans(neuron) < n_neurons),
                    other=0.0,
                )
                error = add_product(error, grad_drive, phi, PRODUCT)
            store_state(grad_u_ptr, grad, grad_xi, wide, at, inside, CELL)
        if i >= 0:
            draw = t * (n_inner + 1) + j
            tl.store(grad_errors_ptr + draw * narrow + row * n_pixels + pixel, error * precision, mask=seen)
        tl.debug_barrier()
    tl.store(lr_sums_ptr + tl.program_id(0), tl.sum(lr_sum))
    if CELL != POISSON:
        tl.store(lr_sums_ptr + tl.num_programs(0) + tl.program_id(0), tl.sum(lr_sum_xi))
