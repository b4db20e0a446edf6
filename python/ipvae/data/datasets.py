"""One entry to all data sets: `load_dataset`."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipvae.data.idx import idx_folder
from ipvae.data.mnist import fashion_mnist, mnist
from ipvae.data.patches import natural_patches
from ipvae.data.splits import SPLITS, DataSplits, as_inputs, counts, random_split
from ipvae.extras import explained


def load_dataset(
    name: str | Path, *, data_dir: str | Path | None = None, seed: int = 0, **options: Any
) -> DataSplits:
    """Loads a data set by name or path.

    Args:
        name: one of `DATASETS`, the path of an IDX folder, or the path of a ``.npy`` file.
        data_dir: where to look for the files of "mnist" and "fashion-mnist", and the folder of "idx"; the
            other sets take none.
        seed: of whatever is random: the split, or the choice of patches.
        options: passed to the function of the set: `natural_patches` (size, n_train, f0, contrast,
            min_contrast, flip), `digits` (none), `mnist` (validation, download), `fashion_mnist` and
            `idx_folder` (validation; "idx" or a path), `npy_file` (validation, test).

    Raises:
        ValueError: for an unknown name, listing the choices; for a `data_dir` that the set does not take, or
            that "idx" lacks.
        TypeError: for an option the set does not have, listing those it has.
        FileNotFoundError, DownloadError: where files are missing.
    """
    name = os.fspath(name)
    load = _loader_of(name)
    parameters = inspect.signature(load).parameters
    known = [option for option in parameters if option not in ("data_dir", "seed", "folder", "path", "name")]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(
            f"data set {name!r} has no option {', '.join(unknown)}; its options: {', '.join(known) or 'none'}"
        )
    if "data_dir" in parameters:
        options["data_dir"] = data_dir
    elif data_dir is not None:
        takers = [
            taker for taker, call in DATASETS.items() if "data_dir" in inspect.signature(call).parameters
        ]
        raise ValueError(
            f"data set {name!r} takes no --data-dir (data_dir=), only {', '.join(takers)} do; "
            f"found {data_dir}"
        )
    if "seed" in parameters:
        options["seed"] = seed
    return load(name, **options) if name not in DATASETS else load(**options)


def load_whole(name: str | Path, *, data_dir: str | Path | None = None, seed: int = 0) -> DataSplits:
    """Every sample of a data set in one split, `train`; of a file, in the order of its rows.

    Args:
        name: as for `load_dataset`.
        data_dir: likewise.
        seed: likewise; a file or folder is not split, so it has no part in its order.

    Raises:
        ValueError, FileNotFoundError, DownloadError: as `load_dataset`.
    """
    parameters = inspect.signature(_loader_of(os.fspath(name))).parameters
    unsplit = {option: 0.0 for option in ("validation", "test") if option in parameters}
    splits = load_dataset(name, data_dir=data_dir, seed=seed, **unsplit)
    filled = [split for split in SPLITS if len(getattr(splits, split))]
    labels = [splits.labels[split] for split in filled if split in splits.labels]
    x = torch.cat([getattr(splits, split) for split in filled])
    none = x[:0]
    return DataSplits(
        x, none, none, shape=splits.shape, name=splits.name, about=splits.about,
        labels={"train": torch.cat(labels)} if len(labels) == len(filled) else {},
    )  # fmt: skip


def idx(data_dir: str | Path | None = None, *, seed: int = 0, validation: float = 0.1) -> DataSplits:
    """`idx_folder` of `data_dir`: any IDX files in the layout of MNIST.

    Raises:
        ValueError: without `data_dir`.
        FileNotFoundError: for a missing folder, or one without images.
    """
    if data_dir is None:
        raise ValueError("data set 'idx' needs its folder: give --data-dir (data_dir=)")
    if not Path(data_dir).is_dir():
        raise FileNotFoundError(f"--data-dir (data_dir=): no such folder: {data_dir}")
    return idx_folder(data_dir, seed=seed, validation=validation)


@explained()
def digits() -> DataSplits:
    """The 1,797 handwritten digits of scikit-learn (UCI, Alpaydin and Kaynak), 8x8, in [0, 1].

    The split is fixed: of every six images of a class, in the order of the file, which follows the writers,
    the fifth is for validation and the sixth for test. So it is stratified by class, and over the file.
    """
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    pixels, target = load_digits(return_X_y=True)
    inputs, labels = as_inputs(torch.from_numpy(pixels), 16), torch.from_numpy(target).to(torch.int64)
    rank = torch.empty_like(labels)
    for digit in range(10):
        rank[labels == digit] = torch.arange(int((labels == digit).sum()))
    masks = {"train": rank % 6 < 4, "validation": rank % 6 == 4, "test": rank % 6 == 5}
    splits = [inputs[mask] for mask in masks.values()]
    return DataSplits(
        *splits,
        shape=(1, 8, 8),
        name="digits",
        labels={split: labels[mask] for split, mask in masks.items()},
        about=f"{counts(splits)} images of scikit-learn's digits, 8x8 pixels in [0, 1], fixed split",
    )


def npy_file(path: str | Path, *, seed: int = 0, validation: float = 0.1, test: float = 0.1) -> DataSplits:
    """Patches from a ``.npy`` file, as they are: nothing is scaled. Pickles are refused.

    Args:
        path: an array [N, M] or [N, H, W] of real numbers. Rows of M = n^2 numbers are taken for n x n
            images, others for images one pixel high.
        seed: of the random split.
        validation: share of the samples.
        test: likewise.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for what is not such an array, or holds NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable .npy array of numbers ({error})") from error
    if (
        not isinstance(array, np.ndarray)
        or array.ndim not in (2, 3)
        or array.dtype.kind not in "fiu"
        or not array.size
    ):
        found = (
            f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        )
        raise ValueError(f"{path}: expected real numbers [N, M] or [N, H, W], found {found}")
    indices = random_split(len(array), {"validation": validation, "test": test}, seed)
    splits = [_rows(array, index) for index in indices]
    for split, tensor in zip(SPLITS, splits, strict=True):
        if not tensor.isfinite().all():
            raise ValueError(
                f"{path}: expected finite numbers, found NaN or infinity in what became the {split} set"
            )
    shape = _image_shape(array.shape)
    about = f"{counts(splits)} rows of {path} ({array.dtype}), unscaled, random split, seed = {seed}"
    return DataSplits(*splits, shape=shape, name=path.stem, about=about)


def _rows(array: np.ndarray[Any, Any], index: Tensor) -> Tensor:
    """Rows of a memory-mapped array as float32 [N, M]; only these are read."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such
        rows = np.asarray(array[index.numpy()], dtype=np.float32)
    return torch.from_numpy(rows).flatten(1)


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) == 3:
        return 1, shape[1], shape[2]
    side = math.isqrt(shape[1])
    return (1, side, side) if side * side == shape[1] else (1, 1, shape[1])


DATASETS: dict[str, Callable[..., DataSplits]] = {
    "patches": natural_patches,
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "idx": idx,
}


def _loader_of(name: str) -> Callable[..., DataSplits]:
    if name in DATASETS:
        return DATASETS[name]
    if name.endswith(".npy"):
        return npy_file
    if os.path.isdir(name) or os.path.dirname(name):
        return idx_folder
    choices = f"{', '.join(DATASETS)}, the path of a folder of IDX files, the path of a .npy file"
    raise ValueError(f"name: expected one of {choices}; found {name!r}")
