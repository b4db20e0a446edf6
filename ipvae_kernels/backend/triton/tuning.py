"""Autotuning over a small set of configurations, kept on disk.

What is tuned (warps, pipeline stages, tiles of independent rows and columns) never changes the order of a sum
over neurons or pixels. The table of sets is in ``docs/design/triton.md``.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import triton

from ..choice import BackendError
from . import interpreted, warps_max


def config(num_warps: int, num_stages: int = 2, registers: int | None = None, **blocks: int) -> Any:
    """One configuration; ``blocks`` are constexpr arguments of the kernel.

    ``registers`` allows a thread so many. Left to itself the assembler may spill for the sake of occupancy.
    """
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages, maxnreg=registers)


def autotune(configs: Sequence[Any], key: Sequence[str]) -> Callable[[Any], Any]:
    """``triton.autotune``; the first configuration is the default.

    The interpreter, whose cost is per program, takes the last, which has the largest tile.

    Args:
        configs: the set.
        key: names of the arguments by which results are kept.
    """
    if interpreted():
        (tiles,) = (config.kwargs for config in configs[-1:])
        fixed: Callable[[Any], Any] = triton.heuristics(
            {name: lambda arguments, value=value: value for name, value in tiles.items()}
        )
        return fixed
    options = {
        "configs": list(configs),
        "key": list(key),
        "prune_configs_by": {"early_config_prune": _candidates},
        "do_bench": _bench,
        "cache_results": True,
    }
    known = inspect.signature(triton.autotune).parameters
    wrap: Callable[[Any], Any] = triton.autotune(**{k: v for k, v in options.items() if k in known})
    return wrap


def serving(configs: Sequence[Any], major: int) -> list[Any]:
    """The configurations that may serve a device of this major compute capability."""
    return [config for config in configs if config.num_warps <= warps_max(major)]


def _candidates(configs: Sequence[Any], *_: Any, **__: Any) -> list[Any]:
    """What is tuned over at the first call of a kind; Triton asks before it tunes, or takes from disk."""
    if torch.cuda.is_current_stream_capturing():
        raise BackendError(
            "backend 'triton' cannot tune its kernels for these sizes while a CUDA graph is captured; call "
            "ipvae_kernels.warmup with what you capture before the capture begins"
        )
    return serving(configs, torch.cuda.get_device_capability()[0])


def _bench(call: Callable[[], Any], quantiles: Sequence[float]) -> Any:
    """Triton's timing; named here, since Triton 3.3 looks for a GPU when it is left to find it itself."""
    return triton.testing.do_bench(call, quantiles=quantiles)


@contextlib.contextmanager
def only(kernel: Any, config: Any) -> Iterator[None]:
    """Has a tuned kernel run in one configuration until its end; Triton then times nothing."""
    before, kernel.configs = kernel.configs, [config]
    try:
        yield
    finally:
        kernel.configs = before


def tuned(module: Any) -> dict[str, Any]:
    """The kernels of a module that have configurations to choose from, by name."""
    return {name: kernel for name, kernel in vars(module).items() if getattr(kernel, "configs", None)}
