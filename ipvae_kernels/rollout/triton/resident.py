"""The resident driver: one program per tile of rows runs all steps in one launch, for moderate dictionaries.

Per update a program goes through the dictionary once, in chunks of neurons, from L2. A chunk [M, N] serves
all that a step does with these neurons: drive = (error / var) Phi, the update, the KL, the next draws, and
the share of these counts in the next reconstruction Phi z, which stays in registers [R, M] until all chunks
have passed (the chunk's second reading finds it in L1). So the state needs no registers: u is written and
read once per update (in training it is saved anyway), K is limited by time alone, and M by the registers of
two [R, M] tiles. What was considered:

- The whole [R, K] state in registers: at K = 512 the samplers' five tiles spill; a chunk holds few neurons a
  thread.
- The error in registers as a factor of the product: every warp needs all of its [16, M], in three TF32 parts;
  at M = 256 the compiler spilled 1.3 to 4.9 KB a thread. It goes through L1 in slices of 32 pixels instead.
- Gram form: K^2 words per update instead of K M, since a chunk of Phi is read from L2 once for both products;
  it would win for K < M, but a record of reconstructions needs Phi z (``docs/design/triton.md``).
- Event-driven products: a Triton program cannot gather columns by a list of its own making; the dense product
  of 16 rows costs a tensor core less than reading the chunk.

Floor: 4 K M bytes per update and program from L2, at some 64 bytes a clock of one SM: 5 microseconds for K =
512, M = 256 (estimated, not measured). The backward streams Phi once per update as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...backend import triton as backend
from ...poisson.estimators import code
from ..config import RolloutConfig
from ..problem import Inputs, Trajectory, Upstream
from .parts import PRODUCTS, Gradients, arrival_limit, cell_code, decode_product
from .resident_kernels import (
    DEPTH,
    NEURONS,
    ROWS,
    SCHEDULES,
    backward_kernel,
    forward_kernel,
)

PIXELS_MAX = 256  # of a device from compute capability 9.0 on: more would spill
PIXELS_MAX_BF16 = 128  # in "bf16", where relaxed counts of 256 spill 24 bytes on sm_90
PIXELS_MAX_OLD = 64  # with Triton before 3.6, whose code needs more registers, and with 4 warps


def pixels_max(major: int, matmul_precision: str) -> int:
    """The largest M that a device of this major compute capability holds in registers; 0 before 9."""
    if major < 9:
        return 0
    if backend.version() < (3, 6) or backend.warps_max(major) < SCHEDULES[0][0]:
        return PIXELS_MAX_OLD
    return PIXELS_MAX_BF16 if matmul_precision == "bf16" else PIXELS_MAX


def blocks(pixels: int) -> dict[str, int]:
    """Pixels of a tile, and neurons of a chunk."""
    return {
        "ROWS": ROWS,
        "PIXELS": max(backend.next_power_of_2(pixels), 16),
        "NEURONS": NEURONS,
        "DEPTH": DEPTH,
    }


class Kept(NamedTuple):
    """Where a forward keeps what it computes. With slots, index i lies in slot i modulo their number.

    Attributes:
        path: [path slots, B, K]; Gaussian cells [path slots, 2, B, K].
        errors: [draw slots, B, M].
        drives, counts, slopes: as in :class:`Trajectory`; None where no gradient is wanted.
    """

    path: Tensor
    errors: Tensor
    drives: Tensor | None = None
    counts: Tensor | None = None
    slopes: Tensor | None = None

    @classmethod
    def of(cls, kept: Trajectory) -> Kept:
        """A whole trajectory."""
        return cls(kept.path, kept.errors.flatten(0, 1), kept.drives, kept.counts, kept.slopes)


def forward(
    inputs: Inputs,
    seed: Tensor,
    cfg: RolloutConfig,
    kept: Kept,
    records: dict[str, Tensor],
    record_every: int,
    fresh: bool,
) -> None:
    """Fills ``kept`` and the records; ``fresh`` asks for the draws that the records and the loss need."""
    x, (pixels, neurons), rows = inputs.x, inputs.dictionary.shape, inputs.log_rate.shape[-2]
    names = ("recon", "kl", "squared_error", "spikes", "zeros", "log_rate", "counts", "reconstruction")
    forward_kernel[(backend.check_grid(backend.ceil_div(rows, ROWS)),)](
        *(*inputs, seed, *kept),
        *(records.get(name) for name in names),
        *(cfg.steps * cfg.n_inner, cfg.step, cfg.sample_offset, cfg.neuron_offset, record_every),
        *(rows * pixels if x.dim() == 3 else 0, rows, pixels, neurons, cfg.n_inner),
        *(len(kept.path), len(kept.errors)),
        *(cfg.leak, cfg.decay, cfg.clamp_u, cfg.clamp_du, cfg.clamp_xi, cfg.clamp_dxi),
        *(cfg.temperature, arrival_limit(cfg)),
        CELL=cell_code(cfg.cell),
        PRODUCT=PRODUCTS[cfg.matmul_precision],
        DECODE=decode_product(cfg),
        ESTIMATOR=code(cfg.estimator, cfg.temperature),
        SINGLE=cfg.single_draw,
        EXPECTED=cfg.expected,
        RELEASED=cfg.kl == "released",
        FRESH=fresh,
        **blocks(pixels),
    )


def backward(
    upstream: Upstream, inputs: Inputs, trajectory: Trajectory, grads: Gradients, cfg: RolloutConfig
) -> tuple[Tensor, Tensor]:
    """As ``stepped.backward``."""
    (pixels, neurons), rows = inputs.dictionary.shape, inputs.log_rate.shape[-2]
    grad_log_rate, log_lr = upstream.grad_log_rate, inputs.log_lr
    tiles = backend.check_grid(backend.ceil_div(rows, ROWS))
    grad, priors = torch.empty_like(grad_log_rate), grad_log_rate.new_empty((2, *grad_log_rate.shape))
    lr_sums = log_lr.new_empty((*log_lr.shape, tiles))
    backward_kernel[(tiles,)](
        *(inputs.dictionary, inputs.log_sigma, inputs.log_bias, log_lr, upstream.grad_kl, grad_log_rate),
        *(trajectory.path, trajectory.counts, trajectory.slopes, trajectory.drives),
        *(grads.errors, grad, priors, grads.drives, grads.means, lr_sums, cfg.steps * cfg.n_inner),
        *(rows, pixels, neurons, cfg.n_inner),
        *(cfg.leak, cfg.decay, cfg.clamp_u, cfg.clamp_du, cfg.clamp_xi, cfg.clamp_dxi),
        CELL=cell_code(cfg.cell),
        PRODUCT=PRODUCTS[cfg.matmul_precision],
        RELEASED=cfg.kl == "released",
        **blocks(pixels),
    )
    return lr_sums.sum(-1), grad
