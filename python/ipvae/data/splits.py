"""What every data set is handed over as, and how a set is split at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch import Tensor

from ipvae.inputs import dense
from ipvae_kernels import checks

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set in memory. A split that does not exist has N = 0.

    Attributes:
        train: [N, M] float32, flattened inputs; likewise ``validation`` and ``test``.
        shape: (C, H, W) of one input, C H W = M.
        name: short name, for file names and titles.
        labels: split -> [N] int64 class labels, for the splits that have them.
        about: where the numbers come from, how they were processed and split.

    Raises:
        TypeError, ValueError: where the parts do not fit each other.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    _: KW_ONLY
    shape: tuple[int, int, int]
    name: str
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        for split in SPLITS:
            tensor: Tensor = _tensor(split, getattr(self, split))
            object.__setattr__(self, split, tensor)
            if tensor.dtype != torch.float32:
                raise TypeError(f"{split}: expected float32, found {tensor.dtype}")
            if tensor.ndim != 2 or tensor.shape[1] != math.prod(self.shape):
                expected = f"[N, {math.prod(self.shape)}] for inputs of shape {self.shape}"
                raise ValueError(f"{split}: expected {expected}, found {list(tensor.shape)}")
        for split, labels in self.labels.items():
            if split not in SPLITS:
                raise ValueError(f"labels: expected splits {', '.join(SPLITS)}, found {split!r}")
            n = len(getattr(self, split))
            dense(f"labels[{split!r}]", labels)
            if labels.dtype != torch.int64 or labels.shape != (n,):
                raise ValueError(
                    f"labels[{split!r}]: expected int64 [{n}], found {labels.dtype} {list(labels.shape)}"
                )

    def images(self, split: str) -> Tensor:
        """The inputs of a split as images, [N, C, H, W]."""
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
        tensor: Tensor = getattr(self, split)
        return tensor.reshape(-1, *self.shape)

    def changed(
        self, change: Callable[[Tensor], Tensor], shape: tuple[int, int, int], name: str
    ) -> DataSplits:
        """The same set with other inputs.

        Args:
            change: of inputs [N, M], for each split.
            shape: (C, H, W) of an input that it gives.
            name: of the new set.
        """
        parts = [change(getattr(self, split)) for split in SPLITS]
        return DataSplits(*parts, shape=shape, name=name, labels=self.labels, about=self.about)


def _tensor(name: str, value: object) -> Tensor:
    """A tensor as it is; of an array its numbers."""
    tensor = torch.from_numpy(np.require(value, None, ["C", "W"])) if isinstance(value, np.ndarray) else value
    dense(name, tensor)
    assert isinstance(tensor, Tensor)
    return tensor


def random_split(n: int, fractions: Mapping[str, float], seed: int) -> list[Tensor]:
    """Disjoint random subsets of 0..n-1 that together are all of it.

    Args:
        n: number of samples.
        fractions: argument name -> share of the samples, one entry for each subset but the first, which gets
            the rest.
        seed: of the permutation.

    Returns:
        The rest, then one subset an entry: int64 indices, ascending. A positive share gets one sample at
        least.

    Raises:
        ValueError: for a share outside [0, 1), or where no sample is left for the rest.
    """
    n = checks.integer("n", n, 0, 2**53)
    fractions = {name: checks.number(name, fraction) for name, fraction in fractions.items()}
    for name, fraction in fractions.items():
        if not 0 <= fraction < 1:
            raise ValueError(f"{name}: expected a share in [0, 1), found {fraction}")
    sizes = [max(round(n * fraction), int(fraction > 0)) for fraction in fractions.values()]
    if sum(sizes) >= n:
        shares = ", ".join(f"{name}={fraction}" for name, fraction in fractions.items())
        raise ValueError(f"{shares}: nothing is left of {n} samples for training")
    order = torch.randperm(n, generator=seeded(seed), device="cpu")
    return [part.sort().values for part in torch.split(order, [n - sum(sizes), *sizes])]


def seeded(seed: int) -> torch.Generator:
    """A generator of the CPU with this seed, -2^63 to 2^63 - 1."""
    return torch.Generator().manual_seed(checks.integer("seed", seed, -(2**63), 2**63 - 1))


def as_inputs(pixels: Tensor, scale: float) -> Tensor:
    """Integer images [N, ...] as flattened float32 inputs [N, M], divided by ``scale``."""
    return pixels.flatten(1).to(torch.float32).div_(scale)


def counts(splits: Sequence[Tensor]) -> str:
    """The sizes of the three splits in words."""
    return ", ".join(f"{len(tensor):,} {name}" for name, tensor in zip(SPLITS, splits, strict=True))
