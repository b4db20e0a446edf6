"""Which implementation serves a call, and where one cannot, why."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Iterable
from types import ModuleType, TracebackType

from torch import Tensor

from . import cpu, cuda, triton

_COMPILED: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda, "triton": triton}
_AUTO = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # what "auto" tries, by the device of the tensors
NAMES = ("auto", *_COMPILED, "eager", "autograd")

_OURS = ("ipvae_kernels", "ipvae", "torch")  # whose frames a warning does not point at
_warned: set[str] = set()


class _Default(threading.local):
    """What "auto" stands for in each thread; torch.compile can read it, and not a context variable."""

    name = "auto"


_default = _Default()


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve; the message says why and what to do."""


class BackendWarning(RuntimeWarning):
    """No compiled backend can serve a call, so eager does, much slower; the message says why and what to do.

    Each reason is given once in a process.
    """


def backends() -> dict[str, str]:
    """Every backend by name, with "available" or the reason why it is not.

    "cpu" and "cuda" are the compiled module, the latter where nvcc built it; "triton" serves NVIDIA GPUs
    without nvcc; "eager" is PyTorch with the hand-written backward; "autograd" is plain differentiable
    PyTorch, the slow and readable truth.
    """
    compiled = {name: module.reason() or "available" for name, module in _COMPILED.items()}
    return {**compiled, "eager": "available", "autograd": "available"}


class use_backend:
    """Sets the backend of calls that leave ``backend="auto"``; as a context manager, until its end.

    It holds for the thread that sets it, like ``torch.no_grad``; every thread starts with "auto".

    Args:
        name: "auto", "cpu", "cuda", "triton", "eager" or "autograd".

    Raises:
        ValueError: unknown name.
        BackendError: the backend is not available on this machine.
    """

    def __init__(self, name: str) -> None:
        _known(name)
        if name in _COMPILED and (reason := _COMPILED[name].reason()):
            raise _unable(name, reason)
        self._previous, _default.name = _default.name, name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _default.name = self._previous


def select(backend: str) -> str:
    """The backend a call asks for: its argument, or where that is "auto" what :class:`use_backend` set."""
    _known(backend)
    return _default.name if backend == "auto" else backend


def resolve(backend: str, tensors: Iterable[Tensor]) -> str:
    """The implementation that serves these tensors: "cpu", "cuda", "triton" or "eager".

    Args:
        backend: "auto" (for tensors of a GPU "cuda" where it can serve, else "triton"; for others "cpu"; else
            "eager"), a name of these, or "autograd": what has no gradient is the same in "eager".
        tensors: the floating tensors of the call.

    Raises:
        BackendError: a backend was named and cannot serve.

    Warns:
        BackendWarning: "auto" fell back to "eager".
    """
    if backend in ("eager", "autograd"):
        return "eager"
    tensors = list(tensors)
    names = _AUTO.get(tensors[0].device.type, ("cpu",)) if backend == "auto" else (backend,)
    reasons = {}
    for name in names:
        reason = _COMPILED[name].reason() or _COMPILED[name].unserved(tensors)
        if reason is None:
            return name
        reasons[name] = reason
    if backend != "auto":
        raise _unable(backend, reasons[backend])
    for name, reason in reasons.items():
        if reason not in _warned:
            _warn(f"backend 'eager' serves where {name!r} cannot: {reason}. backend='eager' asks for it")
            _warned.add(reason)  # after it: where warnings are errors, every call is one
    return "eager"


def forget_warnings() -> None:
    """Has every reason for a fallback be given once more."""
    _warned.clear()


def _warn(message: str) -> None:
    """Warns at the line of the user's code that made the call, however many frames of torch lie between."""
    level = 1
    while sys._getframe(level).f_globals.get("__name__", "").partition(".")[0] in _OURS:
        if sys._getframe(level).f_back is None:
            break
        level += 1
    warnings.warn(message, BackendWarning, stacklevel=level + 1)


def implementation(package: str, backend: str, *tensors: Tensor) -> ModuleType:
    """The module of an op's folder that serves these tensors."""
    return _module(package, resolve(backend, tensors))


@functools.cache
def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")


def refuse_compiled(backend: str, reason: str) -> None:
    """For calls that only autograd serves: refuses a compiled backend that was named.

    Raises:
        BackendError: ``backend`` is "cpu", "cuda" or "triton".
    """
    if backend in _COMPILED:
        raise _unable(backend, reason)


def _known(name: str) -> None:
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)}; found {name!r}")


def _unable(name: str, reason: str) -> BackendError:
    return BackendError(
        f"backend {name!r} cannot serve: {reason}. Choose backend='auto' or backend='eager' instead"
    )
