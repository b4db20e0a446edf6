"""What the wrapper takes for inputs and labels: tensors, NumPy arrays, Datasets and DataLoaders.

A tensor says what it is and is never converted. What has no dtype or device of torch is given those of the
model. Integers are refused, since nothing tells their unit: images of 0 to 255 want a division by 255, which
`batches` alone does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ipvae_kernels import checks

Inputs = Tensor | NDArray[Any]
Source = Inputs | Dataset[Any] | DataLoader[Any]

KINDS = "a torch.Tensor, a NumPy array, a torch Dataset or a DataLoader"
CHUNK = 1024  # items of a Dataset that are stacked at once
# Inputs that are never negative and reach this are taken for pixels: docs/design/data.md, "Units of inputs".
PIXEL_LEVELS = 16.0

_SCALE = "; divide images of 0 to 255 by 255"


def whole(name: str, value: object) -> int:
    """An integer of Python, NumPy or in a tensor of shape []; its bounds are the caller's to check."""
    return checks.integer(name, value, -(2**63), 2**63 - 1)


def dense(name: str, value: object) -> None:
    """A tensor that is not sparse and has numbers.

    Raises:
        TypeError: for anything else.
    """
    checks.tensor(name, value)
    assert isinstance(value, Tensor)
    if value.is_meta or value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor with data, found {value.layout} on {value.device}")


