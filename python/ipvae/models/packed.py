"""A model's dictionary packed once for many calls of `infer`, while nothing trains it."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from weakref import WeakKeyDictionary

import torch
from torch import nn

import ipvae_kernels
from ipvae_kernels import GaussianParams, PoissonParams, Prepared

# Beside the models, so that they are copied and pickled without it.
_PACKED: MutableMapping[nn.Module, tuple[list[tuple[int, int, int]], Prepared]] = WeakKeyDictionary()


def packed_once(
    model: nn.Module, params: Callable[[], PoissonParams | GaussianParams], drive: str = "paper"
) -> PoissonParams | GaussianParams | Prepared:
    """The parameters; in eval mode on a CPU prepared, until one of them changes.

    Changes are seen by the version and the place of a parameter: what `ipvae_kernels.Prepared` says.

    Args:
        model: whose parameters they are made of.
        params: makes them.
        drive: of the updates.
    """
    parameters = list(model.parameters())
    plain = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    own = plain and all(type(p) is nn.Parameter and p.device.type == "cpu" for p in parameters)
    if model.training or not own or any(p.is_inference() for p in parameters):
        return params()
    now = [(id(p), p.data_ptr(), p._version) for p in parameters]
    seen, prepared = _PACKED.get(model, (None, None))
    if prepared is None or seen != now or prepared.drive != drive:
        prepared = ipvae_kernels.prepare(params(), drive=drive)
        _PACKED[model] = (now, prepared)
    return prepared


def forget(model: nn.Module) -> None:
    """Frees what `packed_once` keeps for a model."""
    _PACKED.pop(model, None)
