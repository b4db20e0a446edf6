"""What the compiled kernels take of a rollout; tensors are contiguous and float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import cells
from ..backend.compiled import arrival_limit, fill
from ..poisson import divergence
from ..poisson.estimators import code
from .config import RolloutConfig
from .eager import RECORDS, record_shapes
from .problem import PARAMETERS, Forward, Inputs, Trajectory, Upstream

# Where the structs' names differ.
_RECORDS = {"log_rate": "log_rates", "kl": "kl_out"}
_TRAJECTORY = {"counts": "drawn"}


def parameters(module: Any, inputs: Inputs) -> Any:
    """Dictionary, log_sigma, log_bias and log_lr."""
    return fill(module.Parameters(), **{name: getattr(inputs, name) for name in PARAMETERS})


def parameter_grads(module: Any, grads: Inputs) -> Any:
    """The same of gradients, which a kernel writes."""
    return fill(module.ParameterGrads(), **{name: getattr(grads, name) for name in PARAMETERS})


def rollout(module: Any, inputs: Inputs, cfg: RolloutConfig) -> Any:
    """Sizes, constants, input and first state."""
    x, (pixels, neurons) = inputs.x, inputs.dictionary.shape
    batch = x.shape[-2]
    args = fill(module.RolloutArgs(), x=x, log_rate=inputs.log_rate)
    # One by one: as arguments of fill these took a tenth of a call of one step.
    args.n_steps, args.n_inner, args.n_rows = cfg.steps, cfg.n_inner, batch
    args.n_inputs, args.n_latents = pixels, neurons
    args.step, args.sample_offset, args.neuron_offset = cfg.step, cfg.sample_offset, cfg.neuron_offset
    args.leak, args.decay, args.expected = cfg.leak, cfg.decay, cfg.expected
    args.clamp_u, args.clamp_du = cfg.clamp_u, cfg.clamp_du
    args.clamp_xi, args.clamp_dxi = cfg.clamp_xi, cfg.clamp_dxi
    args.temperature, args.n_arrivals = cfg.temperature, arrival_limit(cfg.n_arrivals)
    args.cell, args.estimator = cells.code(cfg.cell), code(cfg.estimator, cfg.temperature)
    args.kl, args.single_draw = divergence.KLS.index(cfg.kl), cfg.single_draw
    args.x_step = batch * pixels if x.dim() == 3 else 0
    return args


def infer(
    module: Any, inputs: Inputs, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
) -> tuple[Any, list[Tensor]]:
    """Arguments of inference, and what it writes: the final state, then the records in canonical order."""
    args = rollout(module, inputs, cfg if cfg.estimator == "hard" else cfg._replace(estimator="hard"))
    return args, results(args, inputs, cfg, record, record_every)


def results(
    args: Any, inputs: Inputs, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
) -> list[Tensor]:
    """What inference writes, and in ``args`` where: the final state, then the records in canonical order."""
    x, log_rate = inputs.x, inputs.log_rate
    final = torch.empty_like(log_rate)
    args.log_rate_out, args.record_every = final.data_ptr(), record_every
    if not record:
        return [final]
    shapes = record_shapes(x.shape[-2], inputs.dictionary.shape, log_rate.shape)
    n_records = (cfg.step + cfg.steps) // record_every - cfg.step // record_every
    records = {name: x.new_empty((n_records, *shapes[name])) for name in RECORDS if name in record}
    fill(args, **{_RECORDS.get(name, name): tensor for name, tensor in records.items()})
    return [final, *records.values()]


def elbo(module: Any, inputs: Inputs, cfg: RolloutConfig) -> tuple[Any, Forward]:
    """Arguments of the loss, and what it writes."""
    # Before what outlives it: small blocks that stay, in the gap of the last trajectory, would keep it out.
    kept = Trajectory.empty(inputs, cfg)
    recon, kl = (inputs.x.new_empty((cfg.steps, inputs.x.shape[-2])) for _ in range(2))
    results = Forward(recon, kl, torch.empty_like(inputs.log_rate), kept)
    args = rollout(module, inputs, cfg)
    fill(args, log_rate_out=results.log_rate, record_every=1, recon=results.recon, kl_out=results.kl)
    return trajectory(args, results.trajectory), results


def trajectory(args: Any, tensors: Trajectory) -> Any:
    """The same arguments with what the backward needs."""
    return fill(args, **{_TRAJECTORY.get(name, name): part for name, part in tensors._asdict().items()})


def backward(
    module: Any,
    upstream: Upstream,
    inputs: Inputs,
    tensors: Trajectory,
    grads: Inputs,
    cfg: RolloutConfig,
) -> Any:
    """Arguments of the backward, but for gradients of parameters; those of x and of the state are written."""
    args = fill(
        module.RolloutGradArgs(),
        **upstream._asdict(),
        grad_log_rate_in=grads.log_rate,
        grad_x=grads.x,
    )
    args.forward = trajectory(rollout(module, inputs, cfg), tensors)
    return args
