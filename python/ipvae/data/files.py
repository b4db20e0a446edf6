"""Arrays in files: .npy, .npz, .mat, .h5 and single IDX files, with one rule for their units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipvae.data.idx import read_bytes, read_idx
from ipvae.data.splits import SPLITS, DataSplits, counts, random_split

Array = NDArray[Any]

# What the arrays of inputs and of labels are called where a file holds several.
INPUTS, LABELS = ("x", "X", "inputs", "images", "data"), ("labels", "label", "y", "Y", "targets")
KINDS = "N pixels, [N, M]; images [N, H, W], [N, C, H, W] or [N, H, W, C]"
BYTE = 255.0
# Images of so many pixels a side are photographs to cut patches from: whole, they would be inputs of 16,384.
PHOTOGRAPH_SIDE = 128
_CHANNELS = (1, 3, 4)


def array_file(
    path: str | Path, *, seed: int = 0, validation: float = 0.1, test: float = 0.1, key: str | None = None
) -> DataSplits:
    """Inputs from one file of numbers, split at random.

    What is never negative is taken for light: bytes are divided by 255, other numbers whose largest exceeds
    1 by that largest, so that inputs lie in [0, 1]. Inputs with negative numbers, such as whitened ones, stay
    as they are. ``about`` says what was done.

    Args:
        path: by its ending ``.npy``, ``.npz``, ``.mat``, ``.h5`` or ``.hdf5`` (the last three need the extra
            "files": ``pip install 'ipvae-kernels[files]'``), or a single IDX file of images, gzipped or not.
            It holds real numbers, [N, M], [N, H, W], [N, C, H, W] or, with 1, 3 or 4 channels, [N, H, W, C].
            Rows of M = n^2 numbers are taken for n x n images, others for images one pixel high. Images of a
            .mat file may have the index of the image last, as in MATLAB: they are read so where the first two
            sides are equal and the last two differ. Pickles are refused. Large images are read as they are;
            `photo_patches` cuts patches from them.
        seed: of the random split.
        validation: share of the samples.
        test: likewise.
        key: name of the array where the file holds several; None: the only one with two dimensions or more,
            or one of the names in `INPUTS`. Labels are looked for under the names in `LABELS`.

    Raises:
        FileNotFoundError: for a missing file.
        ImportError: without the library that reads it.
        ValueError: for what is not such an array, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    array, labels, note = _checked(path, *_read(path, key))
    indices = random_split(len(array), {"validation": validation, "test": test}, seed)
    unit, scaling = _unit(array)
    splits = [_rows(array, index, unit) for index in indices]
    for split, tensor in zip(SPLITS, splits, strict=True):
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: expected finite numbers, found NaN or infinity in what became the {split} set"
            )
    about = f"{counts(splits)} rows of {path} ({array.dtype}{note}), {scaling}, random split, seed = {seed}"
    classes = {} if labels is None else {s: labels[i] for s, i in zip(SPLITS, indices, strict=True)}
    return DataSplits(*splits, shape=_image_shape(array.shape), name=path.stem, labels=classes, about=about)


def image_stack(path: str | Path, key: str | None = None) -> Array:
    """Large images in a file of numbers, photographs: [N, H, W] or [N, C, H, W] in the unit of the file.

    Args:
        path: as of `array_file`; [H, W, N], the order of IMAGES.mat of Olshausen and Field, is read from all.
        key: likewise.

    Raises:
        FileNotFoundError, ImportError: as `array_file`.
        ValueError: for what is not such an array, or for images smaller than 128 pixels a side.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    array, _ = _read(path, key)
    sides = array.shape
    if len(sides) == 3 and min(sides[:2]) >= PHOTOGRAPH_SIDE > sides[2]:
        array = np.moveaxis(array, -1, 0)
    array, _, _ = _checked(path, array, None)
    if array.ndim < 3 or min(array.shape[-2:]) < PHOTOGRAPH_SIDE:
        raise ValueError(
            f"{path}: expected images of at least {PHOTOGRAPH_SIDE} pixels a side, [N, H, W], [H, W, N], "
            f"[N, C, H, W] or [N, H, W, C]; found {list(sides)}"
        )
    return array


def holds_photographs(path: Path) -> bool:
    """Whether a file of numbers holds images of 128 pixels a side or more."""
    try:
        image_stack(path)
    except (ImportError, MemoryError, OSError, ValueError):
        return False  # `array_file` says why
    return True


def _read(path: Path, key: str | None) -> tuple[Any, Any]:
    """The array of inputs, and that of labels or None.

    Parsers of damaged files raise what they like, hence the broad net.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        return read_idx(path, 3).numpy(), None
    try:
        found = READERS[suffix](path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(f"{path}: not a readable {suffix} file of numbers ({kind}: {error})") from error
    return _choose(path, found, key) if isinstance(found, Mapping) else (found, None)


def _npy(path: Path) -> Any:
    with open(path, "rb") as file:  # np.load would take an archive or a pickle as well
        np.lib.format.read_magic(file)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path) -> dict[str, Array]:
    found = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            with suppress(ValueError):  # a pickle among the numbers
                found[name] = archive[name]
    return _numbers(found)


