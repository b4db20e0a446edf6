"""The pointwise half of a step through Triton; signatures as in ``eager.py``, float32 on one NVIDIA GPU.

Forward: three tensors read, one written, 16 bytes an element, some 70 operations (two soft clamps). Backward:
four read, three written, 28 bytes. Both are bound by memory on every GPU served. The sums over rows of the
backward (for log_bias and log_lr) are added by a program over the rows of its group, kept per group, and
added over the groups by torch: a fixed order, so that two runs give the same bits; atomics would not.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import triton as backend
from ..backend.triton import poisson_cell as cell
from ..backend.triton.math import exp
from ..backend.triton.tuning import autotune, config

FORWARD_CONFIGS = (config(4, TILE=1024), config(4, TILE=2048), config(8, TILE=4096))
# With Triton 3.6 on sm_100 the assembler, left to itself, stops at 80 registers and spills 16 bytes.
BACKWARD_CONFIGS = (config(4, registers=96), config(2), config(8))
_WIDEST = 256  # neurons of a tile
_BACKWARD_TILE = 1024
_GROUPS = 256  # of rows, at most: partial sums of the backward


@autotune(FORWARD_CONFIGS, key=("n_neurons",))
@triton.jit
def forward_kernel(
    u_ptr,  # [N, K]
    prior_ptr,  # [N, K]
    drive_ptr,  # [N, K]
    log_bias_ptr,  # [K]
    log_lr_ptr,  # []
    new_ptr,  # [N, K]
    n_rows,
    n_neurons,
    leak: tl.float32,
    decay: tl.float32,
    clamp_u: tl.float32,
    clamp_du: tl.float32,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    """The new log rates of TILE / BLOCK_K rows by BLOCK_K neurons."""
    BLOCK_B: tl.constexpr = TILE // BLOCK_K
    tiles = tl.cdiv(n_neurons, BLOCK_K)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    neuron = (tl.program_id(0) % tiles) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    at = row * n_neurons + neuron
    inside = (row < n_rows) & (neuron < n_neurons)
    u = tl.load(u_ptr + at, mask=inside, other=0.0)
    prior = tl.load(prior_ptr + at, mask=inside, other=0.0)
    drive = tl.load(drive_ptr + at, mask=inside, other=0.0)
    inhibition = exp(tl.load(log_bias_ptr + neuron, mask=neuron < n_neurons, other=0.0))
    rate = exp(tl.load(log_lr_ptr))
    tl.store(
        new_ptr + at,
        cell.update(u, prior, drive, inhibition, rate, leak, decay, clamp_u, clamp_du),
        mask=inside,
    )


@autotune(BACKWARD_CONFIGS, key=("n_neurons",))
@triton.jit
def backward_kernel(
    grad_ptr,  # [N, K]
    u_ptr,  # [N, K]
    prior_ptr,  # [N, K]
    drive_ptr,  # [N, K]
    log_bias_ptr,  # [K]
    log_lr_ptr,  # []
    grad_u_ptr,  # [N, K]
    grad_prior_ptr,  # [N, K]
    grad_drive_ptr,  # [N, K]
    bias_sums_ptr,  # [groups, K]
    lr_sums_ptr,  # [groups, tiles]
    n_rows,
    n_neurons,
    rows_per_group,
    leak: tl.float32,
    decay: tl.float32,
    clamp_u: tl.float32,
    clamp_du: tl.float32,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Gradients of one group of rows by BLOCK_K neurons; ``rows_per_group`` is a multiple of BLOCK_B."""
    tiles = tl.cdiv(n_neurons, BLOCK_K)
    tile, group = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    neuron = tile * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    real = neuron < n_neurons
    inhibition = exp(tl.load(log_bias_ptr + neuron, mask=real, other=0.0))
    rate = exp(tl.load(log_lr_ptr))
    bias_sum = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    lr_sum = tl.zeros((BLOCK_B, BLOCK_K), tl.float32)
    for begin in range(0, rows_per_group, BLOCK_B):
        row = group * rows_per_group + begin + tl.arange(0, BLOCK_B)[:, None]
        at = row * n_neurons + neuron
        inside = (row < n_rows) & real
        to_u, to_prior, to_drive, to_lr = cell.update_grad(
            tl.load(grad_ptr + at, mask=inside, other=0.0),
            tl.load(u_ptr + at, mask=inside, other=0.0),
            tl.load(prior_ptr + at, mask=inside, other=0.0),
            tl.load(drive_ptr + at, mask=inside, other=0.0),
            inhibition,
            rate,
            leak,
            decay,
            clamp_u,
            clamp_du,
        )
        tl.store(grad_u_ptr + at, to_u, mask=inside)
        tl.store(grad_prior_ptr + at, to_prior, mask=inside)
        tl.store(grad_drive_ptr + at, to_drive, mask=inside)
        bias_sum -= tl.where(inside, to_drive, 0.0)
        lr_sum += tl.where(inside, to_lr, 0.0)
    total = tl.sum(bias_sum, axis=0)[None, :] * inhibition
    tl.store(bias_sums_ptr + group * n_neurons + neuron, total, mask=real)
    tl.store(lr_sums_ptr + group * tiles + tile, tl.sum(lr_sum))


def _block(neurons: int) -> int:
    return min(backend.next_power_of_2(neurons), _WIDEST)


def forward(
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    decay: float,
    clamp_u: float,
    clamp_du: float,
) -> Tensor:
    """The new log rate, [N, K]."""
    (rows, neurons), new = log_rate.shape, torch.empty_like(log_rate)
    if not log_rate.numel():
        return new
    block = _block(neurons)

    def grid(meta: dict[str, int]) -> tuple[int]:
        tiles = backend.ceil_div(neurons, block) * backend.ceil_div(rows, meta["TILE"] // block)
        return (backend.check_grid(tiles),)

    with backend.on_device_of(log_rate):
        tensors = (log_rate, log_rate_prior, drive, log_bias, log_lr, new)
        forward_kernel[grid](*tensors, rows, neurons, leak, decay, clamp_u, clamp_du, BLOCK_K=block)
    return new


def backward(
    grad: Tensor,
    log_rate: Tensor,
    log_rate_prior: Tensor,
    drive: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    leak: float,
    decay: float,
    clamp_u: float,
    clamp_du: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to its five tensors."""
    rows, neurons = log_rate.shape
    grads = torch.empty_like(log_rate), torch.empty_like(log_rate), torch.empty_like(log_rate)
    if not log_rate.numel():
        return (*grads, torch.zeros_like(log_bias), torch.zeros_like(log_lr))
    block = _block(neurons)
    block_rows = _BACKWARD_TILE // block
    per_group = backend.ceil_div(backend.ceil_div(rows, _GROUPS), block_rows) * block_rows
    groups, tiles = backend.ceil_div(rows, per_group), backend.ceil_div(neurons, block)
    bias_sums, lr_sums = log_rate.new_empty((groups, neurons)), log_rate.new_empty((groups, tiles))
    with backend.on_device_of(log_rate):
        backward_kernel[(backend.check_grid(groups * tiles),)](
            *(grad, log_rate, log_rate_prior, drive, log_bias, log_lr, *grads, bias_sums, lr_sums),
            *(rows, neurons, per_group, leak, decay, clamp_u, clamp_du),
            BLOCK_B=block_rows,
            BLOCK_K=block,
        )
    return (*grads, bias_sums.sum(0), lr_sums.sum())
