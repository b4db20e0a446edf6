"""What processes tell each other: sums for autograd, and what must be equal.

What every process holds a part of is summed forward; its gradient is there on each already. What every
process uses a copy of is passed on forward; the gradients of its uses are summed. (The pair of Megatron-LM,
Shoeybi et al. 2019, arXiv 1909.08053, figure 3.) The two products with a dictionary are such a pair; a sum is
on its way while what does not need it is computed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup


def summed(part: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the processes' parts, which each has; its gradient becomes that of each part."""
    return _Summed.apply(part, group)  # type: ignore[no-untyped-call,no-any-return]


def shared(copy: Tensor, group: ProcessGroup) -> Tensor:
    """A copy that each process uses in its own way; the gradients of these uses are summed."""
    return _Shared.apply(copy, group)  # type: ignore[no-untyped-call,no-any-return]


def decoded(code: Tensor, dictionary: Tensor, group: ProcessGroup, overlap: bool) -> Tensor:
    """The mean Phi z of all neurons, [B, M], of codes [B, K] and columns [M, K] of this process.

    With ``overlap`` the second half of the rows is decoded while the sum of the first is on its way.
    """
    return _Decoded.apply(code, dictionary, group, overlap)  # type: ignore[no-untyped-call,no-any-return]


def encoded(weighted: Tensor, dictionary: Tensor, group: ProcessGroup) -> Tensor:
    """weighted Phi, [B, K] of this process's neurons, of errors [B, M] that all have.

    In the backward the dictionary's gradient is computed while the sum of the other's is on its way.
    """
    return _Encoded.apply(weighted, dictionary, group)  # type: ignore[no-untyped-call,no-any-return]


def gathered(value: Any, group: ProcessGroup | None = None) -> list[Any]:
    """The values of all processes; a group of None is that of all."""
    found: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, value, group=group)
    return found


def checksum(tensor: Tensor) -> int:
    """CRC-32 of its bits."""
    dense = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(dense.view(torch.uint8).numpy().data)


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


def halves(rows: int) -> list[slice]:
    """A batch in two, or one row as it is."""
    return [part for part in (slice(0, rows // 2), slice(rows // 2, rows)) if part.start < part.stop]


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


class _Decoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, code: Tensor, dictionary: Tensor, group: ProcessGroup, overlap: bool) -> Tensor:
        ctx.save_for_backward(code, dictionary)
        mean = code.new_empty((len(code), len(dictionary)))
        sums = []
        for rows in halves(len(code)) if overlap else (slice(None),):
            torch.mm(code[rows], dictionary.T, out=mean[rows])
            sums.append(distributed.all_reduce(mean[rows], group=group, async_op=True))
        for on_its_way in sums:
            on_its_way.wait()
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        code, dictionary = ctx.saved_tensors
        of_code, of_dictionary = ctx.needs_input_grad[:2]
        return grad @ dictionary if of_code else None, grad.T @ code if of_dictionary else None, None, None


class _Encoded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weighted: Tensor, dictionary: Tensor, group: ProcessGroup) -> Tensor:
        ctx.save_for_backward(weighted, dictionary)
        ctx.group = group
        return weighted @ dictionary

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weighted, dictionary = ctx.saved_tensors
        of_weighted = grad @ dictionary.T
        on_its_way = distributed.all_reduce(of_weighted, group=ctx.group, async_op=True)
        of_dictionary = weighted.T @ grad if ctx.needs_input_grad[1] else None
        on_its_way.wait()
        return of_weighted, of_dictionary, None