def as_tensor(name: str, value: object, like: Tensor | None = None) -> Tensor:
    """A tensor or an array as a tensor of the dtype of `like`; an array comes to the CPU.

    Without `like` a tensor keeps its dtype, and an array becomes float32.

    Raises:
        TypeError: for anything else, for integers, and for a tensor of another dtype.
    """
    if isinstance(value, np.ndarray):
        return _from_array(name, value, torch.float32 if like is None else like.dtype)
    dense(name, value)
    assert isinstance(value, Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected floating point numbers, found {value.dtype}{_SCALE}")
    if like is None or value.dtype == like.dtype or torch.is_autocast_enabled(value.device.type):
        return value
    if value.dtype != checks.raised(like).dtype:  # a model in half precision computes in float32
        raise TypeError(
            f"{name}: expected dtype {like.dtype} as that of the model, found {value.dtype}; "
            f"{name}.to({like.dtype}) converts it"
        )
    return value


def gather(name: str, source: object, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Inputs in memory, [N, ...], and where a Dataset or DataLoader gives (input, class) their labels, [N].

    A DataLoader is read once, in the order and with the transforms of that reading.

    Raises:
        TypeError: for what cannot be read, or holds integers.
        ValueError: for a source without items.
    """
    if isinstance(source, (Tensor, np.ndarray)):
        return as_tensor(name, source, like), None
    parts, labels = [], []
    for x, y in _items(name, source):
        parts.append(as_tensor(name, x.to(like.dtype) if x.is_floating_point() else x, like))
        if isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point():
            labels.append(y)
    if not parts:
        raise ValueError(f"{name}: expected items, found none")
    return torch.cat(parts), torch.cat(labels) if len(labels) == len(parts) else None


def batches(name: str, source: object, size: int, like: Tensor) -> Iterator[Tensor]:
    """Inputs in order, [size, ...] at a time and the rest at the end; one batch is in memory at once.

    Bytes (uint8) are pixels here and become [0, 1], as torchvision's ``ToTensor`` has it.

    Args:
        name: of the argument, for messages.
        source: array (a memory map too), tensor, Dataset or DataLoader; its own batches have no part in this.
        size: of a batch.
        like: the model's parameter whose dtype is wanted.

    Raises:
        TypeError: for what cannot be read, or holds other integers.
    """
    if isinstance(source, (Tensor, np.ndarray)):
        if source.ndim == 0:
            raise ValueError(f"{name}: expected inputs [N, ...], found shape []")
        parts: Iterable[Any] = (source[i : i + size] for i in range(0, len(source), size))
    else:
        parts = (x.to(like.dtype) if x.is_floating_point() else x for x, _ in _items(name, source))
    held: list[Tensor] = []
    n = 0
    for part in parts:
        held.append(as_tensor(name, _pixels(part, like.dtype), like))
        n += len(held[-1])
        if n >= size:
            full = n // size * size
            found = torch.cat(held)
            yield from torch.split(found[:full], size)
            held, n = [found[full:]], n - full
    if n:
        yield torch.cat(held)


def labelled(name: str, source: object, like: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and labels from a pair of them, or from a Dataset or DataLoader of (input, class).

    Raises:
        TypeError, ValueError: for anything else, or numbers of inputs and labels that differ.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2:
        x, _ = gather(name, source[0], like)
        if x.ndim < 2:
            raise ValueError(f"{name}: expected inputs [N, ...], found shape {list(x.shape)}")
        return x, as_labels(name, source[1], x.shape[0])
    if not isinstance(source, (Dataset, DataLoader)):
        raise TypeError(
            f"{name}: expected a pair of inputs and labels, a Dataset or a DataLoader, "
            f"found {type(source).__name__}"
        )
    x, labels = gather(name, source, like)
    if labels is None:
        raise ValueError(f"{name}: expected items (input, class), found none with a class")
    return x, labels


def as_labels(name: str, value: object, n: int) -> Tensor:
    """Class labels [N], whole numbers of any dtype, as an int64 tensor on the CPU.

    Raises:
        TypeError: for anything but whole numbers in a tensor or array.
        ValueError: for another shape.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value.astype(np.float64 if value.dtype.kind == "f" else np.int64))
    if not isinstance(value, Tensor) or value.is_meta or value.is_complex():
        found = f"{type(value).__name__} {getattr(value, 'dtype', '')}".strip()
        raise TypeError(f"{name}: expected labels as a tensor or array of integers, found {found}")
    if value.shape != (n,):
        found = str(len(value)) if value.ndim == 1 else f"shape {list(value.shape)}"
        raise ValueError(f"{name}: expected {n}, found {found}")
    if value.is_floating_point() and not torch.equal(value, value.round()):
        raise TypeError(f"{name}: expected labels as a tensor or array of integers, found fractions")
    return value.to("cpu", torch.int64)


def refuse_pixels(name: str, x: Tensor) -> None:
    """Refuses to train on images of 0 to 255, which fit none of the scales that learning rates are for.

    Raises:
        ValueError: where no number is negative and the largest is `PIXEL_LEVELS` at least.
    """
    if x.numel() and float(x.min()) >= 0 and float(x.max()) >= PIXEL_LEVELS:
        raise ValueError(
            f"{name}: expected inputs of unit scale, found {float(x.min()):g} to {float(x.max()):g}, which "
            f"look like pixels; bring them to [0, 1]{_SCALE}, or centre or whiten them"
        )


def _from_array(name: str, value: NDArray[Any], dtype: torch.dtype) -> Tensor:
    if value.dtype.kind != "f" or isinstance(value, np.ma.MaskedArray):
        masked = "a masked array of " if isinstance(value, np.ma.MaskedArray) else ""
        raise TypeError(f"{name}: expected floating point numbers, found {masked}{value.dtype}{_SCALE}")
    # Also for strides, byte orders and precisions that torch has none of, and arrays that are read-only.
    wanted = np.float64 if dtype == torch.float64 else np.float32
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as that
        return torch.from_numpy(np.require(value, wanted, ["C", "W", "E"])).to(dtype)


def _pixels(x: Inputs, dtype: torch.dtype) -> Inputs:
    """Bytes divided by 255; anything else as it is."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(np.require(x, None, ["C", "W"])) if x.dtype == np.uint8 else x
    return x.to(dtype) / 255 if isinstance(x, Tensor) and x.dtype == torch.uint8 else x


def _items(name: str, source: object) -> Iterator[tuple[Tensor, Any]]:
    """Batches of inputs, and what stands beside them or None."""
    for batch in _batches(name, source):
        x, y, *_ = (*batch, None) if isinstance(batch, (tuple, list)) and batch else (batch, None)
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected items x or (x, label) of tensors, found {type(x).__name__}")
        yield x, y


def _batches(name: str, source: object) -> Iterator[Any]:
    if isinstance(source, DataLoader):
        return iter(source)
    if not isinstance(source, Dataset):
        raise TypeError(f"{name}: expected {KINDS}, found {type(source).__name__}")
    # No DataLoader here: it draws from torch's generator, and so would change what a seed gives.
    items: Iterable[Any] = (
        source if isinstance(source, IterableDataset) else (source[i] for i in range(len(source)))  # type: ignore[arg-type]
    )
    return _stacked(name, iter(items))


def _stacked(name: str, items: Iterator[Any]) -> Iterator[Any]:
    """Batches of `CHUNK` items."""
    for first in items:
        try:
            with torch.device("cpu"):  # numbers become tensors here
                yield default_collate([first, *islice(items, CHUNK - 1)])
        except (TypeError, RuntimeError) as error:  # of a type or of shapes that do not stack
            raise TypeError(f"{name}: expected items x or (x, label) of one shape; {error}") from error
