"""A whole rollout, or a whole backward, in one call of the compiled kernels for the CPU.

Signatures as in ``eager.py``; tensors are contiguous and float32.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backend.compiled import fill, load
from ..backend.cpu import unsigned_seed
from . import structs
from .config import RolloutConfig
from .problem import Forward, Inputs, Trajectory, Upstream

Exchange = Callable[[Tensor], None]
"""Adds up a tensor over the processes that have a layer's neurons, in place."""


class Link(NamedTuple):
    """How the kernels of one process work with those of the others that have a layer's neurons.

    Attributes:
        exchange: called once a draw for a tile of rows, and in the backward once an update for all.
        rows: of a tile at most, the same in all, and no more than `shared_rows` in any.
    """

    exchange: Exchange
    rows: int


def shared_rows() -> int:
    """Rows of a tile that this process can take."""
    rows: int = load().shared_rows()
    return rows


def infer(
    inputs: Inputs,
    seed: Tensor,
    cfg: RolloutConfig,
    record: tuple[str, ...],
    record_every: int,
    link: Link | None = None,
) -> list[Tensor]:
    """Inference with hard counts: the final log rate, then the records in canonical order."""
    args, results = structs.infer(load(), inputs, cfg, record, record_every)
    _run(args, inputs, seed, link)
    return results


def elbo(inputs: Inputs, seed: Tensor, cfg: RolloutConfig, link: Link | None = None) -> Forward:
    """Both halves of the loss at every step, and what their gradient needs."""
    args, results = structs.elbo(load(), inputs, cfg)
    _run(args, inputs, seed, link)
    return results


def elbo_backward(
    upstream: Upstream,
    inputs: Inputs,
    trajectory: Trajectory,
    cfg: RolloutConfig,
    link: Link | None = None,
) -> Inputs:
    """The gradient of each input."""
    module = load()
    grads = Inputs(*map(torch.empty_like, inputs))
    args = structs.backward(module, upstream, inputs, trajectory, grads, cfg)
    call = args, structs.parameters(module, inputs), structs.parameter_grads(module, grads)
    if link is None:
        module.rollout_grad(*call, torch.get_num_threads())
    else:
        module.rollout_grad_shared(*call, torch.get_num_threads(), _by_address(link.exchange))
    return grads


def shared(link: Link) -> SimpleNamespace:
    """The functions of this module for the neurons of one process.

    kl, spikes, zeros and the gradient of log_lr are those of this process; means, and with them all that has
    pixels, are those of all neurons.
    """
    functions = (infer, elbo, elbo_backward)
    return SimpleNamespace(**{f.__name__: functools.partial(f, link=link) for f in functions})


def _run(args: Any, inputs: Inputs, seed: Tensor, link: Link | None) -> None:
    module = load()
    fill(args, seed=unsigned_seed(seed))
    call, threads = (args, structs.parameters(module, inputs)), torch.get_num_threads()
    if link is None:
        module.rollout(*call, threads)
    else:
        module.rollout_shared(*call, link.rows, threads, _by_address(link.exchange))


def _by_address(exchange: Exchange) -> Callable[[int, int], None]:
    """The same of n floats that lie in memory of the kernels."""

    def at(address: int, n: int) -> None:
        exchange(torch.frombuffer((ctypes.c_float * n).from_address(address), dtype=torch.float32))

    return at
