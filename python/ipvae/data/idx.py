"""Folders of IDX files in the layout of MNIST (format: LeCun, Cortes and Burges, "The MNIST database")."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ipvae.data.splits import SPLITS, DataSplits, as_inputs, counts, random_split

PREFIXES = {"train": "train", "test": "t10k"}
_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTES = 0x08
_CHUNK = 2**20


def find_idx(folder: Path, stem: str) -> Path | None:
    """The file ``stem`` or ``stem.gz`` in a folder, or None."""
    candidates = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_bytes(path: Path, limit: int | None = None) -> bytearray:
    """The contents of a file, unpacked where it is gzipped, whatever it is called.

    Args:
        path: of the file.
        limit: read at most so many bytes: a small gzip file may unpack to a thousand times its size.

    Raises:
        ValueError: for a damaged or truncated gzip file.
    """
    content = bytearray()
    try:
        with open(path, "rb") as raw:
            gzipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if gzipped else raw
            while chunk := file.read(_CHUNK if limit is None else min(_CHUNK, limit - len(content))):
                content += chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or truncated gzip file ({error})") from error
    return content


def read_idx(path: Path, ndim: int) -> Tensor:
    """Reads an IDX file of unsigned bytes.

    Args:
        path: the file, gzipped or not.
        ndim: dimensions expected, 3 for images [N, H, W], 1 for labels [N].

    Returns:
        uint8 tensor.

    Raises:
        ValueError: for another magic number, or more or fewer bytes than the header announces.
    """
    start = 4 + 4 * ndim
    header = read_bytes(path, start)
    magic, expected = header[:4], bytes((0, 0, _UNSIGNED_BYTES, ndim))
    if magic != expected:
        raise ValueError(
            f"{path}: expected the IDX magic number {expected.hex()}, found {magic.hex() or 'nothing'}"
        )
    if len(header) < start:
        raise ValueError(f"{path}: truncated in its header, at {len(header)} of {start} bytes")
    shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, start, 4)]
    announced = start + math.prod(shape)
    raw = read_bytes(path, announced + 1)
    if len(raw) != announced:
        problem = "truncated" if len(raw) < announced else "too long"
        found = f"{len(raw)}" if len(raw) < announced else "more"
        raise ValueError(f"{path}: {problem}, shape {shape} takes {announced} bytes, found {found}")
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8, offset=start)).reshape(shape)


def _read_pair(folder: Path, prefix: str) -> tuple[Tensor, Tensor | None] | None:
    """Images [N, H, W] and labels [N], None where there is no such file; None where neither is."""
    images_path = find_idx(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = find_idx(folder, f"{prefix}-labels-idx1-ubyte")
    if images_path is None:
        if labels_path is not None:
            raise FileNotFoundError(
                f"{folder}: {labels_path.name} is there, {prefix}-images-idx3-ubyte[.gz] is not"
            )
        return None
    images = read_idx(images_path, 3)
    labels = None if labels_path is None else read_idx(labels_path, 1).to(torch.int64)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{folder}: {prefix} has {len(images)} images but {len(labels)} labels")
    return images, labels


def idx_folder(
    folder: str | Path,
    *,
    seed: int = 0,
    validation: float = 0.1,
    name: str | None = None,
    prefixes: Mapping[str, str] = PREFIXES,
) -> DataSplits:
    """Any folder in the layout of MNIST: pixels in [0, 1], a random validation set.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``,
            each with or without ``.gz``. Either pair may be missing, and so may labels: a folder with
            ``t10k`` only is a test set.
        seed: of the split into training and validation set.
        validation: share of the training files that becomes the validation set; 0 trains on all of them.
        name: of the data set; None stands for the folder's.
        prefixes: split -> what its files begin with.

    Raises:
        FileNotFoundError: for a missing folder, or one without images.
        ValueError: for a file that is not what its name says, or sets that do not fit each other.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    pairs = {split: _read_pair(folder, prefix) for split, prefix in prefixes.items()}
    sizes = {tuple(pair[0].shape[1:]) for pair in pairs.values() if pair is not None}
    if not sizes:
        wanted = " or ".join(f"{prefix}-images-idx3-ubyte[.gz]" for prefix in prefixes.values())
        raise FileNotFoundError(f"{folder}: expected {wanted}, found neither")
    if len(sizes) > 1:
        raise ValueError(f"{folder}: training and test images differ in size: {sorted(sizes)}")
    height, width = sizes.pop()

    splits = {split: torch.empty(0, height * width, dtype=torch.float32, device="cpu") for split in SPLITS}
    labels: dict[str, Tensor] = {}

    def put(split: str, images: Tensor, classes: Tensor | None, index: Tensor | slice) -> None:
        splits[split] = as_inputs(images[index], 255)
        if classes is not None:
            labels[split] = classes[index]

    if (pair := pairs["test"]) is not None:
        put("test", *pair, slice(None))
    if (pair := pairs["train"]) is not None:
        indices = random_split(len(pair[0]), {"validation": validation}, seed)
        put("train", *pair, indices[0])
        put("validation", *pair, indices[1])
    about = (
        f"{counts(list(splits.values()))} images of {height}x{width} pixels in [0, 1] from "
        f"IDX files in {folder}; validation split off the training files at random, seed = {seed}"
    )
    name = name or folder.resolve().name
    return DataSplits(*splits.values(), shape=(1, height, width), name=name, labels=labels, about=about)
