"""The first draw of a rollout, from the initial state: later ones share the epilogue of an update."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...backend import triton as backend
from ...backend.triton.philox import load_key
from ...backend.triton.poisson import EXPECTED
from ...cells import CELLS
from ...poisson.estimators import code
from ...poisson.triton import draw_into
from ..config import RolloutConfig
from ..schedule import update_stream
from .parts import cell_code, draw_from, load_state

ROWS = 16  # of a program
NEURONS = 64


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
        first + neuron_offset, True, 0.0, None, NEURONS, 0, False, CELL,
    )  # fmt: skip
    tl.store(latents_ptr + at, latents, mask=inside)
    if normals_ptr is not None:
        tl.store(normals_ptr + at, normals, mask=inside)


def first_draw(
    state: Tensor, seed: Tensor, cfg: RolloutConfig, counts: Tensor, slopes: Tensor | None
) -> None:
    """Draws counts and slopes [B, K] (Gaussian cells: latents and standard normals) from a state."""
    stream = update_stream(cfg, 0, 0)
    if CELLS[cfg.cell].counts:
        number = int(EXPECTED.value) if cfg.expected else code(cfg.estimator, cfg.temperature)
        draw_into(state, seed, stream, number, cfg.temperature, cfg.n_arrivals, counts, slopes)
        return
    rows, neurons = counts.shape
    tiles = backend.ceil_div(rows, ROWS) * backend.ceil_div(neurons, NEURONS)
    latents_kernel[(backend.check_grid(tiles),)](
        *(state, seed, counts, slopes, rows, neurons, stream.high_word, stream.step),
        *(stream.sample_offset, stream.neuron_offset),
        CELL=cell_code(cfg.cell),
        ROWS=ROWS,
        NEURONS=NEURONS,
    )
