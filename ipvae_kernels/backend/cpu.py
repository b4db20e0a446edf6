"""The CPU backend: the compiled kernels on tensors in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import compiled


def reason() -> str | None:
    """Why no call can be served, or None."""
    return compiled.reason()


def unserved(tensors: Sequence[Tensor]) -> str | None:
    """Why these tensors cannot be served, or None."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it computes on CPUs, the tensors are on {tensor.device}"
    return compiled.not_float32(tensors)


def unsigned_seed(seed: Tensor) -> int:
    """The 64 bits of an int64 seed as an unsigned integer."""
    return int(seed) & (1 << 64) - 1
