"""Ops of torch whose kernels are Python functions, without the layers of ``torch.library.custom_op``.

Those enter Python for autograd also where nothing is differentiated, and look for results that are arguments:
some 30 Python calls a call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_library = torch.library.Library("ipvae_kernels", "FRAGMENT")  # type: ignore[no-untyped-call]


def define(
    name: str, schema: str, kernel: Callable[..., Any], shapes: Callable[..., Any], vmap: Callable[..., Any]
) -> Any:
    """Registers an op that changes none of its arguments and returns none of them.

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


def transformed() -> bool:
    """Whether torch.func or forward mode is at work, which gradients registered with an op do not serve.

    False while torch.compile traces: it takes ops alone.
    """
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def rows_first(value: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, ...] of every slice that vmap takes, one after the other: [size B, ...].

    Args:
        value: all slices.
        dim: the dimension that counts them; None: they are the same.
        size: their number.
    """
    stacked = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
    return stacked.flatten(0, 1)


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
