"""Poisson counts through Triton; signatures and shapes as in ``eager.py``, float32 on one NVIDIA GPU.

One pass: a log rate is read once, its count and its slope d count / d log rate are written together, so that
the backward is one product. Floors for n elements: 8 n bytes for hard counts, 12 n with slopes. Operations:
Philox costs some 80 integer instructions, shared by four neurons where one word suffices, and again for every
four further arrivals of the tile's slowest neuron; exp, log and the indicator some 60. At 3.3 TB/s and 3e13
instructions/s the two floors meet near 100 instructions an element, so the samplers are bound by arithmetic,
and by the slowest neuron of a tile. Hence small tiles of a single warp: the loop of a tile of 128 neurons
ends when those are done, and asking whether they are is a warp vote, without a barrier.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import triton as backend
from ..backend.triton import poisson
from ..backend.triton.philox import load_key
from ..backend.triton.tuning import autotune, config
from ..philox import Stream
from .estimators import code

CONFIGS = (config(1, TILE=128), config(2, TILE=256), config(4, TILE=512))
_WIDEST = 128  # neurons of a tile


@autotune(CONFIGS, key=("n_neurons", "ESTIMATOR"))
@triton.jit(do_not_specialize=("high", "step", "sample_offset", "neuron_offset", "temperature"))
def draw_kernel(
    log_rate_ptr,  # [B, K]
    seed_ptr,  # int64 []
    counts_ptr,  # [B, K]
    slopes_ptr,  # [B, K], or None where they are zero
    n_rows,
    n_neurons,
    high,
    step,
    sample_offset,
    neuron_offset,
    temperature,
    n_arrivals,
    ESTIMATOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """Counts, and slopes where asked for, of TILE / BLOCK_K rows by BLOCK_K neurons."""
    BLOCK_B: tl.constexpr = TILE // BLOCK_K
    tiles = tl.cdiv(n_neurons, BLOCK_K)
    first = (tl.program_id(0) % tiles) * BLOCK_K
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    neuron = first + tl.arange(0, BLOCK_K)[None, :]
    at = row * n_neurons + neuron
    inside = (row < n_rows) & (neuron < n_neurons)
    u = tl.load(log_rate_ptr + at, mask=inside, other=-20.0)
    k0, k1 = load_key(seed_ptr)
    sample = (row + sample_offset).to(tl.uint32)
    counts, slopes = poisson.draw(
        u,
        k0,
        k1,
        sample,
        step.to(tl.uint32),
        high.to(tl.uint32),
        first + neuron_offset,
        temperature,
        n_arrivals,
        BLOCK_K,
        ESTIMATOR,
    )
    tl.store(counts_ptr + at, counts, mask=inside)
    if slopes_ptr is not None:
        tl.store(slopes_ptr + at, slopes, mask=inside)


def draw_into(
    log_rate: Tensor,
    seed: Tensor,
    stream: Stream,
    estimator: int,
    temperature: float,
    n_arrivals: int | None,
    counts: Tensor,
    slopes: Tensor | None,
) -> None:
    """Writes counts, and slopes unless None, [B, K] each, of log rates [B, K]; all contiguous.

    ``estimator`` is a number that ``backend.triton.poisson.draw`` knows.
    """
    rows, neurons = log_rate.shape
    if not log_rate.numel():
        return
    block = min(max(backend.next_power_of_2(neurons), 4), _WIDEST)

    def grid(meta: dict[str, int]) -> tuple[int]:
        tiles = backend.ceil_div(neurons, block) * backend.ceil_div(rows, meta["TILE"] // block)
        return (backend.check_grid(tiles),)

    with backend.on_device_of(log_rate):
        draw_kernel[grid](
            log_rate,
            seed,
            counts,
            slopes,
            rows,
            neurons,
            stream.high_word,
            stream.step,
            stream.sample_offset,
            stream.neuron_offset,
            float(temperature),
            None if n_arrivals is None else float(n_arrivals),
            ESTIMATOR=estimator,
            BLOCK_K=block,
        )


def sample(log_rate: Tensor, seed: Tensor, stream: Stream) -> Tensor:
    """Hard counts [B, K]."""
    log_rate = log_rate.contiguous()
    counts = torch.empty_like(log_rate)
    draw_into(log_rate, seed, stream, code("hard", 0.0), 0.0, None, counts, None)
    return counts


def rsample(
    log_rate: Tensor, seed: Tensor, stream: Stream, estimator: str, temperature: float, n_arrivals: int | None
) -> tuple[Tensor, Tensor]:
    """Counts and their slopes d count / d log_rate, both [B, K]."""
    log_rate = log_rate.contiguous()
    counts, slopes = torch.empty_like(log_rate), torch.empty_like(log_rate)
    number = code(estimator, temperature)
    draw_into(log_rate, seed, stream, number, temperature, n_arrivals, counts, slopes)
    return counts, slopes
