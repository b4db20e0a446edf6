"""Which implementation serves a call, and where one cannot, why."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterable
from types import ModuleType, TracebackType

from torch import Tensor

from . import _native, _triton

NAMES = ("auto", "native", "triton", "eager", "autograd")

_COMPILED: dict[str, ModuleType] = {"native": _native, "triton": _triton}
_FILES = {"triton": "triton_kernels"}  # where a backend's file in an op's folder has another name

_log = logging.getLogger("ipvae_kernels")
_logged: set[str] = set()
_default = "auto"


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve; the message says why and what to do."""


def backends() -> dict[str, str]:
    """Every backend by name, with "available" or the reason why it is not.

    "native" is the compiled module, for the CPU and, where nvcc built it, CUDA; "triton" serves NVIDIA GPUs;
    "eager" is PyTorch with the hand-written backward; "autograd" is plain differentiable PyTorch, the slow
    and readable truth.
    """
    compiled = {name: module.reason() or "available" for name, module in _COMPILED.items()}
    return {**compiled, "eager": "available", "autograd": "available"}


class use_backend:
    """Sets the backend of calls that leave ``backend="auto"``; as a context manager, until its end.

    Args:
        name: "auto", "native", "triton", "eager" or "autograd".

    Raises:
        ValueError: unknown name.
        BackendError: the backend is not available on this machine.
    """

    def __init__(self, name: str) -> None:
        global _default
        _known(name)
        if name in _COMPILED and (reason := _COMPILED[name].reason()):
            raise _unable(name, reason)
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
    """The implementation that serves these tensors: "native", "triton" or "eager".

    Args:
        backend: "auto" ("native" where it can serve, on a GPU else "triton"; else "eager", logged once),
            "native", "triton", "eager", or "autograd": what has no gradient is the same in "eager".
        tensors: the floating tensors of the call.

    Raises:
        BackendError: a backend was named and cannot serve.
    """
    if backend in ("eager", "autograd"):
        return "eager"
    tensors = list(tensors)
    if backend != "auto":
        names: tuple[str, ...] = (backend,)
    else:
        names = ("native", "triton") if tensors[0].device.type == "cuda" else ("native",)
    reasons = {}
    for name in names:
        reason = _COMPILED[name].reason() or _COMPILED[name].unserved(tensors)
        if reason is None:
            return name
        reasons[name] = reason
    if backend != "auto":
        raise _unable(backend, reasons[backend])
    for name, reason in reasons.items():
        if reason not in _logged:
            _logged.add(reason)
            _log.warning("backend 'eager' serves where %r cannot: %s", name, reason)
    return "eager"


def implementation(package: str, backend: str, *tensors: Tensor) -> ModuleType:
    """The module of an op's folder that serves these tensors."""
    return _module(package, resolve(backend, tensors))


@functools.cache
def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{_FILES.get(name, name)}")


def refuse_compiled(backend: str, reason: str) -> None:
    """For calls that only autograd serves: refuses a compiled backend that was named.

    Raises:
        BackendError: ``backend`` is "native" or "triton".
    """
    if backend in _COMPILED:
        raise _unable(backend, reason)


def _known(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}; found {name!r}")


def _unable(name: str, reason: str) -> BackendError:
    return BackendError(
        f"backend {name!r} cannot serve: {reason}. Choose backend='auto' or backend='eager' instead"
    )
