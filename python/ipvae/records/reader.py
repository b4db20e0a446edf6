"""Reads spikes that a `SpikeWriter` wrote, in pieces of steps."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ipvae_kernels import checks

from ..extras import explained
from .layout import facts_of, open_path, parts

with explained():
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # type: ignore[import-untyped]


class SpikeRecord:
    """Spikes on disk.

    Args:
        folder: of a `SpikeWriter`.

    Attributes:
        facts: what the files say: seed, version and sizes.
        batch: B.
        n_latents: K.
        steps: number of steps there are, of whole parts and of an open one up to its last event.

    Raises:
        FileNotFoundError: there is no record.
        ValueError: a file is damaged or none of ours; it is named.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        self._parts = parts(self.folder)
        unfinished = open_path(self.folder)
        every = [*self._parts.values(), *([unfinished] if unfinished.is_file() else [])]
        if not every:
            raise FileNotFoundError(f"{folder}: no record of spikes there")
        self.facts: dict[str, Any] = facts_of(_schema(every[0]), every[0])
        self.batch, self.n_latents = int(self.facts["batch"]), int(self.facts["n_latents"])
        part_steps = int(self.facts["part_steps"])
        self.steps = max(self._parts, default=-part_steps) + part_steps
        if unfinished.is_file():
            steps = _read(unfinished)["step"]
            last = int(steps[-1].as_py()) + 1 if len(steps) else 0
            if last > self.steps:  # else it is older than the last whole part
                self._parts[self.steps], self.steps = unfinished, last

    @property
    def n_events(self) -> int:
        """Counts that are not 0, of all samples; read from the files' ends."""
        return sum(pq.read_metadata(path).num_rows for path in self._parts.values())

    @property
    def n_spikes(self) -> int:
        """Sum of the counts, of all samples; read part by part, the column of counts alone."""
        sums = (pa.compute.sum(_read(path, ["count"])["count"]).as_py() for path in self._parts.values())
        return sum(found or 0 for found in sums)  # None of a part without events

    def events(self, start: int = 0, stop: int | None = None) -> pa.Table:
        """Events of the steps start..stop-1: columns step, sample, neuron, count, in this order."""
        start, stop = self._range(start, stop)
        part_steps = int(self.facts["part_steps"])
        tables = [
            _read(path) for first, path in self._parts.items() if first < stop and first + part_steps > start
        ]
        table = pa.concat_tables(tables)
        inside = pa.compute.and_(
            pa.compute.greater_equal(table["step"], start), pa.compute.less(table["step"], stop)
        )
        return table.filter(inside)

    def sparse(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Counts of the steps as a sparse COO tensor, [T, B, K], float32."""
        start, stop = self._range(start, stop)
        table = self.events(start, stop)
        step, sample, neuron = (
            torch.tensor(table[name].to_numpy(), dtype=torch.int64) for name in ("step", "sample", "neuron")
        )
        counts = torch.tensor(table["count"].to_numpy(), dtype=torch.float32)
        shape = (stop - start, self.batch, self.n_latents)
        return torch.sparse_coo_tensor(
            torch.stack([step - start, sample, neuron]), counts, shape,
            is_coalesced=True, check_invariants=False,
        )  # fmt: skip

    def dense(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Counts of the steps, [T, B, K], float32."""
        return self.sparse(start, stop).to_dense()

    def csr(self, sample: int, start: int = 0, stop: int | None = None) -> csr_array:
        """Counts of one sample as a matrix of SciPy, steps by neurons, [T, K]."""
        from scipy.sparse import csr_array

        start, stop = self._range(start, stop)
        sample = checks.integer("sample", sample, 0, self.batch - 1)
        table = self.events(start, stop)
        table = table.filter(pa.compute.equal(table["sample"], sample))
        place = (table["step"].to_numpy() - start, table["neuron"].to_numpy())
        return csr_array((table["count"].to_numpy(), place), shape=(stop - start, self.n_latents))

    def _range(self, start: int, stop: int | None) -> tuple[int, int]:
        start = checks.integer("start", start, 0, self.steps)
        return start, self.steps if stop is None else checks.integer("stop", stop, start, self.steps)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: damaged, or no Parquet file ({error})") from error


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: damaged, or no Parquet file ({error})") from error
