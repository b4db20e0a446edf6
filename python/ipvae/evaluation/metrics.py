"""Measures of reconstruction, sparsity and convergence, and sums that stream over steps and samples.

Nothing here keeps counts: `StepSums` holds one number per step and measure, `SparsitySums` two per neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipvae_kernels import checks

from ..inputs import dense

FLOAT32_EPS = 1.1920929e-07
Numbers = Tensor | NDArray[Any]


def total_variation(x: Numbers) -> Tensor:
    """Sum of squares of every input around its own mean.

    Args:
        x: [..., M].

    Returns:
        [...], the denominator of R2.
    """
    x = _numbers("x", x)
    return (x - x.mean(dim=-1, keepdim=True)).square().sum(dim=-1)


def r2_from_error(squared_error: Tensor, variation: Tensor) -> Tensor:
    """R2 of every sample: 1 - squared error / (variation + 1.2e-7), the released ``compute_r2``."""
    return 1.0 - squared_error / (variation + FLOAT32_EPS)


def squared_error(x: Numbers, reconstruction: Numbers) -> Tensor:
    """Squared error of every sample, summed over its pixels: [..., M] and [..., M] to [...]."""
    x, reconstruction = _numbers("x", x), _numbers("reconstruction", reconstruction)
    pairs = zip(reversed(x.shape), reversed(reconstruction.shape), strict=False)
    if any(a != b and 1 not in (a, b) for a, b in pairs) or x.shape[-1] != reconstruction.shape[-1]:
        raise ValueError(
            f"reconstruction: expected the shape of x, {list(x.shape)}, found {list(reconstruction.shape)}"
        )
    return (x - reconstruction).square().sum(dim=-1)


def r2(x: Numbers, reconstruction: Numbers) -> Tensor:
    """R2 of every sample against its own mean: [..., M] and [..., M] to [...]."""
    x, reconstruction = _numbers("x", x), _numbers("reconstruction", reconstruction)
    # In float64, in which the squares of what float32 holds are finite.
    wide = x.double(), reconstruction.double()
    return r2_from_error(squared_error(*wide), total_variation(wide[0])).to(x.dtype)


def pooled_r2(squared_error: Tensor, x: Tensor) -> Tensor:
    """R2 of all samples together, which samples that hardly vary do not dominate.

    Args:
        squared_error: [..., N], summed over pixels.
        x: the inputs, [N, M] or [..., N, M].

    Returns:
        [...]: 1 - the sum of the errors / the sum of the variations.
    """
    return r2_from_error(squared_error.sum(-1), total_variation(x).sum(-1))


def zeros_fraction(counts: Numbers) -> Tensor:
    """Share of silent neurons in every sample: counts [..., K] to [...]."""
    return (_numbers("counts", counts) == 0).to(torch.float32).mean(dim=-1)


def lifetime_sparsity(counts: Numbers) -> Tensor:
    """Vinje-Gallant sparsity of neurons over samples: counts [N, ..., K] to [..., K]; 1 if silent."""
    counts = _numbers("counts", counts)
    return _sparsity(counts.sum(0, dtype=torch.float64), counts.double().square().sum(0), counts.shape[0])


def population_sparsity(counts: Numbers) -> Tensor:
    """Treves-Rolls sparsity of samples over neurons: counts [..., K] to [...]; 1 if silent."""
    counts = _numbers("counts", counts)
    return _sparsity(counts.sum(-1, dtype=torch.float64), counts.double().square().sum(-1), counts.shape[-1])


def _numbers(name: str, value: Numbers) -> Tensor:
    """Numbers [..., n], n >= 1, of a tensor or array; integers in float64.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value.astype(np.float64))
    dense(name, value)
    assert isinstance(value, Tensor)
    if value.is_complex() or value.ndim == 0 or value.shape[-1] == 0:
        raise ValueError(f"{name}: expected real numbers [..., n], found {value.dtype} {list(value.shape)}")
    return value if value.is_floating_point() else value.double()


def _sparsity(total: Tensor, total_square: Tensor, n: int) -> Tensor:
    """(1 - (sum r)^2 / (n sum r^2)) / (1 - 1/n), 1 where nothing fired: the released ``sparse_score``."""
    if n < 2:
        raise ValueError(f"counts: sparsity needs at least 2 entries, found {n}")
    silent = total_square == 0
    ratio = total.square() / torch.where(silent, 1.0, total_square)
    return torch.where(silent, 1.0, (1.0 - ratio / n) / (1.0 - 1.0 / n))


