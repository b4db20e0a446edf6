"""What processes tell each other: two sums for autograd, each the other's backward, and what must be equal.

What every process holds a part of is summed forward; its gradient is there on each already. What every
process uses a copy of is passed on forward; the gradients of its uses are summed. (The pair of Megatron-LM,
Shoeybi et al. 2019, arXiv 1909.08053, figure 3.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup


def summed(part: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the processes' parts, which each has; its gradient becomes that of each part."""
    return _Summed.apply(part, group)  # type: ignore[no-untyped-call,no-any-return]


def shared(copy: Tensor, group: ProcessGroup) -> Tensor:
    """A copy that each process uses in its own way; the gradients of these uses are summed."""
    return _Shared.apply(copy, group)  # type: ignore[no-untyped-call,no-any-return]


def gathered(value: Any, group: ProcessGroup | None = None) -> list[Any]:
    """The values of all processes; a group of None is that of all."""
    found: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, value, group=group)
    return found


def same_everywhere(found: Sequence[Mapping[str, Any]], prefix: str = "") -> None:
    """Refuses what is not the same in all processes, in each of them.

    Args:
        found: named values of each process.
        prefix: of the names in the message.

    Raises:
        ValueError: some differ.
    """
    for name in dict.fromkeys(name for values in found for name in values):
        own = [values.get(name) for values in found]
        if any(value != own[0] for value in own):
            raise ValueError(f"{prefix}{name}: expected the same in all processes of the group, found {own}")


def _sum(x: Tensor, group: ProcessGroup) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x, group=group)
    return x


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, group: ProcessGroup) -> Tensor:
        return _sum(part, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, copy: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum(grad, ctx.group), None
