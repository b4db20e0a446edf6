"""What the ops of a rollout take: tensors by name, and the constants; here alone their order is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

from torch import Tensor

from .. import _transforms
from .config import RolloutConfig


class Inputs(NamedTuple):
    """The tensors of a rollout.

    Attributes:
        x: [B, M] or [T, B, M].
        dictionary: [M, K].
        log_sigma: [M].
        log_bias: [K].
        log_lr: []; Gaussian cells [2].
        log_rate: the state before the first step, [B, K]; Gaussian cells [2, B, K].
    """

    x: Tensor
    dictionary: Tensor
    log_sigma: Tensor
    log_bias: Tensor
    log_lr: Tensor
    log_rate: Tensor


PARAMETERS = ("dictionary", "log_sigma", "log_bias", "log_lr")
"""The inputs that all rows and steps share."""


class Upstream(NamedTuple):
    """Gradients of a loss, as they come from above: of recon and kl, [T, B], and of the final state."""

    grad_recon: Tensor
    grad_kl: Tensor
    grad_log_rate: Tensor


class Trajectory(NamedTuple):
    """What the backward needs of the forward; of several segments, their first states as ``path`` alone.

    Attributes:
        path: states before each update and after the last, [T n_inner + 1, B, K]; Gaussian cells
            [T n_inner + 1, 2, B, K].
        counts: codes, [T, n_inner + 1, B, K].
        slopes: d count / d log rate of each; Gaussian cells: the standard normals.
        errors: x - Phi code, [T, n_inner + 1, B, M].
        drives: [T n_inner, B, K].
    """

    path: Tensor
    counts: Tensor
    slopes: Tensor
    errors: Tensor
    drives: Tensor

    @classmethod
    def empty(cls, inputs: Inputs, cfg: RolloutConfig) -> Trajectory:
        """Memory for all steps of ``cfg``."""
        x, log_rate, (pixels, neurons) = inputs.x, inputs.log_rate, inputs.dictionary.shape
        batch, updates = x.shape[-2], cfg.steps * cfg.n_inner
        draws = (cfg.steps, cfg.n_inner + 1, batch)
        return cls(
            path=x.new_empty((updates + 1, *log_rate.shape)),
            counts=x.new_empty((*draws, neurons)),
            slopes=x.new_empty((*draws, neurons)),
            errors=x.new_empty((*draws, pixels)),
            drives=x.new_empty((updates, batch, neurons)),
        )


class Forward(NamedTuple):
    """What ``elbo`` of a backend returns.

    Attributes:
        recon: [T, B], nats.
        kl: [T, B], nats.
        log_rate: the state after the last step, [B, K]; Gaussian cells [2, B, K].
        trajectory: for the backward.
    """

    recon: Tensor
    kl: Tensor
    log_rate: Tensor
    trajectory: Trajectory


_SCHEMA_TYPES = {int: "SymInt", int | None: "SymInt?", str: "str", bool: "bool"}
_TYPES = get_type_hints(RolloutConfig)
# The floats are one tensor (see _transforms.packed), the other constants arguments of their own.
FLOATS = tuple(name for name, kind in _TYPES.items() if kind is float)
OTHERS = tuple(name for name in _TYPES if name not in FLOATS)
_SIZE = 3 + len(OTHERS)


def schema(*parts: type[Any]) -> str:
    """The arguments of an op: tensors of these types, then seed and constants.

    ``mapped`` is how many rows of ``torch.vmap`` the indices of the noise are already spread over.
    """
    tensors = [f"Tensor {name}" for part in parts for name in part._fields]
    others = [f"{_SCHEMA_TYPES[_TYPES[name]]} {name}" for name in OTHERS]
    return ", ".join([*tensors, "Tensor seed", "Tensor floats", *others, "SymInt mapped"])


def constants(seed: Tensor, cfg: RolloutConfig) -> tuple[Any, ...]:
    """Seed and constants as arguments of an op."""
    floats = _transforms.packed(*(getattr(cfg, name) for name in FLOATS))
    return (seed, floats, *(getattr(cfg, name) for name in OTHERS), 1)


def taken(arguments: Sequence[Any], *parts: type[Any], fake: bool = False) -> tuple[Any, ...]:
    """The arguments of an op: its tensors by these types, seed, configuration, and what follows.

    The configuration of fake tensors has no floats.
    """
    found, at = [], 0
    for part in parts:
        found.append(part(*arguments[at : at + len(part._fields)]))
        at += len(part._fields)
    seed, floats, *others = arguments[at : at + _SIZE - 1]
    numbers = {} if fake else dict(zip(FLOATS, floats.tolist(), strict=True))
    cfg = RolloutConfig(**dict(zip(OTHERS, others, strict=True)), **numbers)
    return (*found, seed, cfg, arguments[at + _SIZE :])
