"""What the compiled kernels take of a rollout; tensors are contiguous and float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import cells
from ..backend.compiled import arrival_limit, fill
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
        cell=cells.code(cfg.cell),
        estimator=code(cfg.estimator, cfg.temperature),
        kl=cells.KLS.index(cfg.kl),
        single_draw=cfg.single_draw,
        x=x,
        x_step=batch * pixels if x.dim() == 3 else 0,
        log_rate=inputs.log_rate,
    )


def infer(
    module: Any, inputs: Inputs, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
) -> tuple[Any, list[Tensor]]:
    """Arguments of inference, and what it writes: the final state, then the records in canonical order."""
    x, log_rate = inputs.x, inputs.log_rate
    shapes = record_shapes(x.shape[-2], inputs.dictionary.shape, log_rate.shape)
    n_records = (cfg.step + cfg.steps) // record_every - cfg.step // record_every
    records = {name: x.new_empty((n_records, *shapes[name])) for name in RECORDS if name in record}
    final = torch.empty_like(log_rate)
    args = rollout(module, inputs, cfg._replace(estimator="hard"))
    fill(args, log_rate_out=final, record_every=record_every)
    fill(args, **{_RECORDS.get(name, name): tensor for name, tensor in records.items()})
    return args, [final, *records.values()]


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
