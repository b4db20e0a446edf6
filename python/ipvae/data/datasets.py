"""One entry to all data sets: `load_dataset`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ipvae.data.files import READERS, array_file, holds_photographs, is_array_file
from ipvae.data.idx import idx_folder
from ipvae.data.mnist import emnist_letters, fashion_mnist, mnist
from ipvae.data.patches import natural_patches
from ipvae.data.photographs import PHOTOGRAPHS, is_photograph, photo_patches
from ipvae.data.splits import SPLITS, DataSplits, as_inputs, counts
from ipvae.extras import explained


def load_dataset(
    name: str | Path, *, data_dir: str | Path | None = None, seed: int = 0, **options: Any
) -> DataSplits:
    """Loads a data set by name or path.

    Args:
        name: one of `DATASETS`, or a path: of a folder of IDX files, of a file of numbers (see `array_file`;
            images of 128 pixels a side or more are photographs), of a folder of photographs, or of a
            photograph (see `photo_patches`).
        data_dir: where to look for the files of "mnist", "fashion-mnist" and "emnist-letters", and the folder
            of "idx"; the other sets take none.
        seed: of whatever is random: the split, or the choice of patches.
        options: passed to the function of the set: `natural_patches` (size, n_train, f0, contrast,
            min_contrast, flip), `digits` (none), `mnist` (validation, download), `fashion_mnist`,
            `emnist_letters` and `idx_folder` (validation; "idx" or a path), `array_file` (validation, test,
            key), `photo_patches` (as `natural_patches`).

    Raises:
        ValueError: for an unknown name, listing the choices; for a `data_dir` that the set does not take, or
            that "idx" lacks.
        TypeError: for an option the set does not have, listing those it has.
        ValueError: for a file or folder of another kind, listing what is read.
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
        rank[labels == digit] = torch.arange(int((labels == digit).sum()), device="cpu")
    masks = {"train": rank % 6 < 4, "validation": rank % 6 == 4, "test": rank % 6 == 5}
    splits = [inputs[mask] for mask in masks.values()]
    return DataSplits(
        *splits,
        shape=(1, 8, 8),
        name="digits",
        labels={split: labels[mask] for split, mask in masks.items()},
        about=f"{counts(splits)} images of scikit-learn's digits, 8x8 pixels in [0, 1], fixed split",
    )


DATASETS: dict[str, Callable[..., DataSplits]] = {
    "patches": natural_patches,
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "emnist-letters": emnist_letters,
    "idx": idx,
}
_READ = (
    f"read are {', '.join(READERS)} and IDX files, and folders of IDX files or of photographs "
    f"({', '.join(PHOTOGRAPHS)})"
)


def _loader_of(name: str) -> Callable[..., DataSplits]:
    if name in DATASETS:
        return DATASETS[name]
    path = Path(name)
    if path.is_file():
        if is_photograph(path):
            return photo_patches
        if is_array_file(path):
            return photo_patches if holds_photographs(path) else array_file
        raise ValueError(f"{path}: a file of a kind that is not read ({path.suffix or 'no ending'}); {_READ}")
    if path.is_dir():
        return photo_patches if any(map(is_photograph, path.iterdir())) else idx_folder
    if path.suffix.lower() in READERS:
        return array_file
    if os.path.dirname(name):
        return idx_folder
    raise ValueError(f"name: expected one of {', '.join(DATASETS)}, or a path; found {name!r}; {_READ}")