def explained_variance(x: Tensor, latents: Tensor, dictionary: Tensor) -> Tensor:
    """What every feature explains: the squared error of inputs without it, less that with it.

    Args:
        x: [N, M].
        latents: [N, K], such as mean counts.
        dictionary: Phi, [M, K].

    Returns:
        [K], as shares of the inputs' variation (`total_variation`). Features that share their work both get
        little, so these do not add up to R2; below zero where a feature does harm.
    """
    x, latents, dictionary = (
        _numbers(name, value).double()
        for name, value in {"x": x, "latents": latents, "dictionary": dictionary}.items()
    )
    if x.ndim != 2 or dictionary.ndim != 2 or latents.shape != (len(x), dictionary.shape[1]):
        raise ValueError(
            "latents: expected x [N, M], latents [N, K] and dictionary [M, K], "
            f"found {list(x.shape)}, {list(latents.shape)} and {list(dictionary.shape)}"
        )
    checks.shape("dictionary", dictionary, (x.shape[1], latents.shape[1]), "[M, K]")
    residual = x - latents @ dictionary.T
    energy = dictionary.square().sum(0) * latents.square().sum(0)
    gain = 2.0 * ((residual @ dictionary) * latents).sum(0) + energy
    return gain / (total_variation(x).sum() + FLOAT32_EPS)


def steps_to(curve: NDArray[np.floating], fraction: float) -> int:
    """The first step, counted from 1, at which a rising curve reaches `fraction` of its last value.

    Args:
        curve: [steps].
        fraction: in (0, 1].

    Raises:
        ValueError: for an empty curve, a last value that is not positive, or a fraction out of range.
    """
    values = np.asarray(curve)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "biuf":
        raise ValueError(f"curve: expected [steps] numbers, found {values.dtype} of shape {values.shape}")
    fraction = checks.number("fraction", fraction, 0.0, 1.0, above=True)
    if not values[-1] > 0.0:
        raise ValueError(f"curve: expected a positive last value, found {values[-1]}")
    return int(np.argmax(values >= fraction * values[-1])) + 1


class StepSums:
    """Means over samples of per-step measures, fed in blocks of steps and samples in any order.

    Args:
        steps: number of steps.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.int64]] = {}

    def add(self, first_step: int, records: Mapping[str, Tensor]) -> None:
        """Adds measures [R, B] of the steps `first_step` to `first_step + R - 1`."""
        for name, values in records.items():
            sums = self._sums.setdefault(name, np.zeros(self.steps))
            counts = self._counts.setdefault(name, np.zeros(self.steps, dtype=np.int64))
            steps = slice(first_step, first_step + values.shape[0])
            if steps.stop > self.steps:
                raise ValueError(f"{name}: expected steps below {self.steps}, found {steps.stop - 1}")
            sums[steps] += values.sum(dim=1, dtype=torch.float64).cpu().numpy()
            counts[steps] += values.shape[1]

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Mean of every measure at every step, [steps]; NaN where nothing was added."""
        with np.errstate(invalid="ignore"):
            return {name: sums / self._counts[name] for name, sums in self._sums.items()}


class SparsitySums:
    """Lifetime and population sparsity of counts that arrive in batches."""

    def __init__(self) -> None:
        self._n = 0
        self._population = 0.0
        self._total: Tensor | None = None
        self._total_square: Tensor | None = None

    def add(self, counts: Tensor) -> None:
        """Adds the counts [B, K] of a batch of samples."""
        total, square = counts.sum(0, dtype=torch.float64), counts.double().square().sum(0)
        self._total = total if self._total is None else self._total + total
        self._total_square = square if self._total_square is None else self._total_square + square
        self._population += float(population_sparsity(counts).sum())
        self._n += counts.shape[0]

    def lifetime(self) -> float:
        """Lifetime sparsity, mean over neurons. Raises ValueError before two samples were added."""
        if self._total is None or self._total_square is None:
            raise ValueError("lifetime: no counts were added")
        return float(_sparsity(self._total, self._total_square, self._n).mean())

    def population(self) -> float:
        """Population sparsity, mean over samples. Raises ValueError before a sample was added."""
        if self._n == 0:
            raise ValueError("population: no counts were added")
        return self._population / self._n
