"""Rows of a data set by their numbers, read from where they lie: any stretch of them, in any process."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import load_whole
from ..data.files import BYTE
from ..extras import explained
from ..training.identity import digest

ENDINGS = (".npy", ".safetensors", ".parquet")
# Of a large file, a digest is of its size, its beginning and its end.
DIGEST_BYTES = 2**20
Stamp = tuple[tuple[str, int, int], ...]


class Rows(ABC):
    """Inputs [N, M], read in stretches.

    Attributes:
        n: N.
        width: M; the sides of images are multiplied.
        digest: tells these rows from others.
    """

    n: int
    width: int
    digest: str

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start..stop-1, [stop - start, M] float32.

        Raises:
            IndexError: unless 0 <= start < stop <= N.
        """
        if not 0 <= start < stop <= self.n:
            raise IndexError(f"start, stop: expected 0 <= start < stop <= {self.n}, found {start}, {stop}")
        return self._read(start, stop)

    @abstractmethod
    def _read(self, start: int, stop: int) -> Tensor:
        """`read` for a range that has been checked."""


def open_rows(data: str | Path, *, key: str | None = None) -> Rows:
    """The rows of a data set, none of them in memory where files allow it.

    Args:
        data: a file, or a folder of files in the order of their names: ``.npy`` (N first; images are
            flattened), ``.safetensors``, or ``.parquet``. Bytes are divided by 255, floating point numbers
            stay as they are. Else what `ipvae.data.load_whole` takes, such as a folder of IDX files or the
            name of a set, which is read into memory.
        key: the tensor of a safetensors file, needed where there are several; the column of a Parquet file,
            which holds lists of M numbers, or None for all columns, a number each.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: files of several kinds, of other shapes, or of integers.
        MissingExtra: without the package that reads them.
    """
    path = Path(data)
    files = _files(path)
    if not files:
        return _InMemory(load_whole(data).train)
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1:
        raise ValueError(f"{path}: expected files of one kind, found {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind == ".npy":
        return _Files([_Npy(file, key) for file in files])
    if kind == ".safetensors":
        return _Files([_Safetensors(file, key) for file in files])
    return _Files([_Parquet(file, key) for file in files])


def stamp(path: str) -> Stamp:
    """Names, times and sizes of a file or of all in a folder: until they change, what is held is right."""
    root = Path(path)
    files = [root] if root.is_file() else sorted(root.rglob("*")) if root.is_dir() else []
    stats = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() in ENDINGS else []
    if not path.is_dir():
        return []
    found = (file for file in sorted(path.iterdir()) if file.suffix.lower() in ENDINGS)
    return [file for file in found if not file.name.startswith(("_", "."))]


class _InMemory(Rows):
    def __init__(self, x: Tensor) -> None:
        self.x, (self.n, self.width) = x, x.shape
        self.digest = digest(x)

    def _read(self, start: int, stop: int) -> Tensor:
        return self.x[start:stop]


class _File(Rows):
    """One file; `read` opens it, so that nothing of it is held or sent to other processes."""

    def __init__(self, path: Path, key: str | None) -> None:
        self.path, self.key = path, key
        try:
            self.n, self.width = self._shape()
        except (OSError, KeyError, EOFError, ValueError) as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: not a {path.suffix} file that can be read ({error})") from error
        self.digest = _digest(path, key)

    @abstractmethod
    def _shape(self) -> tuple[int, int]:
        """N and M, of the file's header."""

    def _flat(self, shape: Sequence[int], dtype: str) -> tuple[int, int]:
        if len(shape) < 2 or 0 in shape:
            raise ValueError(f"{self.path}: expected [N, M] or images, none of them 0, found {list(shape)}")
        if not (dtype.startswith(("float", "F", "BF")) or dtype in ("uint8", "U8")):
            raise ValueError(f"{self.path}: expected floating point numbers or bytes, found {dtype}")
        return shape[0], int(np.prod(shape[1:]))


class _Npy(_File):
    def _shape(self) -> tuple[int, int]:
        array = self._open()
        return self._flat(array.shape, array.dtype.name)

    def _open(self) -> Any:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def _read(self, start: int, stop: int) -> Tensor:
        return _as_rows(torch.from_numpy(np.array(self._open()[start:stop])))


class _Safetensors(_File):
    @explained()
    def _open(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.path, "pt")
        except SafetensorError as error:
            raise ValueError(str(error)) from error

    def _shape(self) -> tuple[int, int]:
        with self._open() as file:
            names = list(file.keys())
            if self.key is None and len(names) != 1:
                raise ValueError(f"{self.path}: which tensor? Give key, one of {', '.join(sorted(names))}")
            self.key = names[0] if self.key is None else self.key
            if self.key not in names:
                raise ValueError(f"{self.path}: key: expected one of {', '.join(names)}, found {self.key!r}")
            tensor = file.get_slice(self.key)
            return self._flat(tensor.get_shape(), tensor.get_dtype())

    def _read(self, start: int, stop: int) -> Tensor:
        with self._open() as file:
            return _as_rows(file.get_slice(self.key)[start:stop])


class _Parquet(_File):
    @explained()
    def _open(self) -> Any:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        return pq.ParquetFile(self.path)

    def _shape(self) -> tuple[int, int]:
        file = self._open()
        names = file.schema_arrow.names
        if self.key is not None and self.key not in names:
            raise ValueError(f"{self.path}: key: expected one of {', '.join(names)}, found {self.key!r}")
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self.starts = [0, *accumulate(groups)]
        if not self.starts[-1]:
            raise ValueError(f"{self.path}: expected rows, found none")
        return self.starts[-1], self._numbers(file.read_row_group(0, columns=self._columns)).shape[1]

    @property
    def _columns(self) -> list[str] | None:
        return None if self.key is None else [self.key]

    def _numbers(self, table: Any) -> Tensor:
        """Numbers [rows, M] of a table of one column of lists, or of columns of numbers."""
        columns = [column.combine_chunks() for column in table.columns]
        if len(columns) == 1 and hasattr(columns[0].type, "value_type"):
            flat = columns[0].flatten().to_numpy(zero_copy_only=False)
            if columns[0].null_count or len(flat) % len(table):
                raise ValueError(f"{self.path}: expected lists of one length in {table.column_names[0]!r}")
            rows = flat.reshape(len(table), -1)
        else:
            rows = np.stack([column.to_numpy(zero_copy_only=False) for column in columns], axis=1)
        self._flat(rows.shape, rows.dtype.name)
        return _as_rows(torch.from_numpy(np.array(rows)))

    def _read(self, start: int, stop: int) -> Tensor:
        first, last = bisect_right(self.starts, start) - 1, bisect_right(self.starts, stop - 1)
        table = self._open().read_row_groups(list(range(first, last)), columns=self._columns)
        return self._numbers(table.slice(start - self.starts[first], stop - start))


class _Files(Rows):
    """Files one after the other."""

    def __init__(self, files: Sequence[_File]) -> None:
        widths = {file.width for file in files}
        if len(widths) > 1:
            raise ValueError(f"{files[0].path.parent}: expected rows of one length, found {sorted(widths)}")
        self.files, self.width = files, widths.pop()
        self.starts = [0, *accumulate(file.n for file in files)]
        self.n = self.starts[-1]
        self.digest = hashlib.sha256("".join(file.digest for file in files).encode()).hexdigest()

    def _read(self, start: int, stop: int) -> Tensor:
        parts = [
            file.read(max(start - first, 0), min(stop - first, file.n))
            for file, first in zip(self.files, self.starts, strict=False)
            if first < stop and start < first + file.n
        ]
        return torch.cat(parts)


def _as_rows(x: Tensor) -> Tensor:
    """Numbers [rows, ...] as float32 [rows, M]; bytes become [0, 1]."""
    rows = x.float().flatten(1)
    return rows / BYTE if x.dtype == torch.uint8 else rows


def _digest(path: Path, key: str | None) -> str:
    """Of a file's size, its beginning and its end, and of what is read of it."""
    size = path.stat().st_size
    found = hashlib.sha256(f"{size} {key}".encode())
    with open(path, "rb") as file:
        found.update(file.read(DIGEST_BYTES))
        file.seek(max(0, size - DIGEST_BYTES))
        found.update(file.read(DIGEST_BYTES))
    return found.hexdigest()
