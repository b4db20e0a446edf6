"""The compiled module, loaded at first use; importing the package never needs it."""

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

# In the order of the enumerations in csrc/common/poisson.h and csrc/common/poisson_cell.h.
ESTIMATORS = ("hard", "sigmoid", "linear", "cubic", "quintic", "cosine", "fini2", "fini3")
KLS = ("exact", "released")

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent  # of a checkout; of an installed package, the folder of all packages


@functools.cache
def _import() -> tuple[ModuleType | None, str | None]:
    try:
        module = importlib.import_module("._C", __package__)
    except ModuleNotFoundError as error:
        return None, f"the compiled module is missing ({error}); {_how_to_get_it()}"
    except ImportError as error:
        return None, f"the compiled module cannot be loaded ({error}); {_how_to_get_it()}"
    if _in_checkout() and getattr(module, "sources", None) != sources_digest(_CHECKOUT):
        return None, f"the compiled module is older than the C++ sources beside it; {_how_to_get_it()}"
    return module, None


def _in_checkout() -> bool:
    return (_CHECKOUT / "CMakeLists.txt").is_file() and (_CHECKOUT / "csrc").is_dir()


def sources_digest(checkout: Path) -> str:
    """The digest of a checkout's C++ sources that CMakeLists.txt compiles into the module."""
    kinds = (".h", ".cpp", ".cu", ".cuh")
    paths = [path for path in (checkout / "csrc").rglob("*") if path.suffix in kinds]
    digests = {path.relative_to(checkout).as_posix(): hashlib.sha256(path.read_bytes()) for path in paths}
    lines = [f"{name} {digest.hexdigest()}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _how_to_get_it() -> str:
    if not _in_checkout():
        return "install it with 'python -m pip install .' in a checkout of the repository"
    advice = f"build it with 'python -m pip install -e .' in {_CHECKOUT}"
    if _is_installed():
        advice += (
            ", whose sources Python has imported, or start Python in another folder: the package is installed"
        )
    elif others := sorted(path.name for path in _PACKAGE.glob("_C.*.so")):
        advice += f", by this Python ({', '.join(others)} lies there)"
    return advice


def _is_installed() -> bool:
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
    module, reason = _import()
    if module is None:
        raise ImportError(f"ipvae_kernels: {reason}")
    return module


def reason() -> str | None:
    """Why the compiled module cannot be used, or None where it can."""
    return _import()[1]


def cuda_reason() -> str | None:
    """Why the compiled module cannot serve tensors on a CUDA device, or None where it can."""
    if reason() is None and load().cuda is None:
        return (
            "CUDA was not compiled in; put nvcc on the PATH and install again with "
            "'python -m pip install -e .' in a checkout of the repository"
        )
    return reason()


def on_cuda(tensor: Tensor) -> bool:
    """Whether the CUDA kernels serve a tensor, and not those for the CPU."""
    return tensor.is_cuda


def launch(tensor: Tensor) -> Any:
    """The device of a CUDA tensor and torch's current stream on it, for the launchers."""
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return fill(load().Launch(), device=tensor.device.index, stream=stream)


@functools.cache
def cuda_limits(device: torch.device) -> Any:
    """What a CUDA device offers a rollout."""
    return load().cuda_limits(device.index)


def unserved(tensors: Iterable[Tensor]) -> str | None:
    """Why these tensors cannot be served, or None."""
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it computes in torch.float32, the tensors are {tensor.dtype}"
        if tensor.device.type not in ("cpu", "cuda"):
            return f"it computes on CPUs and CUDA devices, the tensors are on {tensor.device}"
        if tensor.device.type == "cuda" and (reason := cuda_reason()):
            return f"{reason} (the tensors are on {tensor.device})"
    return None


def all_below(tensor: Tensor, limit: float) -> bool:
    """Whether the size of every element is below a limit; that of NaN is not."""
    if (address := _address(tensor)) is not None:
        return bool(load().all_below(address, tensor.numel(), limit, torch.get_num_threads()))
    return not tensor.numel() or bool((torch.stack(torch.aminmax(tensor)).abs() < limit).all())


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinite elements."""
    if _address(tensor) is not None:
        return all_below(tensor, math.inf)
    # One infinite or NaN element makes the sum so; the exact test is left for sums that overflow.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


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


def unsigned_seed(seed: Tensor) -> int:
    """The 64 bits of an int64 seed as an unsigned integer."""
    return int(seed) & (1 << 64) - 1


def estimator_code(estimator: str, temperature: float) -> int:
    """The number of an estimator; at temperature 0 the relaxed ones are hard."""
    return ESTIMATORS.index("hard" if is_hard(estimator, temperature) else estimator)


def is_hard(estimator: str, temperature: float) -> bool:
    """Whether the draw is a hard count without a gradient; `checks.number` made the least temperatures 0."""
    return estimator == "hard" or (temperature == 0.0 and not estimator.startswith("fini"))


def arrival_limit(n_arrivals: int | None) -> float:
    """``n_arrivals`` as a float, infinite where there is no limit."""
    return math.inf if n_arrivals is None else float(n_arrivals)
