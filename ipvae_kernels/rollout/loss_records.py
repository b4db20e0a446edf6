"""What can be recorded of the steps of a loss, differentiable: of the trajectory of a fused rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..cells import CELLS, Cell
from .config import RolloutConfig
from .eager import KL_PER_NEURON
from .problem import Trajectory


class _PerNeuron(torch.autograd.Function):
    """The KL of each neuron, [T, B, K], whose gradient goes the way of the loss where it can.

    Where all neurons of a sample have one weight, as in a loss that sums over them, the gradient is that of
    the sum ``kl``, which the fused backward takes; else it is that of the states.
    """

    @staticmethod
    def forward(ctx: Any, kl: Tensor, posterior: Tensor, prior: Tensor, cell: Cell) -> Tensor:
        ctx.cell = cell
        ctx.save_for_backward(posterior, prior)
        return cell.kl(posterior, prior)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if grad.shape[-1] and (grad.stride(-1) == 0 or bool((grad == grad[..., :1]).all())):
            return grad[..., 0], None, None, None
        of_posterior, of_prior = ctx.cell.kl_backward(*ctx.saved_tensors)
        return None, grad * of_posterior, grad * of_prior, None


def of_trajectory(
    names: Sequence[str], kl: Tensor, x: Tensor, trajectory: Trajectory, cell: Cell, cfg: RolloutConfig
) -> list[Tensor]:
    """The records by name, each [T, ...]; see ``op.elbo``.

    Args:
        names: of ``eager.LOSS_RECORDS``.
        kl: [T, B], of the loss.
        x: [B, M] or [T, B, M].
        trajectory: of all steps.
        cell: of the model; nothing is drawn.
        cfg: constants.
    """
    n, states = cfg.n_inner, len(CELLS[cfg.cell].states)

    def per_neuron() -> Tensor:
        both = trajectory.path[n::n], trajectory.path[:-n:n]
        if states > 1:  # cells take states first
            both = both[0].transpose(0, 1), both[1].transpose(0, 1)
        found: Tensor = _PerNeuron.apply(kl, *both, cell)  # type: ignore[no-untyped-call]
        return found

    made: dict[str, Callable[[], Tensor]] = {
        "log_rate": lambda: trajectory.path[n::n],
        "counts": lambda: trajectory.counts[:, n],
        "reconstruction": lambda: x - trajectory.errors[:, n],
        KL_PER_NEURON: per_neuron,
    }
    return [made[name]() for name in names]
