"""What torch's transforms ask of every op: ``torch.compile``, ``torch.func`` and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._backends import BackendError


def packed(*values: float) -> Tensor:
    """Numbers as a float64 tensor on the CPU, [N]: what an op takes in place of Python floats.

    A float that reaches an op while ``torch.compile`` traces is made a constant of the graph, and each value
    costs a compilation, 8 of which end ``fullgraph=True``. As a sum with a tensor, it stays an input.
    """
    if not torch.compiler.is_compiling():
        return torch.tensor(values, dtype=torch.float64, device="cpu")
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    return torch.stack([zero + value for value in values])


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, which torch leaves untyped."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def differentiated(*tensors: Tensor) -> bool:
    """Whether a call may need a derivative or a rule of ``torch.func``; others go to their op directly."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return not torch.compiler.is_compiling() and transformed()


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is in force."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """For the inside of an op, whose products are full precision; costs nothing outside of autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def refused(op: str, what: str) -> BackendError:
    """The error where an op is asked for a derivative that its backward by hand does not have."""
    return BackendError(
        f"{op} has no {what} with its backward by hand; backend='autograd' computes it, in plain PyTorch"
    )


def shift_of_rows(op: str, randomness: str, own_seeds: bool) -> bool:
    """Whether rows that ``torch.vmap`` maps over are samples of their own in the indices of the noise.

    Args:
        op: the public function, for the message.
        randomness: the argument of ``torch.vmap``.
        own_seeds: a seed is mapped over too.

    Raises:
        RuntimeError: ``torch.vmap`` was not told whether all rows share one draw.
    """
    if randomness == "error" and not own_seeds:
        raise RuntimeError(
            f"{op}: one seed for all rows of torch.vmap gives each of them the same draw; pass "
            "randomness='different' to torch.vmap (row v of batches of B then draws as the samples from "
            "sample_offset + v B on) or randomness='same', or call it on the whole batch"
        )
    return randomness == "different" and not own_seeds


def each_row(
    op: Callable[..., Any],
    info: Any,
    in_dims: Sequence[int | None],
    arguments: Sequence[Any],
    place: Callable[[int, list[Any]], None] = lambda v, row: None,
) -> tuple[Any, Any]:
    """A rule of ``torch.vmap``: one call a row, results stacked.

    Args:
        op: returns a tensor or several.
        info: what ``torch.library.register_vmap`` hands to a rule.
        in_dims: which dimension of each argument is mapped over.
        arguments: of all rows.
        place: changes the arguments of row v in place, given v and them.
    """
    results = []
    for v in range(info.batch_size):
        row = [
            value if dim is None else value.select(dim, v)
            for value, dim in zip(arguments, in_dims, strict=True)
        ]
        place(v, row)
        results.append(op(*row))
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
    kind = type(results[0])
    return kind(stacked), kind([0] * len(stacked))


class _OneDraw(torch.autograd.Function):
    """The seed, unless ``torch.vmap`` maps over what is drawn: plain PyTorch would draw once for all rows."""

    @staticmethod
    def forward(op: str, seed: Tensor, *tensors: Tensor) -> Tensor:
        return seed.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], op: str, seed: Tensor, *tensors: Tensor) -> Any:
        if shift_of_rows(op, info.randomness, in_dims[1] is not None):
            raise BackendError(
                f"backend 'autograd' cannot give rows of torch.vmap noise of their own in {op}; call it on "
                "the whole batch, or choose backend='eager'"
            )
        return apply(_OneDraw, op, seed, *tensors), in_dims[1]


def one_draw(op: str, seed: Tensor, *tensors: Tensor) -> Tensor:
    """The seed for a draw from these tensors in plain PyTorch; refuses rows that would all draw the same.

    Raises:
        RuntimeError, BackendError: inside a ``torch.vmap`` over the tensors that does not ask for that.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return seed
    result: Tensor = apply(_OneDraw, op, seed, *tensors)
    return result
