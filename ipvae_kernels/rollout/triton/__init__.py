"""T whole steps through Triton; signatures and shapes as in ``eager.py``, contiguous float32 on one GPU.

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
from ...poisson.noise import PhiloxNoise
from .. import eager
from ..config import RolloutConfig
from ..eager import RECORDS, WITHOUT_DRAW, Step
from ..problem import Forward, Inputs, Trajectory, Upstream
from . import parts, resident, stepped
from .resident_kernels import ROWS
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
    waves = backend.ceil_div(backend.ceil_div(batch, ROWS), multiprocessors)
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
    inputs: Inputs, seed: Tensor, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
) -> list[Tensor]:
    """Inference with hard counts: the final log rate, then the records in canonical order."""
    cfg = cfg._replace(estimator="hard", temperature=0.0)
    x, log_rate, dictionary = inputs.x, inputs.log_rate, inputs.dictionary
    names = [name for name in RECORDS if name in record]
    batch, states = log_rate.shape[-2], cfg.n_inner + 1
    count = (cfg.step + cfg.steps) // record_every - cfg.step // record_every
    shapes = eager.record_shapes(batch, dictionary.shape, log_rate.shape)
    records = {name: x.new_empty((count, *shapes[name])) for name in names}
    if not batch:
        return [log_rate.clone(), *records.values()]
    fresh = any(name not in WITHOUT_DRAW for name in names)
    path = x.new_empty((states, *log_rate.shape))
    errors = x.new_empty((2, batch, x.shape[-1]))
    with backend.on_device_of(x):
        if _driver(batch, dictionary, cfg.matmul_precision) == "resident":
            kept = resident.Kept(path, errors)
            resident.forward(inputs, seed, cfg, kept, records, record_every, fresh)
        else:
            _record_stepped(inputs, seed, cfg, path, errors, records, record_every, fresh)
    return [path[cfg.steps * cfg.n_inner % states].clone(), *records.values()]


def _record_stepped(
    inputs: Inputs,
    seed: Tensor,
    cfg: RolloutConfig,
    path: Tensor,
    errors: Tensor,
    records: dict[str, Tensor],
    record_every: int,
    fresh: bool,
) -> None:
    """Inference by the stepped driver; path and errors have slots for two draws and the states of a step."""
    x, (batch, neurons), n = inputs.x, inputs.log_rate.shape[-2:], cfg.n_inner
    counts = x.new_empty((2, batch, neurons))
    buffers = Buffers(
        path=path,
        counts=counts,
        slopes=None,
        errors=errors,
        drives=x.new_empty((1, batch, neurons)),
        recon_sums=None,
        kl_sums=None,
        largest=stepped.largest_of(counts, cfg),
    )
    cell = make_cell(inputs.log_bias, inputs.log_lr, PhiloxNoise(seed), cfg)

    def recorded(t: int) -> bool:
        return bool(records) and (cfg.step + t + 1) % record_every == 0

    def write(t: int) -> None:
        if not recorded(t):
            return
        states = [path[i % (n + 1)] for i in (t * n, t * n + n)]
        slot = (t * (n + 1) + n) % 2
        step = Step(states, [Draw(*[counts[slot]] * 3)], [errors[slot]], [])
        for name, rows in records.items():
            frame = x[t] if x.dim() == 3 else x
            row = rows[(cfg.step + t + 1) // record_every - cfg.step // record_every - 1]
            row.copy_(RECORDS[name](step, cell, frame, inputs.log_sigma))

    stepped.forward(inputs, seed, cfg, buffers, lambda t: fresh and recorded(t), write)


def elbo(inputs: Inputs, seed: Tensor, cfg: RolloutConfig) -> Forward:
    """Both halves of the loss at every step, and what their gradient needs."""
    batch = inputs.x.shape[-2]
    kept = Trajectory.empty(inputs, cfg)
    recon, kl = (inputs.x.new_empty((cfg.steps, batch)) for _ in range(2))
    if not batch:
        kept.path[0] = inputs.log_rate
    elif _driver(batch, inputs.dictionary, cfg.matmul_precision) == "resident":
        with backend.on_device_of(inputs.x):
            resident.forward(inputs, seed, cfg, resident.Kept.of(kept), {"recon": recon, "kl": kl}, 1, True)
    else:
        buffers = Buffers.of(kept, inputs, cfg)
        with backend.on_device_of(inputs.x):
            stepped.forward(inputs, seed, cfg, buffers, lambda t: True, lambda t: None)
        assert buffers.recon_sums is not None
        assert buffers.kl_sums is not None
        recon, kl = buffers.recon_sums.sum(1), buffers.kl_sums.sum(1)
    return Forward(recon, kl, kept.path[-1].clone(), kept)


def elbo_backward(upstream: Upstream, inputs: Inputs, trajectory: Trajectory, cfg: RolloutConfig) -> Inputs:
    """The gradient of each input."""
    n, batch, errors = cfg.n_inner, inputs.x.shape[-2], trajectory.errors
    precision = torch.exp(-2.0 * inputs.log_sigma)
    grads = parts.Gradients(
        errors=torch.empty_like(errors),
        drives=torch.empty_like(trajectory.drives),
        means=torch.empty_like(trajectory.drives) if parts.stores_means(cfg.cell) else None,
    )
    grads.errors[:, n] = upstream.grad_recon.unsqueeze(-1) * errors[:, n] * precision
    grad_lr, grad = torch.zeros_like(inputs.log_lr), upstream.grad_log_rate.clone()
    if batch:
        chosen = _driver(batch, inputs.dictionary, cfg.matmul_precision)
        part = resident if chosen == "resident" else stepped
        with backend.on_device_of(inputs.x):
            grad_lr, grad = part.backward(upstream, inputs, trajectory, grads, cfg)
    gathered = eager.gather(upstream.grad_recon, inputs, trajectory, grads.errors, grads.drives, cfg)
    through_bias = grads.drives if grads.means is None else grads.means
    grad_bias = -torch.exp(inputs.log_bias) * through_bias.sum((0, 1))
    return gathered._replace(log_bias=grad_bias, log_lr=grad_lr, log_rate=grad)
