"""`ColumnEncoder`: columns in, sparse columns out, as every engine of data sets calls a function."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipvae_kernels import checks

from ..inputs import whole
from ..models.base import VAE
from ..models.registry import load_model
from .rows import Stamp, stamp

Column = NDArray[Any]
INDEX, NEURONS, VALUES = "index", "neurons", "values"


class ColumnEncoder:
    """Codes of a batch of columns. It holds a path and plain values, so that it can be sent anywhere.

    Noise is indexed by the seed and by the place of a row in the whole data set, which a column says: codes
    are the same however an engine splits, orders or retries its batches, with the compiled CPU kernels to
    the bit.

    Args:
        model: what `load_model` opens, by a path that every worker has. It is loaded once a process.
        steps: of inference; None: 128, and 1 where an encoder infers.
        last: average over so many steps.
        seed: of the noise.
        column: of the inputs, M numbers a row.
        index: of the rows' places among all rows, whole numbers from 0.
        batch_size: rows inferred at a time at most.
        threads: of a worker; None: PyTorch's choice.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import ray
        >>> codes = ray.data.read_parquet("inputs").map_batches(
        ...     ColumnEncoder, fn_constructor_args=["run"], batch_format="numpy", compute=...)
        >>> datasets.load_dataset("parquet", data_files="x.parquet").map(ColumnEncoder("run"), batched=True)
    """

    def __init__(
        self,
        model: str | PathLike[str],
        *,
        steps: int | None = None,
        last: int = 1,
        seed: int = 0,
        column: str = "x",
        index: str = INDEX,
        batch_size: int = 1000,
        threads: int | None = None,
    ) -> None:
        if not isinstance(model, (str, PathLike)):
            raise TypeError(
                f"model: expected a path that workers load it from (model.save_pretrained writes one), "
                f"found {type(model).__name__}"
            )
        self.model = fspath(model)
        self.steps = None if steps is None else checks.integer("steps", steps, 1, 2**31)
        self.last = checks.integer("last", last, 1, 2**31)
        self.seed, self.column, self.index = whole("seed", seed), column, index
        self.batch_size = checks.integer("batch_size", batch_size, 1, 2**32)
        self.threads = None if threads is None else checks.integer("threads", threads, 1, 2**16)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Encodes a batch.

        Args:
            batch: columns of arrays or lists, those of the inputs [B, M] and of the places [B] among them.

        Returns:
            "index" [B]; "neurons" and "values" [B], of arrays: which neurons are not silent, and their counts
            (averages of several steps, and what Gaussian models have, are floating point).

        Raises:
            KeyError: a column is missing.
            ValueError: rows of other lengths than the model's, or places that are no whole numbers.
        """
        for name in (self.column, self.index):
            if name not in batch:
                raise KeyError(
                    f"batch: expected columns {self.column!r} and {self.index!r}, found {list(batch)}"
                )
        places = np.asarray(batch[self.index])
        if places.ndim != 1 or places.dtype.kind not in "iu":
            raise ValueError(
                f"{self.index}: expected whole numbers [B], found {places.dtype} {list(places.shape)}"
            )
        if not len(places):
            return {INDEX: places, NEURONS: _ragged([]), VALUES: _ragged([])}
        x = torch.from_numpy(np.stack([np.asarray(row, dtype=np.float32) for row in batch[self.column]]))
        codes = np.concatenate([
            self.codes(x[first:stop], int(places[first])) for first, stop in _runs(places)
        ])  # fmt: skip
        neurons = [np.flatnonzero(row).astype(np.int32) for row in codes]
        values = [row[active] for row, active in zip(codes, neurons, strict=True)]
        return {INDEX: places, NEURONS: _ragged(neurons), VALUES: _ragged(values)}

    def codes(self, x: Tensor, first: int) -> Column:
        """Counts [B, K] of inputs [B, M], whose places begin at `first`; int32 where they are counts."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        net = self._net()
        found = torch.cat([
            net.encode(
                x[i : i + self.batch_size].to(net.like), self.steps, last=self.last, counts=True,
                seed=self.seed, sample_offset=first + i,
            )
            for i in range(0, len(x), self.batch_size)
        ])  # fmt: skip
        numbers = found.float().cpu().numpy()
        return numbers.astype(np.int32) if self.whole else numbers

    @property
    def whole(self) -> bool:
        """Whether codes are whole numbers: counts of one step."""
        return self.last == 1 and self._net().spiking

    @property
    def n_latents(self) -> int:
        """K of the model."""
        return self._net().config.n_latents

    def _net(self) -> VAE:
        return _loaded(self.model)


def _loaded(path: str) -> VAE:
    return _loaded_at(path, stamp(path))


@lru_cache(maxsize=2)
def _loaded_at(path: str, _: Stamp) -> VAE:
    """A model, once a process until its files change; on a GPU where PyTorch finds one."""
    return load_model(path, device="cuda" if torch.cuda.is_available() else "cpu").eval()


def _runs(places: Column) -> list[tuple[int, int]]:
    """Stretches of rows whose places follow each other, which are encoded together."""
    cuts = np.flatnonzero(np.diff(places.astype(np.int64)) != 1) + 1
    edges = [0, *cuts.tolist(), len(places)]
    return list(pairwise(edges))


def _ragged(rows: list[Column]) -> Column:
    column = np.empty(len(rows), dtype=object)
    column[:] = rows
    return column
