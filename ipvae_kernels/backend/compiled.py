"""The compiled module of the CPU and CUDA backends, loaded at first use and not by importing the package."""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent  # of a checkout; of an installed package, the folder of all packages


@functools.cache
def find() -> tuple[ModuleType | None, str | None]:
    """The compiled module, or why it cannot be used."""
    try:
        module = importlib.import_module("ipvae_kernels._C")
    except ModuleNotFoundError as error:
        return None, f"the compiled module is missing ({error}); {how_to_get_it()}"
    except ImportError as error:
        return None, f"the compiled module cannot be loaded ({error}); {how_to_get_it()}"
    if _in_checkout() and getattr(module, "sources", None) != sources_digest(CHECKOUT):
        return None, f"the compiled module is older than the C++ sources beside it; {how_to_get_it()}"
    return module, None


def _in_checkout() -> bool:
    return (CHECKOUT / "CMakeLists.txt").is_file() and (CHECKOUT / "csrc").is_dir()


def sources_digest(checkout: Path) -> str:
    """The digest of a checkout's C++ sources that CMakeLists.txt compiles into the module."""
    kinds = (".h", ".cpp", ".cu", ".cuh")
    paths = [path for path in (checkout / "csrc").rglob("*") if path.suffix in kinds]
    digests = {path.relative_to(checkout).as_posix(): hashlib.sha256(path.read_bytes()) for path in paths}
    lines = [f"{name} {digest.hexdigest()}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def how_to_get_it() -> str:
    """What to do where it is missing."""
    if not _in_checkout():
        return "install it with 'python -m pip install .' in a checkout of the repository"
    advice = f"build it with 'python -m pip install -e .' in {CHECKOUT}"
    if is_installed():
        advice += (
            ", whose sources Python has imported, or start Python in another folder: the package is installed"
        )
    elif others := sorted(path.name for path in PACKAGE.glob("_C.*.so")):
        advice += f", by this Python ({', '.join(others)} lies there)"
    return advice


def is_installed() -> bool:
    """Whether a compiled module lies among the installed packages."""
    return any(
        str(path).startswith("ipvae_kernels/_C.")
        for distribution in metadata.distributions(name="ipvae-kernels")
        for path in distribution.files or ()
    )


def load() -> ModuleType:
    """The compiled module.

    Raises:
        ImportError: it is not there; the message says how to install it.
    """
    module, reason = find()
    if module is None:
        raise ImportError(f"ipvae_kernels: {reason}")
    return module


def reason() -> str | None:
    """Why the compiled module cannot be used, or None where it can."""
    return find()[1]


def all_below(tensor: Tensor, limit: float) -> bool:
    """Whether the size of every element is below a limit; NaN is not below any."""
    if (address := _address(tensor)) is not None:
        return _all_below(address, tensor.numel(), limit)
    return not tensor.numel() or bool((torch.stack(torch.aminmax(tensor)).abs() < limit).all())


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinite elements."""
    if (address := _address(tensor)) is not None:
        return _all_below(address, tensor.numel(), math.inf)
    # One infinite or NaN element makes the sum so; the exact test is left for sums that overflow.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def dense_finite(tensor: Tensor) -> bool:
    """The same of a contiguous float32 tensor in the host's memory."""
    return _all_below(tensor.data_ptr(), tensor.numel(), math.inf)


def _all_below(address: int, n: int, limit: float) -> bool:
    return bool(load().all_below(address, n, limit, torch.get_num_threads()))


def _address(tensor: Tensor) -> int | None:
    """Where the compiled module can look at the numbers of a tensor itself; None where it cannot."""
    on_cpu = tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
    if not on_cpu or reason():
        return None
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a tensor that torch.func wraps has no numbers of its own
        return None


def fill(args: Any, **fields: Tensor | int | float | bool | None) -> Any:
    """Sets the fields of an argument struct; a tensor gives its address, None a null pointer.

    The caller keeps the tensors alive until the kernel has run.
    """
    for name, value in fields.items():
        if isinstance(value, Tensor):
            if not value.is_contiguous() or value.dtype != torch.float32:
                raise AssertionError(f"{name}: the caller passes contiguous float32 tensors")
            value = value.data_ptr()
        setattr(args, name, 0 if value is None else value)
    return args


def not_float32(tensors: Iterable[Tensor]) -> str | None:
    """Why the kernels cannot take these tensors, or None: they compute in float32."""
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it computes in torch.float32, the tensors are {tensor.dtype}"
    return None


def arrival_limit(n_arrivals: int | None) -> float:
    """``n_arrivals`` as a float, infinite where there is no limit."""
    return math.inf if n_arrivals is None else float(n_arrivals)
