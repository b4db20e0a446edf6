"""Whitened patches from photographs of one's own: image files, van Hateren's natural images, arrays."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipvae.data.files import READERS, image_stack
from ipvae.data.patches import LUMA, Contrast, Sampling, as_splits
from ipvae.data.splits import SPLITS, DataSplits

PHOTOGRAPHS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".iml")
IML_SHAPE = (1024, 1536)
# Larger photographs are reduced to this, pixels: an image of the size of van Hateren's fills 100 MiB while it
# is whitened, and at the full resolution of a camera 16 pixels show nothing but blur.
LONGEST = 1536
# Held-out patches of a folder, in each of the two splits: a measure of so many is known to a percent.
HELD_OUT = 10_000
_GREY = ("L", "I", "I;16", "F")


def photo_patches(
    path: str | Path,
    *,
    seed: int = 0,
    size: int = 16,
    n_train: int = 50_000,
    f0: float | None = 0.8,
    contrast: Contrast = "patch",
    min_contrast: float = 0.25,
    flip: bool = False,
    key: str | None = None,
) -> DataSplits:
    """Whitened patches from a folder of photographs, or from one: `natural_patches` of one's own.

    Every photograph is whitened and normalised by itself, since exposures differ, and is cut into disjoint
    regions for training, validation and test. One is held in memory at a time.

    Args:
        path: a folder of PNG, JPEG, TIFF, BMP or WebP files, grey or in colour, 8 or 16 bits, or of
            ``.iml`` files of van Hateren's natural image database (1536 x 1024 big-endian numbers of 16
            bits); other files are passed over. Or one such file. Colours become grey; what is larger than
            1536 pixels is reduced. Or a file of numbers (``.npy``, ``.npz``, ``.mat``, ``.h5``) that holds
            images of at least 128 pixels a side: [N, H, W], [H, W, N], [N, C, H, W] or [N, H, W, C].
        seed: as of `natural_patches`, like all that follow.
        size: side of a patch, pixels.
        n_train: number of training patches, an equal share from each photograph; fewer where there are none.
        f0: cut-off of the whitening filter; None: no whitening. Nor is a file of numbers whitened that holds
            negative ones, which light is not, since it has been already.
        contrast: "none", "local" or "patch".
        min_contrast: patches with less are left out.
        flip: flip half of the training patches.
        key: name of the array where a file of numbers holds several.

    Raises:
        FileNotFoundError: for a missing path, or a folder without photographs.
        ImportError: without the library that reads the file.
        ValueError: for a damaged photograph, one too small for patches, or options out of range.
    """
    path = Path(path)
    sampling = Sampling(size, n_train, f0, contrast, min_contrast, flip)
    generator = sampling.generator(seed)
    if path.suffix.lower() in READERS:
        stack = image_stack(path, key)
        if stack.min() < 0:
            sampling = sampling._replace(f0=None)
        scenes = {f"{path}: image {i}": partial(_grey, image) for i, image in enumerate(stack)}
    else:
        scenes = {str(file): partial(read_photograph, file) for file in _files(path)}
    parts, total = [], len(scenes)
    for number, (name, read) in enumerate(scenes.items()):
        shares = {"train": n_train, "validation": HELD_OUT, "test": HELD_OUT}
        share = {split: n // total + (number < n % total) for split, n in shares.items()}
        try:
            parts.append(sampling.patches([read()], generator, at_most=share))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    patches = {split: torch.cat([part[split] for part in parts]) for split in SPLITS}
    about = f"{total} photograph(s) in {path}; {sampling.about()}, seed = {int(seed)}"
    return as_splits(patches, sampling, path.stem, about)


def _files(path: Path) -> list[Path]:
    files = sorted(filter(is_photograph, path.iterdir())) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path}: expected photographs ({', '.join(PHOTOGRAPHS)}), found none")
    return files


def _grey(image: NDArray[Any]) -> Tensor:
    """Grey levels [H, W] of an image [H, W] or [C, H, W]."""
    levels = np.array(image, dtype=np.float64)  # a copy: a file that is mapped to memory cannot be written
    if not np.isfinite(levels).all():
        raise ValueError("expected finite numbers, found NaN or infinity")
    if levels.ndim == 3:  # the fourth of four channels, and the second of two, is opacity
        levels = np.tensordot(np.array(LUMA), levels[:3], 1) if len(levels) > 2 else levels[0]
    return _uneven(levels)


def is_photograph(path: Path) -> bool:
    """Whether a file is called like a photograph that can be read."""
    return path.suffix.lower() in PHOTOGRAPHS and path.is_file()


def read_photograph(path: Path) -> Tensor:
    """Grey levels [H, W], float64, in the unit of the file.

    Raises:
        ValueError: for a file that is not an image, or a damaged one.
    """
    if path.suffix.lower() == ".iml":
        levels = np.fromfile(path, dtype=">u2")
        if levels.size != math.prod(IML_SHAPE) or path.stat().st_size != 2 * levels.size:
            raise ValueError(
                f"expected {2 * math.prod(IML_SHAPE)} bytes (1536 x 1024 numbers of 16 bits), "
                f"found {path.stat().st_size}"
            )
        return torch.from_numpy(levels.reshape(IML_SHAPE).astype(np.float64))
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.draft("RGB", (LONGEST, LONGEST))  # a JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in _GREY:
                upright = upright.convert("RGB")
            if upright.mode == "I;16":  # which cannot be resized
                upright = upright.convert("I")
            upright.thumbnail((LONGEST, LONGEST))
            levels = np.asarray(upright, dtype=np.float64)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({error})") from error
    return _uneven(levels @ np.array(LUMA) if levels.ndim == 3 else levels)


def _uneven(grey: NDArray[np.float64]) -> Tensor:
    if grey.min() == grey.max():  # whitening would make an image of the rounding of one number
        raise ValueError(f"all {grey.size} pixels are equal")
    return torch.from_numpy(grey)
