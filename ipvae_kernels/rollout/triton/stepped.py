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

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...backend import triton as backend
from ...poisson.estimators import code
from ..config import RolloutConfig
from ..problem import Inputs, Trajectory, Upstream
from .first_draw import first_draw
from .parts import COUNTS, PRODUCTS, Gradients, arrival_limit, cell_code, decode_product
from .stepped_kernels import (
    DEPTH,
    NEURONS,
    PIXELS,
    SLICE,
    pull_kernel,
    push_kernel,
    residual_kernel,
    update_kernel,
)


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

    @classmethod
    def of(cls, kept: Trajectory, inputs: Inputs, cfg: RolloutConfig) -> Buffers:
        """A whole trajectory, and sums for the loss."""
        (pixels, neurons), batch = inputs.dictionary.shape, inputs.x.shape[-2]
        counts = kept.counts.flatten(0, 1)
        return cls(
            path=kept.path,
            counts=counts,
            slopes=kept.slopes.flatten(0, 1),
            errors=kept.errors.flatten(0, 1),
            drives=kept.drives,
            recon_sums=counts.new_empty((cfg.steps, backend.ceil_div(pixels, PIXELS), batch)),
            kl_sums=counts.new_empty((cfg.steps, backend.ceil_div(neurons, NEURONS), batch)),
            largest=largest_of(counts, cfg),
        )


def largest_of(counts: Tensor, cfg: RolloutConfig) -> Tensor | None:
    """``Buffers.largest`` for counts [draw slots, B, K]."""
    if decode_product(cfg) != COUNTS.value:
        return None
    slots, rows, neurons = counts.shape
    return counts.new_zeros((slots, backend.ceil_div(neurons, NEURONS), rows))


Meet = Callable[[list[Tensor]], None]
"""The seam of a step: of neurons in parts, each part has the sum of its own alone, [B, M] a draw, and has to
get that over all parts in its place. Of a forward these are errors, to which one part brings the input and
the others zeros; ``Buffers.recon_sums`` would be of each part by itself, so it has to be None."""


def forward(
    inputs: Inputs,
    seed: Tensor,
    cfg: RolloutConfig,
    buffers: Buffers,
    wants_fresh: Callable[[int], bool],
    after_step: Callable[[int], None],
    meet: Meet | None = None,
) -> None:
    """Runs all steps; ``wants_fresh(t)`` asks for the fresh draw of step t, ``after_step(t)`` follows it."""
    n, total = cfg.n_inner, cfg.steps * cfg.n_inner
    buffers.path[0] = inputs.log_rate
    slopes = None if buffers.slopes is None else buffers.slopes[0]
    first_draw(inputs.log_rate, seed, cfg, buffers.counts[0], slopes)
    if buffers.largest is not None:
        buffers.largest[0] = buffers.counts[0].amax(1)
    _residual(inputs, cfg, buffers, 0, 1, meet)
    for i in range(total):
        t, j = divmod(i, n)
        draw = t * (n + 1) + j
        last, more = j == n - 1, i + 1 < total
        # After draw comes, with the last update of a step, the fresh one, and then the next update's.
        first = draw + 2 if last and not wants_fresh(t) else draw + 1
        end = draw + 2 + (last and more) if last else draw + 2
        _update(inputs, seed, cfg, buffers, i, first, end - first)
        if end > first:
            _residual(inputs, cfg, buffers, first, end - first, meet)
        if last:
            after_step(t)


def _rows_class(inputs: Inputs) -> int:
    return backend.next_power_of_2(max(inputs.x.shape[-2], 1))


def _residual(
    inputs: Inputs, cfg: RolloutConfig, buffers: Buffers, first: int, count: int, meet: Meet | None
) -> None:
    """Decodes draws first .. first + count - 1: errors x - Phi z."""
    (pixels, neurons), rows, slots = inputs.dictionary.shape, inputs.x.shape[-2], len(buffers.counts)
    x_step = rows * pixels if inputs.x.dim() == 3 else 0

    def grid(meta: dict[str, int]) -> tuple[int]:
        tiles = backend.ceil_div(rows, meta["BLOCK_B"]) * backend.ceil_div(pixels, PIXELS)
        return (backend.check_grid(tiles * count),)

    residual_kernel[grid](
        *(buffers.counts, inputs.x, inputs.dictionary, inputs.log_sigma),
        *(buffers.errors, buffers.recon_sums, buffers.largest),
        *(first, x_step, rows, pixels, neurons, cfg.n_inner, slots),
        *(backend.ceil_div(neurons, NEURONS), _rows_class(inputs)),
        PRODUCT=decode_product(cfg),
        PIXELS=PIXELS,
        DEPTH=DEPTH,
    )
    if meet is not None:
        meet([buffers.errors[draw % slots] for draw in range(first, first + count)])


