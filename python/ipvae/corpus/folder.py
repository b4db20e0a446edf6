"""A folder of sparse codes in Parquet, a file for so many rows: each is whole, and the same from anyone."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ipvae_kernels import checks

from ..checkpoint import atomic_file
from ..extras import explained
from ..inputs import whole
from ..models.registry import load_model
from ..training.identity import digest
from . import sharded
from .columns import INDEX, NEURONS, VALUES, ColumnEncoder
from .rows import Rows, Stamp, open_rows, stamp

with explained():
    import joblib  # type: ignore[import-untyped]
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

PLAN = "_encoding.json"  # readers of Parquet folders pass over names that begin with "_"
FORMAT = 1
# Rows of a file. 512 neurons, one in five active: 8 MB before they are packed.
PART_ROWS = 10_000
# What a worker needs to find things and does not bear on the numbers.
_PLACES = ("model", "data", "out", "batch_size")


@dataclass(frozen=True)
class Encoding:
    """What is encoded, how, and where to: plain values, which any engine can send to its workers.

    `begin` makes one. ``encode(part)`` is the whole work of a part, for engines that map over numbers:

        >>> encoding = Encoding.begin("run", "activations", "codes")
        >>> ray.data.from_items(encoding.missing()).map(lambda row: {"rows": encoding.encode(row["item"])})

    Attributes:
        model: path of the model.
        data: name or path of the data set.
        out: the folder.
        key: as of `open_rows`.
        steps: as of `ColumnEncoder`.
        last: likewise.
        seed: likewise.
        batch_size: likewise.
        part_rows: rows of a file.
        rows: N.
        n_latents: K.
        shard_neurons: processes that share the neurons of the model.
        model_digest: tells a change of the model.
        data_digest: likewise of the data.
    """

    model: str
    data: str
    out: str
    key: str | None
    steps: int | None
    last: int
    seed: int
    batch_size: int
    part_rows: int
    rows: int
    n_latents: int
    model_digest: str
    data_digest: str
    shard_neurons: int = 1

    @classmethod
    def begin(
        cls,
        model: str | PathLike[str],
        data: str | PathLike[str],
        out: str | PathLike[str],
        *,
        key: str | None = None,
        steps: int | None = None,
        last: int = 1,
        seed: int = 0,
        batch_size: int = 1000,
        part_rows: int = PART_ROWS,
        shard_neurons: int = 1,
    ) -> Encoding:
        """A new encoding, or the one that the folder holds.

        Args:
            model: path of a model, as of `load_model`.
            data: as of `open_rows`.
            out: folder for ``part-*.parquet``, with columns "index", "neurons" and "values".
            key: as of `open_rows`.
            steps: of inference; None: 128, and 1 where an encoder infers.
            last: average the counts of so many steps.
            seed: of the noise.
            batch_size: rows inferred at a time.
            part_rows: rows of a file.
            shard_neurons: processes that share the neurons of the model, for those that do not fit one. The
                order of sums differs then, and a draw near a threshold may: codes of other numbers of shards
                are not mixed.

        Raises:
            ConfigError: `shard_neurons` of a model whose neurons cannot be shared.
            FileExistsError: the folder holds other codes; the message says what differs.
            TypeError, ValueError: an argument is not as described, or data and model do not fit.
        """
        encoder = ColumnEncoder(model, steps=steps, last=last, seed=seed, batch_size=batch_size)
        net, rows = load_model(encoder.model), _rows(fspath(data), key)
        if rows.width != net.config.n_inputs:
            raise ValueError(
                f"data: {data} has rows of {rows.width} numbers, {model} takes {net.config.n_inputs}"
            )
        plan = cls(
            model=_absolute(encoder.model), data=_absolute(fspath(data)), out=os.path.abspath(out), key=key,
            steps=net.encoding_steps(steps), last=last, seed=whole("seed", seed),
            batch_size=encoder.batch_size, part_rows=checks.integer("part_rows", part_rows, 1, 2**31),
            rows=rows.n, n_latents=net.config.n_latents,
            shard_neurons=checks.integer("shard_neurons", shard_neurons, 1, 2**16),
            model_digest=_model_digest(encoder.model), data_digest=rows.digest,
        )  # fmt: skip
        if plan.shard_neurons > 1:
            sharded.refuse(plan.model, plan.shard_neurons)
        plan._claim()
        return plan

    def _claim(self) -> None:
        """Writes what the folder holds, or compares."""
        own = {"format": FORMAT, **dataclasses.asdict(self)}
        own = {name: value for name, value in own.items() if name not in _PLACES}
        path = Path(self.out) / PLAN
        if not path.exists():
            if (foreign := next(Path(self.out).glob("*.parquet"), None)) is not None:
                raise FileExistsError(f"out: {self.out} holds {foreign.name}, which is of something else")
            Path(self.out).mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                file.write(json.dumps(own, indent=1).encode() + b"\n")
            return
        found = json.loads(path.read_text())
        wrong = [
            f"{name} {found.get(name)!r}, not {own[name]!r}" for name in own if found.get(name) != own[name]
        ]
        if wrong:
            raise FileExistsError(f"out: {self.out} holds codes of {'; '.join(wrong)}; give another folder")

    @property
    def parts(self) -> int:
        """Number of files."""
        return -(-self.rows // self.part_rows)

    def rows_of(self, part: int) -> int:
        """Rows of a part's file; the last may have fewer."""
        return min(self.part_rows, self.rows - part * self.part_rows)

    def path(self, part: int) -> Path:
        """The file of a part."""
        return Path(self.out) / f"part-{part:05d}.parquet"

    def done(self, part: int) -> bool:
        """Whether a part is there, with its checksum."""
        try:
            expected = self._sum(part).read_text().split()[0]
            return expected == hashlib.sha256(self.path(part).read_bytes()).hexdigest()
        except (OSError, IndexError):
            return False

    def missing(self) -> list[int]:
        """The parts that are not."""
        return [part for part in range(self.parts) if not self.done(part)]

    def encode(self, part: int, encoder: ColumnEncoder | None = None, *, write: bool = True) -> int:
        """Encodes a part and writes its file, whatever is there.

        Args:
            part: which.
            encoder: of this process; None: a new one.
            write: False where another process does.

        Returns:
            Its number of rows.

        Raises:
            RuntimeError: the model or the data are not those that the encoding began with.
        """
        first = checks.integer("part", part, 0, self.parts - 1) * self.part_rows
        stop = first + self.rows_of(part)
        rows = _rows(self.data, self.key)
        for name, found in (("model", _model_digest(self.model)), ("data", rows.digest)):
            if found != getattr(self, f"{name}_digest"):
                raise RuntimeError(f"{name}: {getattr(self, name)} has changed since the encoding began")
        if encoder is None:
            if self.shard_neurons > 1:
                raise ValueError(f"shard_neurons: expected 1 of a part by itself, found {self.shard_neurons}")
            encoder = ColumnEncoder(
                self.model, steps=self.steps, last=self.last, seed=self.seed, batch_size=self.batch_size
            )
        codes = encoder.codes(rows.read(first, stop), first)
        if not write:
            return stop - first
        places, neurons = np.nonzero(codes)
        offsets = np.searchsorted(places, np.arange(len(codes) + 1)).astype(np.int32)
        table = pa.table({
            INDEX: pa.array(np.arange(first, stop)),
            NEURONS: pa.ListArray.from_arrays(pa.array(offsets), pa.array(neurons.astype(np.int32))),
            VALUES: pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes[places, neurons])),
        })  # fmt: skip
        self._write(part, table)
        return stop - first

    def _write(self, part: int, table: Any) -> None:
        """The file, and after it its checksum, without which it does not count."""
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        data, path = content.getvalue(), self.path(part)
        with atomic_file(path) as file:
            file.write(data)
        with atomic_file(self._sum(part)) as file:
            file.write(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode())

    def _sum(self, part: int) -> Path:
        return Path(self.out) / f"_part-{part:05d}.sha256"


