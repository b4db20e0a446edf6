"""Which implementation serves a call, and where one cannot, why."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from types import ModuleType, TracebackType

import torch
from torch import Tensor

from . import _native

NAMES = ("auto", "native", "eager", "autograd")

_log = logging.getLogger("ipvae_kernels")
_logged: set[str] = set()
_default = "auto"


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve; the message says why and what to do."""


def backends() -> dict[str, str]:
    """Every backend by name, with "available" or the reason why it is not.

    "native" is the compiled module; "eager" is PyTorch with the hand-written backward; "autograd" is plain
    differentiable PyTorch, the slow and readable truth.
    """
    return {"native": _native.reason() or "available", "eager": "available", "autograd": "available"}


class use_backend:
    """Sets the backend of calls that leave ``backend="auto"``; as a context manager, until its end.

    Args:
        name: "auto", "native", "eager" or "autograd".

    Raises:
        ValueError: unknown name.
        BackendError: the backend is not available on this machine.
    """

    def __init__(self, name: str) -> None:
        global _default
        _known(name)
        if name == "native" and (reason := _native.reason()):
            raise _unable(reason)
        self._previous, _default = _default, name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _default
        _default = self._previous


def select(backend: str) -> str:
    """The backend a call asks for: its argument, or where that is "auto" what :class:`use_backend` set."""
    _known(backend)
    return _default if backend == "auto" else backend


def resolve(backend: str, tensors: Iterable[Tensor]) -> str:
    """The implementation that serves these tensors: "native" or "eager".

    Args:
        backend: "auto" (native where it can serve, else eager, logged once), "native" or "eager".
        tensors: the floating tensors of the call.

    Raises:
        BackendError: "native" was named and cannot serve.
    """
    if backend == "eager":
        return "eager"
    reason = _native.reason() or _unserved(tensors)
    if reason is None:
        return "native"
    if backend == "native":
        raise _unable(reason)
    if reason not in _logged:
        _logged.add(reason)
        _log.warning("backend 'eager' serves where 'native' cannot: %s", reason)
    return "eager"


def implementation(package: str, backend: str, *tensors: Tensor) -> ModuleType:
    """The module of an op's folder that serves these tensors, ``eager`` or ``native``."""
    return importlib.import_module(f"{package}.{resolve(backend, tensors)}")


def no_native(backend: str, reason: str) -> None:
    """For calls that the native backend serves never: refuses where it was named.

    Raises:
        BackendError: ``backend`` is "native".
    """
    if backend == "native":
        raise _unable(reason)


def _unserved(tensors: Iterable[Tensor]) -> str | None:
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it computes in torch.float32, the tensors are {tensor.dtype}"
        if tensor.device.type not in ("cpu", "cuda"):
            return f"it computes on CPUs and CUDA devices, the tensors are on {tensor.device}"
        if tensor.device.type == "cuda" and (reason := _native.cuda_reason()):
            return f"{reason} (the tensors are on {tensor.device})"
    return None


def _known(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}; found {name!r}")


def _unable(reason: str) -> BackendError:
    return BackendError(
        f"backend 'native' cannot serve: {reason}. Choose backend='auto' or backend='eager' instead"
    )