def _numbers(found: Mapping[str, Any]) -> dict[str, Array]:
    return {name: a for name, a in found.items() if isinstance(a, np.ndarray) and a.dtype.kind in "biuf"}


def _mat(path: Path) -> dict[str, Array]:
    loadmat = _library("scipy.io", path).loadmat
    try:
        found = loadmat(path)
    except NotImplementedError:  # version 7.3 is HDF5, with the axes in MATLAB's order of memory
        return {name: np.transpose(array) for name, array in _hdf5(path).items()}
    return _numbers(found)


def _hdf5(path: Path) -> dict[str, Array]:
    h5py = _library("h5py", path)
    found: dict[str, Array] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path, "r") as file:
        file.visititems(take)
    return _numbers(found)


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _npy, ".npz": _npz, ".mat": _mat, ".h5": _hdf5, ".hdf5": _hdf5,
}  # fmt: skip


def _library(name: str, path: Path) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{path}: reading it needs {package}: pip install 'ipvae-kernels[files]' (or {package})"
        ) from error


def is_array_file(path: Path) -> bool:
    """Whether `array_file` reads such a file: by its ending, or by the first bytes of an IDX file."""
    if path.suffix.lower() in READERS:
        return True
    try:
        return read_bytes(path, 3) == b"\0\0\x08"
    except (OSError, ValueError):
        return False


def _choose(path: Path, found: Mapping[str, Array], key: str | None) -> tuple[Array, Array | None]:
    """The array of inputs and that of their labels among the arrays of a file."""
    wide = [name for name, array in found.items() if array.ndim > 1]
    names = [key] if key is not None else wide if len(wide) == 1 else [n for n in INPUTS if n in wide]
    if not names or names[0] not in found:
        listed = ", ".join(f"{name} {list(array.shape)}" for name, array in found.items()) or "none"
        raise ValueError(
            f"{path}: expected one array of inputs, or key= the name of one, or one called "
            f"{', '.join(INPUTS)}; found {listed}"
        )
    n = len(found[names[0]])
    labels = [found[name] for name in LABELS if name in found]
    fitting = [array for array in labels if array.dtype.kind in "iu" and array.size == n != 0]
    return found[names[0]], fitting[0].reshape(n) if fitting else None


def _checked(path: Path, array: Any, labels: Any) -> tuple[Array, Tensor | None, str]:
    """The array with the samples first, its labels, and a note on how it was read."""
    if array.ndim not in (2, 3, 4) or array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"{path}: expected real numbers, {KINDS}; found {array.dtype} {list(array.shape)}")
    note, sides = "", array.shape
    if path.suffix.lower() == ".mat" and len(sides) > 2 and sides[0] == sides[1] and sides[-2] != sides[-1]:
        # [H, W, N] or [H, W, C, N]
        note, array = ", the last index counts images", np.moveaxis(array, (-1, 0, 1), (0, -2, -1))
    elif len(sides) == 4 and sides[-1] in _CHANNELS and sides[1] not in _CHANNELS:
        note, array = ", channels last", np.moveaxis(array, -1, 1)
    return array, None if labels is None else torch.from_numpy(labels.astype(np.int64)), note


def _unit(array: Array) -> tuple[float, str]:
    """What the inputs are divided by, and that in words."""
    if array.dtype == np.uint8:
        return BYTE, "divided by 255"
    low, high = float(array.min()), float(array.max())
    if low < 0 or not 1 < high < math.inf:
        return 1.0, "unscaled"
    return high, f"divided by their largest number, {high:g}"


def _rows(array: Array, index: Tensor, unit: float) -> Tensor:
    """Rows of an array as float32 [N, M] in this unit; of a memory-mapped one only these are read."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such
        rows = np.asarray(array[index.numpy()], dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(rows)).flatten(1).div_(unit)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) > 2:
        return shape[1] if len(shape) == 4 else 1, shape[-2], shape[-1]
    side = math.isqrt(shape[1])
    return (1, side, side) if side * side == shape[1] else (1, 1, shape[1])
