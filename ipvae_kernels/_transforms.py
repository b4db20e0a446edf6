"""What torch asks of every op: registration, ``torch.compile``, ``torch.func`` and second derivatives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

from .backend.choice import BackendError

_library = torch.library.Library("ipvae_kernels", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(
    name: str, schema: str, kernel: Callable[..., Any], shapes: Callable[..., Any], vmap: Callable[..., Any]
) -> Any:
    """Registers an op that changes none of its arguments and returns none of them.

    Without the layers of ``torch.library.custom_op``, which enter Python for autograd also where nothing is
    differentiated, and look for results that are arguments: some 30 Python calls a call.

    Args:
        name: of the op, under ``torch.ops.ipvae_kernels``.
        schema: of arguments and results, as "(Tensor x, int n) -> Tensor".
        kernel: computes the results, on every device.
        shapes: makes empty results of the right shape, for tracing.
        vmap: the rule of ``torch.vmap``: as ``torch.library.register_vmap`` takes it, after the op itself.

    Returns:
        The op.
    """
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _library.impl(name, kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    op = getattr(torch.ops.ipvae_kernels, name).default
    torch.library.register_fake(op, shapes, lib=_library)
    torch.library.register_vmap(op, functools.partial(vmap, op), lib=_library)
    return op


def register_results(*kinds: type[Any]) -> None:
    """Named tuples that ``torch.load`` may make, and that ``torch.export.save`` may name in a file."""
    torch.serialization.add_safe_globals([*kinds])
    for kind in kinds:
        _pytree._register_namedtuple(kind, serialized_type_name=f"ipvae_kernels.{kind.__name__}")


def register_holder(kind: type[Any], *static: str) -> None:
    """A dataclass of tensors and numbers that ``torch.load`` may make, and that is a pytree of torch.

    Every field is a leaf, None too, so that the structure does not depend on what is there (as it would by
    ``torch.export.register_dataclass``) and ``in_dims`` of ``torch.vmap`` can be written as one.

    Args:
        kind: the dataclass.
        static: names of fields, the last ones, that belong to the structure.
    """
    names = [field.name for field in dataclasses.fields(kind) if field.name not in static]

    def flatten(value: Any) -> tuple[list[Any], list[Any]]:
        return [getattr(value, name) for name in names], [getattr(value, name) for name in static]

    def with_keys(value: Any) -> tuple[list[Any], list[Any]]:
        leaves, context = flatten(value)
        return [(_pytree.GetAttrKey(n), leaf) for n, leaf in zip(names, leaves, strict=True)], context

    torch.serialization.add_safe_globals([kind])
    _pytree.register_pytree_node(
        kind,
        flatten,
        lambda leaves, context: kind(*leaves, *context),
        serialized_type_name=f"ipvae_kernels.{kind.__name__}",
        flatten_with_keys_fn=with_keys,
    )


def packed(*values: float) -> Tensor:
    """Numbers as a float64 tensor on the CPU, [N]: what an op takes in place of Python floats.

    A float that reaches an op while ``torch.compile`` traces is made a constant of the graph, and each value
    costs a compilation, 8 of which end ``fullgraph=True``. As a sum with a tensor, it stays an input.
    """
    if not torch.compiler.is_compiling():
        if len(values) == 1:  # a quarter of what torch.tensor takes, which a small draw would feel
            return torch.full((1,), values[0], dtype=torch.float64, device="cpu")
        return torch.tensor(values, dtype=torch.float64, device="cpu")
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    return torch.stack([zero + value for value in values])


def unpacked(numbers: Tensor) -> list[float]:
    """What :func:`packed` was given, also where ``torch.func`` has wrapped the tensor.

    One by one: in torch 2.9 ``tolist`` looks for the storage, and a wrapped tensor has none of its own.
    """
    return [float(number) for number in numbers.unbind()]


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply``, which torch leaves untyped."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def differentiated(*tensors: Tensor) -> bool:
    """Whether a call may need a derivative or a rule of ``torch.func``; others go to their op directly."""
    return (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)) or transformed()


def transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is in force.

    False while ``torch.compile`` traces: it takes ops alone.
    """
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def mapped(value: Tensor) -> bool:
    """Whether ``torch.vmap`` maps over a tensor, under whatever other transforms of ``torch.func``."""
    if not torch._C._are_functorch_transforms_active():
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        if torch._C._functorch.is_batchedtensor(value):
            return True
        value = torch._C._functorch.get_unwrapped(value)
    return False


