"""A whole rollout, or a whole backward, in one call of the compiled kernels for the CPU.

Signatures as in ``eager.py``; tensors are contiguous and float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backend.compiled import fill, load
from ..backend.cpu import unsigned_seed
from . import structs
from .config import RolloutConfig
from .problem import Forward, Inputs, Trajectory, Upstream


def infer(
    inputs: Inputs, seed: Tensor, cfg: RolloutConfig, record: tuple[str, ...], record_every: int
) -> list[Tensor]:
    """Inference with hard counts: the final log rate, then the records in canonical order."""
    args, results = structs.infer(load(), inputs, cfg, record, record_every)
    _run(args, inputs, seed)
    return results


def infer_shared(
    inputs: Inputs,
    seed: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    record_every: int,
    exchange: Callable[[Tensor], None],
) -> list[Tensor]:
    """:func:`infer` of the neurons of this process; kl, spikes and zeros are those of this process.

    Args:
        inputs: as there, likewise the next four.
        seed: likewise.
        cfg: likewise.
        record: likewise.
        record_every: likewise.
        exchange: adds up a tensor over the processes, in place.
    """
    module = load()
    args, results = structs.infer(module, inputs, cfg, record, record_every)
    fill(args, seed=unsigned_seed(seed))

    def at(address: int, n: int) -> None:
        exchange(torch.frombuffer((ctypes.c_float * n).from_address(address), dtype=torch.float32))

    module.rollout_shared(args, structs.parameters(module, inputs), torch.get_num_threads(), at)
    return results


def elbo(inputs: Inputs, seed: Tensor, cfg: RolloutConfig) -> Forward:
    """Both halves of the loss at every step, and what their gradient needs."""
    args, results = structs.elbo(load(), inputs, cfg)
    _run(args, inputs, seed)
    return results


def elbo_backward(upstream: Upstream, inputs: Inputs, trajectory: Trajectory, cfg: RolloutConfig) -> Inputs:
    """The gradient of each input."""
    module = load()
    grads = Inputs(*map(torch.empty_like, inputs))
    args = structs.backward(module, upstream, inputs, trajectory, grads, cfg)
    of_parameters = structs.parameter_grads(module, grads)
    module.rollout_grad(args, structs.parameters(module, inputs), of_parameters, torch.get_num_threads())
    return grads


def _run(args: Any, inputs: Inputs, seed: Tensor) -> None:
    module = load()
    fill(args, seed=unsigned_seed(seed))
    module.rollout(args, structs.parameters(module, inputs), torch.get_num_threads())
