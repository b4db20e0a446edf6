"""What the Triton kernels share: device functions, the launch, and why the backend cannot serve.

Importing this module does not import Triton; ``math.py``, ``philox.py``, ``poisson.py`` and the cells hold
the device functions and do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import sysconfig
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

OLDEST = (3, 3)
CAPABILITY = (8, 0)  # the first with bfloat16 and TF32 products
GRID_MAX = 2**31 - 1  # programs of one launch

_INSTALL = (
    f"install it with \"pip install 'triton>={OLDEST[0]}.{OLDEST[1]}'\" (Linux); at its "
    "first use it also wants a C compiler and Python.h"
)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which serves CPU tensors: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


@functools.cache
def missing() -> str | None:
    """Why Triton itself cannot be used, or None."""
    try:
        import triton
    except ImportError as error:
        return f"Triton is missing ({error}); {_INSTALL}"
    if version() < OLDEST:
        return f"Triton {triton.__version__} is too old; {_INSTALL}"
    return None


def version() -> tuple[int, ...]:
    """Major and minor version of the Triton installed; (0, 0) where it does not say."""
    import triton

    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    return (0, 0) if found is None else tuple(map(int, found.groups()))


def reason() -> str | None:
    """Why no call can be served, or None."""
    if (why := missing()) is not None or interpreted():
        return why
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs, this torch is built for ROCm"
    if not torch.cuda.is_available():
        return "it needs an NVIDIA GPU and a CUDA build of torch: torch.cuda.is_available() is False"
    return no_driver()


@functools.cache
def no_driver() -> str | None:
    """Why Triton cannot talk to the GPU: it builds its driver, a C file, where none lies in its cache."""
    if (lacking := missing_to_build()) is None:
        return None
    from triton.runtime import driver

    try:
        driver.active.get_current_device()
    except Exception as error:  # of a compiler that is not there, of its output, or of the import
        return (
            f"Triton builds its driver at first use and finds no {lacking} ({error}); install a C compiler "
            "and Python's headers (on Debian and Ubuntu: apt install gcc python3-dev), or set CC"
        )
    return None


def missing_to_build() -> str | None:
    """What Triton lacks to build its driver, looked for where Triton looks; None: nothing."""
    if os.environ.get("CC") is None and not (shutil.which("gcc") or shutil.which("clang")):
        return "C compiler"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    return None if header.exists() else f"Python.h in {header.parent}"


def warps_max(major: int) -> int:
    """The most warps that a program may have on a device of this major compute capability.

    Before version 3.8 Triton's products in a loop raced with 8 warps from compute capability 10 on.
    """
    return 4 if major >= 10 and version() < (3, 8) else 8


def unserved(tensors: Iterable[Tensor]) -> str | None:
    """Why these tensors cannot be served, or None."""
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it computes in torch.float32, the tensors are {tensor.dtype}"
        if tensor.device.type == "cpu" and interpreted():
            continue
        if tensor.device.type != "cuda":
            return (
                f"it computes on NVIDIA GPUs, the tensors are on {tensor.device}; move them with .to('cuda')"
            )
        if torch.cuda.get_device_capability(tensor.device) < CAPABILITY:
            name = torch.cuda.get_device_name(tensor.device)
            return f"it needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, {name} has less"
    return None


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least n >= 1."""
    return 1 << (n - 1).bit_length()


def check_grid(programs: int) -> int:
    """The number of programs of a launch.

    Raises:
        ValueError: more than a GPU can launch.
    """
    if programs > GRID_MAX:
        raise ValueError(
            f"the batch: expected at most {GRID_MAX} tiles, found {programs}; split it with sample_offset"
        )
    return programs