def _update(
    inputs: Inputs, seed: Tensor, cfg: RolloutConfig, buffers: Buffers, i: int, first: int, count: int
) -> None:
    """Encodes the error of update i, takes the update, and draws first .. first + count - 1 from its end."""
    (pixels, neurons), rows = inputs.dictionary.shape, inputs.x.shape[-2]

    def grid(meta: dict[str, int]) -> tuple[int]:
        tiles = backend.ceil_div(rows, meta["BLOCK_B"]) * backend.ceil_div(neurons, NEURONS)
        return (backend.check_grid(tiles),)

    update_kernel[grid](
        *(buffers.errors, inputs.dictionary, inputs.log_sigma, inputs.log_bias, inputs.log_lr, seed),
        *(buffers.path, buffers.drives, buffers.counts, buffers.slopes, buffers.kl_sums, buffers.largest),
        *(i, first, count, cfg.step, cfg.sample_offset, cfg.neuron_offset),
        *(rows, pixels, neurons, cfg.n_inner),
        *(len(buffers.path), len(buffers.drives), len(buffers.counts), _rows_class(inputs)),
        *(cfg.leak, cfg.decay, cfg.clamp_u, cfg.clamp_du, cfg.clamp_xi, cfg.clamp_dxi),
        *(cfg.temperature, arrival_limit(cfg)),
        CELL=cell_code(cfg.cell),
        PRODUCT=PRODUCTS[cfg.matmul_precision],
        ESTIMATOR=code(cfg.estimator, cfg.temperature),
        SINGLE=cfg.single_draw,
        EXPECTED=cfg.expected,
        RELEASED=cfg.kl == "released",
        NEURONS=NEURONS,
        SLICE=SLICE,
        DEPTH=DEPTH,
    )


def backward(
    upstream: Upstream,
    inputs: Inputs,
    trajectory: Trajectory,
    grads: Gradients,
    cfg: RolloutConfig,
    meet: Meet | None = None,
) -> tuple[Tensor, Tensor]:
    """Fills ``grads``, in which the errors of the fresh draws are given; ``meet`` as of :func:`forward`.

    Returns:
        Gradients of log_lr, and of the log rate before the first step.
    """
    neurons, rows, total = inputs.log_bias.numel(), inputs.x.shape[-2], cfg.steps * cfg.n_inner
    last, log_lr, n = upstream.grad_log_rate, inputs.log_lr, cfg.n_inner
    states, priors = (last.new_empty((2, *last.shape)) for _ in range(2))
    products = last.new_empty((2, rows, neurons))
    lr_sums = log_lr.new_empty((*log_lr.shape, total, backend.ceil_div(neurons, NEURONS), rows))
    states[(total + 1) % 2] = last

    def pull(i: int) -> None:
        def grid(meta: dict[str, int]) -> tuple[int]:
            tiles = backend.ceil_div(rows, meta["BLOCK_B"]) * backend.ceil_div(neurons, NEURONS)
            return (backend.check_grid(tiles),)

        pull_kernel[grid](
            *(grads.errors, inputs.dictionary, inputs.log_bias, log_lr, upstream.grad_kl),
            *(trajectory.path, trajectory.counts, trajectory.slopes, trajectory.drives),
            *(states, priors, grads.drives, grads.means, lr_sums, products),
            *(i, total, rows, inputs.x.shape[-1], neurons, n, _rows_class(inputs)),
            *(cfg.leak, cfg.decay, cfg.clamp_u, cfg.clamp_du, cfg.clamp_xi, cfg.clamp_dxi),
            CELL=cell_code(cfg.cell),
            PRODUCT=PRODUCTS[cfg.matmul_precision],
            RELEASED=cfg.kl == "released",
            NEURONS=NEURONS,
            SLICE=SLICE,
            DEPTH=DEPTH,
        )

    for i in reversed(range(total)):
        pull(i)
        _push(inputs, grads, cfg, i)
        if meet is not None:
            meet([grads.errors[i // n, i % n]])
    pull(-1)
    return lr_sums.sum((-3, -2, -1)), states[0]


def _push(inputs: Inputs, grads: Gradients, cfg: RolloutConfig, i: int) -> None:
    """From the gradient of the drive of update i to that of its error."""
    (pixels, neurons), rows = inputs.dictionary.shape, inputs.x.shape[-2]

    def grid(meta: dict[str, int]) -> tuple[int]:
        tiles = backend.ceil_div(rows, meta["BLOCK_B"]) * backend.ceil_div(pixels, PIXELS)
        return (backend.check_grid(tiles),)

    push_kernel[grid](
        *(grads.drives, inputs.dictionary, inputs.log_sigma, grads.errors),
        *(i, rows, pixels, neurons, cfg.n_inner, _rows_class(inputs)),
        PRODUCT=PRODUCTS[cfg.matmul_precision],
        PIXELS=PIXELS,
        DEPTH=DEPTH,
    )
