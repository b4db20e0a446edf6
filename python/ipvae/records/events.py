"""Spikes as lists of events, as simulators and plots take them, and back; lossless."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ipvae_kernels import checks

Integers = NDArray[np.int64]
_AXES = {2: ("step", "neuron"), 3: ("step", "sample", "neuron")}


class Events(NamedTuple):
    """The counts that are not 0, in the order of step, sample and neuron: the columns of a `SpikeRecord`.

    Attributes:
        step: [E], int64.
        sample: [E]; zeros where there is one sample without an axis of its own.
        neuron: [E].
        count: [E], spikes of the neuron in this step, at least 1.
    """

    step: Integers
    sample: Integers
    neuron: Integers
    count: Integers  # type: ignore[assignment]  # a tuple's method of this name

    def spikes(self, step_seconds: float = 1.0) -> tuple[NDArray[np.float64], Integers, Integers]:
        """Every spike by itself, as Brian2's ``SpikeGeneratorGroup`` and raster plots take them.

        The n spikes of a step are spread evenly over it, at (j + 1/2)/n of its duration: one spike lies in
        the middle, and bins of one step give the counts again.

        Args:
            step_seconds: what a step stands for.

        Returns:
            Times in seconds, samples and neurons, [S] each; in the order of the events.

        Raises:
            TypeError, ValueError: the duration is not a positive number.
        """
        seconds = checks.number("step_seconds", step_seconds, 0.0, above=True)
        count = self.count
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        times = (np.repeat(self.step, count) + (within + 0.5) / np.repeat(count, count)) * seconds
        return times, np.repeat(self.sample, count), np.repeat(self.neuron, count)


def to_events(counts: Any) -> Events:
    """Events of counts.

    Args:
        counts: whole numbers, [T, B, K], or [T, K] of one sample: a tensor, dense or sparse (as ``infer``
            records "counts" and "sparse_counts"), a NumPy array, or a sparse array of SciPy [T, K].

    Returns:
        One row for each count that is not 0.

    Raises:
        TypeError: counts are something else.
        ValueError: another number of axes, or a number that is negative, fractional or not finite.

    Example:
        >>> records = model.infer(x, 200, record=("counts",)).records
        >>> step, sample, neuron, count = to_events(records["counts"])
    """
    places, values = _entries(counts)
    axes = len(places)
    if axes not in _AXES:
        raise ValueError(f"counts: expected shape [T, B, K] or [T, K], found {axes} axes")
    names = _AXES[axes]

    def where(i: int) -> str:
        return ", ".join(f"{name} {place}" for name, place in zip(names, places[:, i], strict=True))

    whole = _whole("counts", values, where)
    kept = whole != 0
    step, *sample, neuron = places[:, kept]
    return Events(step, sample[0] if sample else np.zeros_like(step), neuron, whole[kept])


def from_events(
    step: ArrayLike,
    neuron: ArrayLike,
    count: ArrayLike | None = None,
    *,
    sample: ArrayLike | None = None,
    shape: Sequence[int],
    sparse: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Counts of events, the inverse of `to_events`; events of the same place add up.

    Args:
        step: [E], integers.
        neuron: [E].
        count: [E], whole numbers of at least 0; None: one spike each.
        sample: [E]; None: all of sample 0.
        shape: (T, B, K), or (T, K) of one sample.
        sparse: a coalesced sparse COO tensor instead of a dense one.
        dtype: of the counts.

    Returns:
        Counts of that shape.

    Raises:
        TypeError: indices are no integers; times in seconds are to be divided by the step first.
        ValueError: columns of different lengths, an index out of range, or a count that is negative or
            fractional.

    Example:
        >>> events = to_events(counts)
        >>> torch.equal(from_events(**events._asdict(), shape=counts.shape), counts)
        True
    """
    sizes = tuple(checks.integer("shape", size, 0, 2**62) for size in shape)
    if len(sizes) not in _AXES:
        raise ValueError(f"shape: expected (T, B, K) or (T, K), found {sizes}")
    n = np.asarray(step).shape
    columns = {"step": step, "sample": np.zeros(n, np.int64) if sample is None else sample, "neuron": neuron}
    limits = dict(zip(_AXES[len(sizes)], sizes, strict=True))
    places = {name: _indices(name, column, n, limits.get(name, 1)) for name, column in columns.items()}
    values = np.ones(n, np.int64) if count is None else _column("count", count, n)
    values = _whole("count", values, lambda i: f"row {i}")
    indices = torch.from_numpy(np.stack([places[name] for name in limits]))
    found = torch.sparse_coo_tensor(
        indices, torch.from_numpy(values).to(dtype), sizes, check_invariants=False
    ).coalesce()
    return found if sparse else found.to_dense()


def _entries(counts: Any) -> tuple[Integers, NDArray[Any]]:
    """Places [axes, E] of what is not 0, in order, and the numbers there."""
    if isinstance(counts, np.ndarray):
        _numbers(counts.dtype)
        places = np.nonzero(counts)
        return np.array(places), counts[places]
    if hasattr(counts, "tocsr"):  # of SciPy, which need not be installed
        rows = counts.tocsr(copy=True)
        _numbers(rows.dtype)
        rows.sum_duplicates()
        found = rows.tocoo()
        return np.stack([found.row, found.col]).astype(np.int64), found.data
    if not isinstance(counts, Tensor) or counts.is_meta or counts.is_complex():
        raise TypeError(f"counts: expected a tensor or array of numbers, found {type(counts).__name__}")
    entries = counts.detach().to_sparse().coalesce()
    values = entries.values()
    wide = values.double() if values.is_floating_point() else values
    return entries.indices().cpu().numpy(), wide.cpu().numpy()


def _numbers(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise TypeError(f"counts: expected numbers, found an array of {dtype}")


def _whole(name: str, values: NDArray[Any], where: Callable[[int], str]) -> Integers:
    """Whole numbers of at least 0 as int64; ``where`` names the place of one for a message."""
    fits = (values >= 0) & (values == np.floor(values)) & (values < 2**53)
    if not fits.all():
        i = int(np.argmin(fits))
        raise ValueError(f"{name}: expected whole numbers of at least 0, found {values[i]} at {where(i)}")
    return values.astype(np.int64)


def _column(name: str, values: ArrayLike, n: tuple[int, ...]) -> NDArray[Any]:
    found = np.asarray(values)
    if found.ndim != 1 or found.shape != n:
        expected = f"{list(n)} as step" if len(n) == 1 else "[E]"
        raise ValueError(f"{name}: expected {expected}, one row an event, found {list(found.shape)}")
    if found.size and found.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, found {found.dtype}")
    return found


def _indices(name: str, values: ArrayLike, n: tuple[int, ...], size: int) -> Integers:
    """Indices of an axis of so many."""
    found = _column(name, values, n)
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, found {found.dtype}")
    outside = (found < 0) | (found >= size)
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(f"{name}: expected 0 to {size - 1}, found {found[i]} at row {i}")
    return found.astype(np.int64)