def encode_corpus(
    model: str | PathLike[str],
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    workers: int = 1,
    progress: bool = False,
    **options: Any,
) -> Encoding:
    """Encodes a data set into a folder of sparse codes; the same call goes on where it was stopped.

    Files are the same for any number of workers, of batches and of interruptions: noise is indexed by the
    place of a row in the data set.

    Args:
        model: as of `Encoding.begin`, likewise the next two.
        data: likewise.
        out: likewise.
        workers: processes, each with its share of the threads; 1 with `shard_neurons`.
        progress: draw a progress bar.
        options: those of `Encoding.begin`.

    Returns:
        What was encoded; `read_codes` reads it.

    Raises:
        FileExistsError: the folder holds other codes.
        TypeError, ValueError: an argument is not as described, or data and model do not fit.
    """
    workers = checks.integer("workers", workers, 1, 2**10)
    plan = Encoding.begin(model, data, out, **options)
    if plan.shard_neurons > 1 and workers > 1:
        raise ValueError(f"workers: expected 1 beside shard_neurons, found {workers}")
    missing = plan.missing()
    threads = max(1, torch.get_num_threads() // (workers * plan.shard_neurons))
    with tqdm(total=plan.rows, unit="row", disable=not progress) as bar:
        bar.update(plan.rows - sum(plan.rows_of(part) for part in missing))
        if plan.shard_neurons > 1:
            if missing:
                sharded.encode_missing(plan, missing, threads, bar.update)
            return plan
        done = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(
            joblib.delayed(_encode)(plan, part, threads) for part in missing
        )
        for rows in done:
            bar.update(rows)
    return plan


def _encode(plan: Encoding, part: int, threads: int) -> int:
    """A part, in a process of its own or in this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return plan.encode(part)
    finally:
        torch.set_num_threads(before)


@explained()
def read_codes(folder: str | PathLike[str]) -> csr_array:
    """All codes of a finished folder, [N, K].

    Raises:
        FileNotFoundError: it holds none.
        ValueError: parts are missing or damaged.
    """
    from scipy.sparse import csr_array

    path = Path(folder) / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"folder: no codes in {folder}")
    values = {name: value for name, value in json.loads(path.read_text()).items() if name != "format"}
    plan = Encoding(**values, model="", data="", out=fspath(folder), batch_size=1)
    if missing := plan.missing():
        raise ValueError(f"folder: {folder} lacks {len(missing)} of {plan.parts} parts, such as {missing[0]}")
    tables = [pq.read_table(plan.path(part)) for part in range(plan.parts)]
    table = pa.concat_tables(tables).combine_chunks()
    neurons, numbers = (table[name].combine_chunks() for name in (NEURONS, VALUES))
    offsets = neurons.offsets.to_numpy()
    columns = neurons.values.to_numpy(), numbers.values.to_numpy()
    return csr_array((columns[1], columns[0], offsets), shape=(plan.rows, plan.n_latents))


def _rows(data: str, key: str | None) -> Rows:
    return _rows_at(data, key, stamp(data))


@lru_cache(maxsize=2)
def _rows_at(data: str, key: str | None, _: Stamp) -> Rows:
    """The rows of a data set, opened once a process until its files change."""
    return open_rows(data, key=key)


def _model_digest(path: str) -> str:
    return _model_digest_at(path, stamp(path))


@lru_cache(maxsize=2)
def _model_digest_at(path: str, _: Stamp) -> str:
    """Of a model's configuration and weights."""
    net = load_model(path)
    what = [net.config.to_dict(), {name: digest(tensor) for name, tensor in net.state_dict().items()}]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _absolute(name: str) -> str:
    """A path from anywhere; the name of a set or of a model on a hub stays."""
    return os.path.abspath(name) if Path(name).exists() else name
