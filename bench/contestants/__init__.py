"""Who takes part: one module each, with ``prepare(problem, settings) -> Prepared``.

Names are those of the modules, except that every backend of `ipvae_kernels` is a contestant of its own name.
All compute the same outputs with the same parameters; they draw with random numbers of their own.
"""

from __future__ import annotations

import importlib
from typing import cast

import ipvae_kernels

from ..cases import Case
from ..problem import Prepared, Problem, Settings
from . import kernels

PORTS = ("baseline", "compiled", "jax_scan", "authors", "accelerated")
GPU_PORTS = ("baseline", "compiled", "graphed", "jax_scan", "authors", "accelerated")
LABELS = {
    "baseline": "plain PyTorch",
    "compiled": "torch.compile",
    "graphed": "CUDA graph",
    "jax_scan": "JAX",
    "authors": "authors' code",
    "accelerated": "the same accelerated",
}


def names(case: Case, settings: Settings) -> list[str]:
    """Contestants of a case, in the order in which they take turns."""
    ports = case.only or (GPU_PORTS if settings.device == "cuda" else PORTS)
    return [name for name in (*settings.backends, *ports) if name not in settings.without]


def label(name: str) -> str:
    """How tables call a contestant."""
    return LABELS.get(name, name)


def prepare(name: str, problem: Problem, settings: Settings) -> Prepared:
    """Makes a contestant ready to run; compiles where it compiles.

    Raises:
        Unavailable: it cannot take part.
    """
    if name in ipvae_kernels.backends():
        return kernels.prepare(problem, name)
    module = importlib.import_module(f".{name}", __package__)
    return cast(Prepared, module.prepare(problem, settings))
