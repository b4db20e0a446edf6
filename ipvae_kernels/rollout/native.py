"""A whole rollout, or a whole backward, in one call of the compiled kernels, CPU and CUDA.

Signatures as in ``eager.py``; float32. Tensors are made contiguous here and kept alive while the kernel runs;
on CUDA, torch's allocator keeps their memory for the stream that they were made on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._native import (
    KLS,
    arrival_limit,
    cuda_limits,
    estimator_code,
    fill,
    launch,
    load,
    on_cuda,
    unsigned_seed,
)
from .config import CELLS, RolloutConfig
from .eager import RECORDS, Trace, record_shapes

_PARAMETERS = ("dictionary", "log_sigma", "log_bias", "log_lr")
_RECORD_FIELDS = {
    "log_rate": "log_rates",
    "kl": "kl_out",
}  # where the struct's names differ from the records'

LAYOUT = (0, 0, 0)
"""Kind of team, blocks of a team and rows of a tile that a CUDA rollout is to have, as in csrc/cuda/plan.h; 0
leaves each to the plan. Tests insist on each kind."""


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
    module = load()
    x, log_rate, parameters = (
        x.contiguous(),
        log_rate.contiguous(),
        _contiguous(dictionary, log_sigma, log_bias, log_lr),
    )
    names = [name for name in RECORDS if name in record]
    shapes = record_shapes(x.shape[-2], dictionary.shape, log_rate.shape)
    n_records = (cfg.step + cfg.steps) // record_every - cfg.step // record_every
    records = {name: x.new_empty((n_records, *shapes[name])) for name in names}
    final = torch.empty_like(log_rate)
    args = _args(module, x, dictionary, log_rate, cfg._replace(estimator="hard"))
    fill(args, log_rate_out=final, record_every=record_every)
    fill(args, **{_RECORD_FIELDS.get(name, name): tensor for name, tensor in records.items()})
    _run(module, args, parameters, seed, x)
    return [final, *records.values()]


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
    module = load()
    x, log_rate, parameters = (
        x.contiguous(),
        log_rate.contiguous(),
        _contiguous(dictionary, log_sigma, log_bias, log_lr),
    )
    batch, (pixels, neurons) = x.shape[-2], dictionary.shape
    updates, draws = cfg.steps * cfg.n_inner, (cfg.steps, cfg.n_inner + 1, batch)
    recon, kl = x.new_empty((cfg.steps, batch)), x.new_empty((cfg.steps, batch))
    path, drives = x.new_empty((updates + 1, *log_rate.shape)), x.new_empty((updates, batch, neurons))
    counts, slopes = x.new_empty((*draws, neurons)), x.new_empty((*draws, neurons))
    errors, final = x.new_empty((*draws, pixels)), torch.empty_like(log_rate)
    args = _args(module, x, dictionary, log_rate, cfg)
    fill(args, log_rate_out=final, record_every=1, recon=recon, kl_out=kl)
    _trajectory(args, path, counts, slopes, errors, drives)
    _run(module, args, parameters, seed, x)
    return recon, kl, final, path, counts, slopes, errors, drives


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
    module = load()
    x, parameters = x.contiguous(), _contiguous(dictionary, log_sigma, log_bias, log_lr)
    grad_recon, grad_kl, grad_log_rate = _contiguous(grad_recon, grad_kl, grad_log_rate)
    grad_x, grad_initial = torch.empty_like(x), torch.empty_like(grad_log_rate)
    args = fill(
        module.RolloutGradArgs(),
        grad_recon=grad_recon,
        grad_kl=grad_kl,
        grad_log_rate=grad_log_rate,
        grad_log_rate_in=grad_initial,
        grad_x=grad_x,
    )
    args.forward = _trajectory(
        _args(module, x, dictionary, path[0], cfg), path, counts, slopes, errors, drives
    )
    if on_cuda(x):
        grads = _cuda_backward(module, args, parameters, counts, errors, drives, cfg)
    else:
        grads = [torch.empty_like(parameter) for parameter in parameters]
        outputs = fill(module.ParameterGrads(), **dict(zip(_PARAMETERS, grads, strict=True)))
        module.rollout_grad(args, _parameters(module, parameters), outputs, torch.get_num_threads())
    return (grad_x, *grads, grad_initial)  # type: ignore[return-value]


def _run(module: Any, args: Any, parameters: tuple[Tensor, ...], seed: Tensor, x: Tensor) -> None:
    if not on_cuda(x):
        fill(args, seed=unsigned_seed(seed))
        module.rollout(args, _parameters(module, parameters), torch.get_num_threads())
        return
    plan, workspace = _layout(module, args, False, x)
    of_parameters = _parameters(module, parameters)
    module.cuda_rollout(args, of_parameters, seed.data_ptr(), plan, workspace.data_ptr(), launch(x))


def _layout(module: Any, args: Any, backward: bool, like: Tensor) -> tuple[Any, Tensor]:
    """The plan of a CUDA rollout, and the workspace it needs."""
    plan = module.cuda_plan(args, backward, cuda_limits(like.device), *LAYOUT)
    return plan, like.new_empty(plan.workspace_bytes, dtype=torch.uint8)


def _cuda_backward(
    module: Any,
    args: Any,
    parameters: tuple[Tensor, ...],
    counts: Tensor,
    errors: Tensor,
    drives: Tensor,
    cfg: RolloutConfig,
) -> list[Tensor]:
    """Gradients of dictionary, log_sigma, log_bias and log_lr; the others are written by the kernel.

    The kernel leaves the gradients of errors and drives, from which that of the dictionary is formed by two
    large products in torch, and sums over each tile, which are added up here: both in a fixed order.
    """
    dictionary, log_sigma, _, log_lr = parameters
    pixels, neurons = dictionary.shape
    plan, workspace = _layout(module, args.forward, True, errors)
    grad_errors, grad_drives = torch.empty_like(errors), torch.empty_like(drives)
    sizes = [pixels, neurons, log_lr.numel() * plan.team]
    partial = errors.new_empty((plan.tiles, sum(sizes)))
    fill(args, grad_errors=grad_errors, grad_drives=grad_drives, partial=partial)
    of_parameters = _parameters(module, parameters)
    module.cuda_rollout_grad(args, of_parameters, plan, workspace.data_ptr(), launch(errors))
    of_sigma, of_bias, of_lr = (part.sum(0) for part in torch.split(partial, sizes, 1))
    weighted = (errors[:, : cfg.n_inner] * torch.exp(-2.0 * log_sigma)).flatten(0, 2)
    of_dictionary = weighted.T @ grad_drives.flatten(0, 1)
    of_dictionary -= grad_errors.flatten(0, 2).T @ counts.flatten(0, 2)
    return [of_dictionary, of_sigma, of_bias, of_lr.view(-1, plan.team).sum(1).view(log_lr.shape)]


def _contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in tensors)


def _parameters(module: Any, parameters: tuple[Tensor, ...]) -> Any:
    return fill(module.Parameters(), **dict(zip(_PARAMETERS, parameters, strict=True)))


def _args(module: Any, x: Tensor, dictionary: Tensor, log_rate: Tensor, cfg: RolloutConfig) -> Any:
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
        leak=cfg.leak,
        clamp_u=cfg.clamp_u,
        clamp_du=cfg.clamp_du,
        temperature=cfg.temperature,
        n_arrivals=arrival_limit(cfg.n_arrivals),
        clamp_xi=cfg.clamp_xi,
        clamp_dxi=cfg.clamp_dxi,
        cell=CELLS.index(cfg.cell),
        estimator=estimator_code(cfg.estimator, cfg.temperature),
        kl=KLS.index(cfg.kl),
        single_draw=cfg.single_draw,
        x=x,
        x_step=batch * pixels if x.dim() == 3 else 0,
        log_rate=log_rate,
    )


def _trajectory(
    args: Any, path: Tensor, counts: Tensor, slopes: Tensor, errors: Tensor, drives: Tensor
) -> Any:
    return fill(args, path=path, drawn=counts, slopes=slopes, errors=errors, drives=drives)
