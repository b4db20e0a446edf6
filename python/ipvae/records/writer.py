"""Writes spikes while inference runs: see `layout` for the files."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ipvae_kernels import checks

from ..checkpoint import atomic_file
from ..extras import explained
from .layout import FORMAT, SCHEMA, facts_of, open_path, part_path, parts, with_facts

with explained():
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

# Events of one row group, 20 bytes each before they are packed: what a reader has to take at once.
ROW_GROUP = 2**20
# Steps of a file, whose events are held until it is written: 14 MB for 4 samples of 512 neurons at 35 %.
PART_STEPS = 1_000


class SpikeWriter:
    """Appends events to a folder, part by part; each file is whole or not there.

    Args:
        folder: of one run; made where it is not there.
        batch: B, number of samples.
        n_latents: K, number of neurons.
        part_steps: steps of a file.
        facts: what else the files shall say: seed, version, ...

    Raises:
        FileExistsError: the folder holds a record of something else.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        batch: int,
        n_latents: int,
        *,
        part_steps: int = PART_STEPS,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.part_steps = checks.integer("part_steps", part_steps, 1, 2**31)
        self.facts: dict[str, Any] = {
            **(facts or {}),
            "format": FORMAT,
            "batch": checks.integer("batch", batch, 1, 2**31 - 1),
            "n_latents": checks.integer("n_latents", n_latents, 1, 2**31 - 1),
            "part_steps": self.part_steps,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self.next_step = 0
        self._held: list[pa.Table] = []
        for path in [*parts(self.folder).values(), *self._open_file()]:
            found = facts_of(pq.read_schema(path), path)
            if found != self.facts:
                raise FileExistsError(f"{path}: a record of another run ({found}), expected {self.facts}")

    def go_on(self, step: int) -> None:
        """Continues at a step: what was written of it and of later ones is dropped.

        Raises:
            ValueError: the record does not reach this step.
        """
        begin = step - step % self.part_steps
        whole = parts(self.folder)
        missing = [first for first in range(0, begin, self.part_steps) if first not in whole]
        kept = [pq.read_table(path) for path in self._open_file()] if step > begin else []
        if step > begin and begin in whole:
            kept = [pq.read_table(whole[begin])]
        if missing or (step > begin and not kept):
            raise ValueError(f"{self.folder}: expected a record up to step {step}, found a gap before it")
        self._held = [table.filter(pa.compute.less(table["step"], step)) for table in kept]
        for first, path in whole.items():
            if first >= begin:
                path.unlink()
        self.next_step = step

    def append(self, counts: Tensor) -> None:
        """Adds the events of the next steps.

        Args:
            counts: whole numbers, [T, B, K].

        Raises:
            ValueError: counts have another shape.
            OSError: a file cannot be written; it names the file, and what was written before stays.
        """
        expected = (len(counts), self.facts["batch"], self.facts["n_latents"])
        checks.shape("counts", counts, expected, "[T, B, K]")
        room = self.part_steps - self.next_step % self.part_steps
        for piece in (counts[:room], *torch.split(counts[room:], self.part_steps)):
            self._append(piece)

    def _append(self, counts: Tensor) -> None:
        """The same for steps of one part; where its file cannot be written, as if they had not come."""
        if not len(counts):
            return
        held, end = [*self._held, self._events(counts)], self.next_step + len(counts)
        if end % self.part_steps == 0:
            self._write(part_path(self.folder, end - self.part_steps), held)
            open_path(self.folder).unlink(missing_ok=True)
            held = []
            _give_back()
        self._held, self.next_step = held, end

    def flush(self) -> None:
        """Writes the steps since the last whole part to the open file."""
        if self.next_step % self.part_steps:
            self._write(open_path(self.folder), self._held)

    def _open_file(self) -> list[Path]:
        path = open_path(self.folder)
        return [path] if path.is_file() else []

    def _events(self, counts: Tensor) -> pa.Table:
        """Events of [T, B, K], by step, sample and neuron."""
        found = counts.nonzero()
        numbers = counts[tuple(found.unbind(1))].to(torch.int32)
        step, *places = found.unbind(1)
        columns = [step + self.next_step, *(place.to(torch.int32) for place in places), numbers]
        return pa.table([column.cpu().numpy() for column in columns], schema=SCHEMA)

    def _write(self, path: Path, held: Sequence[pa.Table]) -> None:
        # In one piece: pages of a file end where pieces of a table do, and its bytes shall not tell of them.
        whole = pa.concat_tables([SCHEMA.empty_table(), *held]).combine_chunks()
        table = whole.cast(with_facts(self.facts))
        with atomic_file(path) as file:
            pq.write_table(
                table, file, compression="zstd", row_group_size=ROW_GROUP,
                use_dictionary=["count"],
                column_encoding={name: "DELTA_BINARY_PACKED" for name in ("step", "sample", "neuron")},
            )  # fmt: skip


def _give_back() -> None:
    """Hands freed memory back to the system.

    Files differ in size, and allocators keep a little more after each: over 10^6 steps resident memory grew
    by 18 %, and with this by a fraction of 1 % (tools/endurance.py).
    """
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)
