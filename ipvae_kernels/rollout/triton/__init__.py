"""T whole steps through Triton; signatures and shapes as in ``eager.py``, float32 on one NVIDIA GPU.

Two drivers over the same parts (``parts.py``): ``resident.py`` runs all steps in one launch,
``stepped.py`` two products per update for dictionaries of any size. Neither waits for the device, so a
call can be captured in a CUDA graph once its kernels are compiled and tuned, that is, after one call of the
same sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ...backend import triton as backend
from ...cells import Draw, make_cell
from ...poisson.eager import PhiloxNoise
from .. import eager
from ..config import RolloutConfig
from ..eager import RECORDS, WITHOUT_DRAW, Step, Trace
from . import parts, resident, stepped
from .stepped import Buffers

_SM_BANDWIDTH = 1e11  # bytes/s that one SM draws from L2, as of an H100: 64 bytes a clock
_LAUNCHES = 1e-5  # s, the two kernels of a stepped update with their start and end
_PRODUCTS = 1e14  # operations/s of float32-grade products on tensor cores, as of an H100


def choose_driver(
    batch: int,
    pixels: int,
    neurons: int,
    matmul_precision: str = "float32",
    multiprocessors: int = 132,
    major: int = 9,
) -> str:
    """The driver, "resident" or "stepped", whose estimated time per update is less.

    The device is described by its number of multiprocessors and its major compute capability; an H100 if
    left out. The constants above are estimates from data sheets; no GPU has measured the crossover yet.
    """
    if pixels > resident.pixels_max(major, matmul_precision):
        return "stepped"
    waves = backend.ceil_div(backend.ceil_div(batch, resident.ROWS), multiprocessors)
    in_one = waves * 4 * pixels * neurons / _SM_BANDWIDTH
    in_two = _LAUNCHES + 4 * batch * pixels * neurons / _PRODUCTS
    return "resident" if in_one <= in_two else "stepped"


# Of the process and not of a thread: autograd runs the backward of a GPU's tensors in threads of its own.
_insisted: str | None = None


@contextlib.contextmanager
def driver(name: str) -> Iterator[None]:
    """Insists on a driver, "resident" or "stepped", for every rollout of the process until its end."""
    global _insisted
    before, _insisted = _insisted, name
    try:
        yield
    finally:
        _insisted = before


def _driver(batch: int, dictionary: Tensor, matmul_precision: str) -> str:
    if _insisted is not None:
        return _insisted
    pixels, neurons = dictionary.shape
    if dictionary.is_cuda:
        properties = torch.cuda.get_device_properties(dictionary.device)
        limits = properties.multi_processor_count, properties.major
        return choose_driver(batch, pixels, neurons, matmul_precision, *limits)
    return choose_driver(batch, pixels, neurons, matmul_precision)


def infer(
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    log_rate: Tensor,
    seed: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    record_every: int,
) -> list[Tensor]:
    """Inference with hard counts: the final log rate, then the records in canonical order."""
    cfg = cfg._replace(estimator="hard", temperature=0.0)
    names = [name for name in RECORDS if name in record]
    batch, (pixels, neurons), n = log_rate.shape[-2], dictionary.shape, cfg.n_inner
    before = cfg.step // record_every
    count = (cfg.step + cfg.steps) // record_every - before
    shapes = eager.record_shapes(batch, dictionary.shape, log_rate.shape)
    records = {name: x.new_empty((count, *shapes[name])) for name in names}
    if not batch:
        return [log_rate.clone(), *records.values()]
    fresh = any(name not in WITHOUT_DRAW for name in names)
    if _driver(batch, dictionary, cfg.matmul_precision) == "resident":
        path = x.new_empty((n + 1, *log_rate.shape))
        with backend.on_device_of(x):
            resident.forward(
                x, dictionary, log_sigma, log_bias, log_lr, log_rate, seed, cfg, path,
                x.new_empty((2, batch, pixels)), (None, None, None), records, record_every, fresh,
            )  # fmt: skip
        return [path[cfg.steps * n % (n + 1)].clone(), *records.values()]
    counts = x.new_empty((2, batch, neurons))
    buffers = Buffers(
        path=x.new_empty((n + 1, *log_rate.shape)),
        counts=counts,
        slopes=None,
        errors=x.new_empty((2, batch, pixels)),
        drives=x.new_empty((1, batch, neurons)),
        recon_sums=None,
        kl_sums=None,
        largest=stepped.largest_of(counts, cfg),
    )
    buffers.path[0] = log_rate
    cell = make_cell(log_bias, log_lr, PhiloxNoise(seed), cfg)

    def recorded(t: int) -> bool:
        return bool(names) and (cfg.step + t + 1) % record_every == 0

    def write(t: int) -> None:
        if not recorded(t):
            return
        states = [buffers.path[i % (n + 1)] for i in (t * n, t * n + n)]
        slot = (t * (n + 1) + n) % 2
        counts, error = buffers.counts[slot], buffers.errors[slot]
        step = Step(states, [Draw(counts, counts, counts)], [error], [])
        for name in names:
            frame = x[t] if x.dim() == 3 else x
            row = records[name][(cfg.step + t + 1) // record_every - before - 1]
            row.copy_(RECORDS[name](step, cell, frame, log_sigma))

    with backend.on_device_of(x):
        stepped.forward(
            x, dictionary, log_sigma, log_bias, log_lr, seed, cfg, buffers,
            lambda t: fresh and recorded(t), write,
        )  # fmt: skip
    return [buffers.path[cfg.steps * n % (n + 1)].clone(), *records.values()]


def elbo(
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    log_rate: Tensor,
    seed: Tensor,
    cfg: RolloutConfig,
) -> Trace:
    """Both halves of the loss at every step, and what their gradient needs."""
    batch, (pixels, neurons) = x.shape[-2], dictionary.shape
    updates, draws = cfg.steps * cfg.n_inner, cfg.steps * (cfg.n_inner + 1)
    path, drives = x.new_empty((updates + 1, *log_rate.shape)), x.new_empty((updates, batch, neurons))
    counts, slopes = x.new_empty((draws, batch, neurons)), x.new_empty((draws, batch, neurons))
    errors = x.new_empty((draws, batch, pixels))
    tensors = (x, dictionary, log_sigma, log_bias, log_lr)
    if not batch:
        path[0], recon, kl = log_rate, x.new_empty((cfg.steps, 0)), x.new_empty((cfg.steps, 0))
    elif _driver(batch, dictionary, cfg.matmul_precision) == "resident":
        recon, kl = x.new_empty((cfg.steps, batch)), x.new_empty((cfg.steps, batch))
        with backend.on_device_of(x):
            resident.forward(
                *tensors, log_rate, seed, cfg, path, errors, (drives, counts, slopes),
                {"recon": recon, "kl": kl}, 1, True,
            )  # fmt: skip
    else:
        path[0] = log_rate
        recon_sums, kl_sums = map(x.new_empty, stepped.sums_shape(cfg, batch, dictionary))
        largest = stepped.largest_of(counts, cfg)
        buffers = Buffers(path, counts, slopes, errors, drives, recon_sums, kl_sums, largest)
        with backend.on_device_of(x):
            stepped.forward(*tensors, seed, cfg, buffers, lambda t: True, lambda t: None)
        recon, kl = recon_sums.sum(1), kl_sums.sum(1)
    of_draws = (cfg.steps, cfg.n_inner + 1)
    trajectory = (path, *(part.unflatten(0, of_draws) for part in (counts, slopes, errors)), drives)
    return recon, kl, path[-1].clone(), *trajectory


def elbo_backward(
    grad_recon: Tensor,
    grad_kl: Tensor,
    grad_log_rate: Tensor,
    x: Tensor,
    dictionary: Tensor,
    log_sigma: Tensor,
    log_bias: Tensor,
    log_lr: Tensor,
    path: Tensor,
    counts: Tensor,
    slopes: Tensor,
    errors: Tensor,
    drives: Tensor,
    cfg: RolloutConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dictionary, log_sigma, log_bias, log_lr and of the initial log rate."""
    n = cfg.n_inner
    precision = torch.exp(-2.0 * log_sigma)
    grad_errors, grad_drives = torch.empty_like(errors), torch.empty_like(drives)
    grad_errors[:, n] = grad_recon.unsqueeze(-1) * errors[:, n] * precision
    # Gaussian cells: the gradient of minus the inhibition, which is not that of the drive.
    grad_means = torch.empty_like(drives) if parts.stores_means(cfg.cell) else None
    grad_lr, grad, batch = torch.zeros_like(log_lr), grad_log_rate.clone(), grad_log_rate.shape[-2]
    if batch:
        part = resident if _driver(batch, dictionary, cfg.matmul_precision) == "resident" else stepped
        with backend.on_device_of(x):
            grad_lr, grad = part.backward(
                grad_kl, grad_log_rate, dictionary, log_sigma, log_bias, log_lr, path, counts,
                slopes, drives, grad_errors, grad_drives, grad_means, cfg,
            )  # fmt: skip
    gathered = eager.gather(grad_recon, x, precision, counts, errors, grad_errors, grad_drives, cfg)
    through_bias = grad_drives if grad_means is None else grad_means
    grad_bias = -torch.exp(log_bias) * through_bias.sum((0, 1))
    return (*gathered, grad_bias, grad_lr, grad)
