"""What the compiled kernels take of a rollout; tensors are contiguous and float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend.compiled import arrival_limit, fill
from ..poisson.estimators import code
from .config import CELLS, KLS, RolloutConfig
from .eager import RECORDS, Trace, record_shapes

PARAMETERS = ("dictionary", "log_sigma", "log_bias", "log_lr")
_FIELDS = {"log_rate": "log_rates", "kl": "kl_out"}  # where the struct's names differ from the records'


def contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, dense in memory; the caller keeps them while a kernel runs."""
    return tuple(tensor.contiguous() for tensor in tensors)


def parameters(module: Any, tensors: Sequence[Tensor]) -> Any:
    """Dictionary, log_sigma, log_bias and log_lr."""
    return fill(module.Parameters(), **dict(zip(PARAMETERS, tensors, strict=True)))


def rollout(module: Any, x: Tensor, dictionary: Tensor, log_rate: Tensor, cfg: RolloutConfig) -> Any:
    """Sizes, constants, input and first state."""
    (pixels, neurons), batch = dictionary.shape, x.shape[-2]
    return fill(
        module.RolloutArgs(),
        n_steps=cfg.steps,
        n_inner=cfg.n_inner,
        n_rows=batch,
        n_inputs=pixels,
        n_latents=neurons,
        step=cfg.step,
        sample_offset=cfg.sample_offset,
        neuron_offset=cfg.neuron_offset,
        leak=cfg.leak,
        clamp_u=cfg.clamp_u,
        clamp_du=cfg.clamp_du,
        temperature=cfg.temperature,
        n_arrivals=arrival_limit(cfg.n_arrivals),
        clamp_xi=cfg.clamp_xi,
        clamp_dxi=cfg.clamp_dxi,
        cell=CELLS.index(cfg.cell),
        estimator=code(cfg.estimator, cfg.temperature),
        kl=KLS.index(cfg.kl),
        single_draw=cfg.single_draw,
        x=x,
        x_step=batch * pixels if x.dim() == 3 else 0,
        log_rate=log_rate,
    )


def infer(
    module: Any,
    x: Tensor,
    dictionary: Tensor,
    log_rate: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    record_every: int,
) -> tuple[Any, list[Tensor]]:
    """Arguments of inference, and what it writes: the final state, then the records in canonical order."""
    shapes = record_shapes(x.shape[-2], dictionary.shape, log_rate.shape)
    n_records = (cfg.step + cfg.steps) // record_every - cfg.step // record_every
    records = {name: x.new_empty((n_records, *shapes[name])) for name in RECORDS if name in record}
    final = torch.empty_like(log_rate)
    args = rollout(module, x, dictionary, log_rate, cfg._replace(estimator="hard"))
    fill(args, log_rate_out=final, record_every=record_every)
    fill(args, **{_FIELDS.get(name, name): tensor for name, tensor in records.items()})
    return args, [final, *records.values()]


def elbo(
    module: Any, x: Tensor, dictionary: Tensor, log_rate: Tensor, cfg: RolloutConfig
) -> tuple[Any, Trace]:
    """Arguments of the loss, and what it writes."""
    batch, (pixels, neurons) = x.shape[-2], dictionary.shape
    updates, draws = cfg.steps * cfg.n_inner, (cfg.steps, cfg.n_inner + 1, batch)
    recon, kl = x.new_empty((cfg.steps, batch)), x.new_empty((cfg.steps, batch))
    path, drives = x.new_empty((updates + 1, *log_rate.shape)), x.new_empty((updates, batch, neurons))
    counts, slopes = x.new_empty((*draws, neurons)), x.new_empty((*draws, neurons))
    errors, final = x.new_empty((*draws, pixels)), torch.empty_like(log_rate)
    args = rollout(module, x, dictionary, log_rate, cfg)
    fill(args, log_rate_out=final, record_every=1, recon=recon, kl_out=kl)
    trajectory(args, path, counts, slopes, errors, drives)
    return args, (recon, kl, final, path, counts, slopes, errors, drives)


def trajectory(
    args: Any, path: Tensor, counts: Tensor, slopes: Tensor, errors: Tensor, drives: Tensor
) -> Any:
    """The same arguments with what the backward needs."""
    return fill(args, path=path, drawn=counts, slopes=slopes, errors=errors, drives=drives)


def backward(module: Any, upstream: Sequence[Tensor], grad_x: Tensor, grad_log_rate_in: Tensor) -> Any:
    """Arguments of the backward but for those of its forward; upstream: of recon, kl and the final state."""
    grad_recon, grad_kl, grad_log_rate = upstream
    return fill(
        module.RolloutGradArgs(),
        grad_recon=grad_recon,
        grad_kl=grad_kl,
        grad_log_rate=grad_log_rate,
        grad_log_rate_in=grad_log_rate_in,
        grad_x=grad_x,
    )