def no_grad() -> AbstractContextManager[Any]:
    """``torch.no_grad``, where it is not in force.

    A region within another leaves ``torch.export`` one without content, which it cannot save.
    """
    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()


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
    *arguments: Any,
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
    for v in range(max(info.batch_size, 1)):
        row = [
            value if dim is None else _slice(value, dim, v)
            for value, dim in zip(arguments, in_dims, strict=True)
        ]
        place(v, row)
        results.append(op(*row))
    if isinstance(results[0], Tensor):
        return torch.stack(results)[: info.batch_size], 0
    stacked = [torch.stack(parts)[: info.batch_size] for parts in zip(*results, strict=True)]
    kind = type(results[0])
    return kind(stacked), kind([0] * len(stacked))


def rows_first(value: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, ...] of every slice that vmap takes, one after the other: [size B, ...].

    Args:
        value: all slices.
        dim: the dimension that counts them; None: they are the same.
        size: their number.
    """
    stacked = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return stacked.flatten(0, 1)


def mapped_with(value: Tensor, *others: Tensor) -> Tensor:
    """The same numbers, which ``torch.vmap`` maps over where it maps over any of the others.

    A draw from what all rows share would be one draw, whichever noise they ask for.
    """
    if not transformed():
        return value
    for other in others:
        value = value + other.new_zeros(())
    return value


def forward_product(tangent: Tensor, derivative: Callable[..., Tensor], *saved: Any) -> Tensor:
    """What ``jvp`` of an autograd.Function returns: the tangent times the derivative at what was saved.

    torch switches forward mode off around ``jvp``, so that forward mode within forward mode (``jacfwd``
    twice) would lose the derivative's own without a word. It is switched on again, for the outer levels.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        values = [_primal(value) if isinstance(value, Tensor) else value for value in saved]
        return tangent * derivative(*values)


def _primal(value: Tensor) -> Tensor:
    primal: Tensor = forward_ad.unpack_dual(value).primal  # type: ignore[no-untyped-call]
    return primal


def _slice(value: Tensor, dim: int, v: int) -> Tensor:
    """Slice v; of none, zeros, from which the shapes of results can be seen."""
    if value.shape[dim]:
        return value.select(dim, v)
    return value.new_zeros(value.movedim(dim, 0).shape[1:])


class _OneDraw(torch.autograd.Function):
    """The seed, unless ``torch.vmap`` maps over what is drawn: plain PyTorch would draw once for all rows."""

    @staticmethod
    def forward(op: str, fixed: bool, seed: Tensor, *tensors: Tensor) -> Tensor:
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
    def vmap(
        info: Any, in_dims: tuple[Any, ...], op: str, fixed: bool, seed: Tensor, *tensors: Tensor
    ) -> Any:
        if shift_of_rows(op, info.randomness, in_dims[2] is not None):
            raise BackendError(
                f"backend 'autograd' cannot give rows of torch.vmap noise of their own in {op}; call it on "
                "the whole batch, or choose backend='eager'"
            )
        if not fixed:
            raise BackendError(
                f"backend 'autograd' cannot draw under torch.vmap in {op}, whose tensors have sizes that "
                "depend on what is drawn; call it on the whole batch, or choose backend='eager' (without "
                "'gumbel')"
            )
        return apply(_OneDraw, op, fixed, seed, *tensors), in_dims[2]


def one_draw(op: str, fixed: bool, seed: Tensor, *tensors: Tensor) -> Tensor:
    """The seed for a draw from these tensors in plain PyTorch; refuses what ``torch.vmap`` cannot slice.

    Args:
        op: the public function, for messages.
        fixed: no size inside of the draw depends on what is drawn.
        seed: int64, [].
        tensors: what is drawn from.

    Raises:
        RuntimeError, BackendError: inside a ``torch.vmap`` over the tensors that does not ask for one draw of
            all rows, or over a draw that is not ``fixed``.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return seed
    result: Tensor = apply(_OneDraw, op, fixed, seed, *tensors)
    return result
