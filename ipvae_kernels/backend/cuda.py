"""The CUDA backend: the compiled kernels on the tensors of an NVIDIA GPU, and what tests set of it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import compiled


class Layout(NamedTuple):
    """How a rollout is to lie on the device, as in csrc/cuda/plan.h; 0 leaves each to the plan.

    Attributes:
        kind: of the team that shares a tile: a block, a cluster or the grid.
        team: blocks of a team.
        rows: of a tile.
    """

    kind: int = 0
    team: int = 0
    rows: int = 0


# Of the process and not of a thread: autograd runs the backward of a GPU's tensors in threads of its own.
_layout = Layout()
_emulated: ModuleType | None = None
_emulated_limits: Any = None


def reason() -> str | None:
    """Why no call can be served, or None."""
    if _emulated is not None:
        return None
    if (missing := compiled.reason()) is not None:
        return missing
    if compiled.load().cuda is None:
        return (
            "CUDA was not compiled in; put nvcc on the PATH and install again with "
            "'python -m pip install -e .' in a checkout of the repository"
        )
    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU and a CUDA build of torch: torch.cuda.is_available() is False"
    return None


def unserved(tensors: Sequence[Tensor]) -> str | None:
    """Why these tensors cannot be served, or None."""
    place = "cuda" if _emulated is None else "cpu"
    for tensor in tensors:
        if tensor.device.type != place:
            return f"it computes on CUDA devices, the tensors are on {tensor.device}"
    return compiled.not_float32(tensors)


def module() -> Any:
    """The compiled module, or what :func:`emulation` put in its place."""
    return _emulated or compiled.load()


def launch(tensor: Tensor) -> Any:
    """The device of a tensor and torch's current stream on it, for the launchers."""
    if _emulated is not None:
        return _emulated.Launch()
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return compiled.fill(compiled.load().Launch(), device=tensor.device.index, stream=stream)


def limits(device: torch.device) -> Any:
    """What a device offers a rollout."""
    return _limits_of(device.index) if _emulated is None else _emulated_limits


@functools.cache
def _limits_of(index: int) -> Any:
    return compiled.load().cuda_limits(index)


def plan(args: Any, backward: bool, device: torch.device) -> Any:
    """How a rollout lies on a device."""
    return module().cuda_plan(args, backward, limits(device), *_layout)


@contextlib.contextmanager
def layout(kind: int = 0, team: int = 0, rows: int = 0) -> Iterator[None]:
    """Insists on a layout of every rollout of the process until its end: tests want each kind."""
    global _layout
    before, _layout = _layout, Layout(kind, team, rows)
    try:
        yield
    finally:
        _layout = before


@contextlib.contextmanager
def emulation(host: ModuleType, limits: Any = None) -> Iterator[None]:
    """Has the kernels, compiled for the host, serve CPU tensors until its end: for tests without a GPU.

    Args:
        host: a module with the functions of the compiled one that begin with ``cuda_``.
        limits: of the device that is emulated; None for those of ``host``.
    """
    global _emulated, _emulated_limits
    before = _emulated, _emulated_limits
    _emulated, _emulated_limits = host, host.cuda_limits(0) if limits is None else limits
    try:
        yield
    finally:
        _emulated, _emulated_limits = before
