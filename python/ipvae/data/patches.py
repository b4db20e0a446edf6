"""Whitened natural-image patches, from the two photographs inside scikit-learn.

The steps are those behind the released models' van Hateren patches (``vH16-wht``): 1/f whitening, local
contrast normalisation, unit contrast of each patch. Three things are done differently, on purpose.

* Splits are disjoint *regions* of the photographs, so that no pixel is in two of them, and every region is
  processed on its own: a filter that ran over a whole photograph would carry the pixels of one split into
  another, since the kernel of the whitening filter falls off only as a power of the distance. At its edges a
  region is continued by its mirror image, which has no jump for the filter to respond to. Constants are taken
  from the training regions.
* Frequency 0 of the filter meets frequency 0 of the spectrum. The released ``Whitening`` multiplies an
  unshifted spectrum by a filter centred on the middle of the array, which lets part of the mean through
  and stops the highest frequencies.
* Patches without content (sky) are left out, since unit contrast would turn them into amplified compression
  noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ipvae.data.splits import SPLITS, DataSplits, counts
from ipvae.extras import explained

Contrast = Literal["patch", "local", "none"]
Regions = Mapping[str, list[Tensor]]

# Tiles of each photograph: Train, Validation, test (X), so spread that each split sees all kinds of content.
LAYOUT = ("TVXTT", "VTTTX")
_LETTERS = {"T": "train", "V": "validation", "X": "test"}

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
KERNEL_SIZE = 13
KERNEL_SIGMA = 0.5  # in units of half the kernel, written as the released code does: a deviation of 3 pixels


def natural_patches(
    *,
    seed: int = 0,
    size: int = 16,
    n_train: int = 50_000,
    f0: float = 0.8,
    contrast: Contrast = "patch",
    min_contrast: float = 0.25,
    flip: bool = False,
) -> DataSplits:
    """Random overlapping patches for training, adjacent ones on a grid for validation and test.

    Args:
        seed: which training patches, and which of them are flipped. Held-out patches do not depend on it.
        size: side of a patch, pixels.
        n_train: number of training patches, drawn without replacement.
        f0: cut-off of the whitening filter, as a fraction of the Nyquist frequency.
        contrast: "none" (whitening only), "local" (then divided by the contrast around each pixel), or
            "patch" (then each patch brought to mean 0 and standard deviation 1, as for the released models).
        min_contrast: patches whose standard deviation, before that last step, is below this are left out; the
            unit is the standard deviation of all training regions.
        flip: flip half of the training patches, chosen at random, left to right.

    Returns:
        Patches of shape (1, size, size), scaled so that the training patches have variance 1.

    Raises:
        ValueError: for a patch larger than a region, more training patches than there are, or an unknown
            ``contrast``.
    """
    if contrast not in get_args(Contrast):
        raise ValueError(f"contrast: expected one of {', '.join(get_args(Contrast))}, found {contrast!r}")
    regions = normalise(split_regions(photographs()), f0, contrast)
    smallest = min(min(tile.shape) for tiles in regions.values() for tile in tiles)
    if not 2 <= size <= smallest:
        raise ValueError(
            f"size: expected 2 to {smallest} pixels, the side of the smallest region, found {size}"
        )

    steps = {"train": 1, "validation": size, "test": size}
    corners = {split: patch_corners(regions[split], size, steps[split], min_contrast) for split in SPLITS}
    generator = torch.Generator().manual_seed(seed)
    corners["train"] = choose(corners["train"], n_train, generator)
    patches = {split: cut(regions[split], corners[split], size) for split in SPLITS}
    if flip:
        flipped = torch.rand(n_train, generator=generator) < 0.5
        patches["train"][flipped] = patches["train"][flipped].flip(2)

    flat = {split: patch.flatten(1) for split, patch in patches.items()}
    if contrast == "patch":
        flat = {split: unit_contrast(patch) for split, patch in flat.items()}
    scale = flat["train"].std()
    splits = [flat[split].div_(scale) for split in SPLITS]
    about = (
        f"{counts(splits)} patches of {size}x{size} pixels from disjoint regions of scikit-learn's "
        f"photographs china.jpg and flower.jpg; 1/f whitening (f0 = {f0:g} Nyquist), contrast = {contrast}, "
        f"min_contrast = {min_contrast:g}, flip = {flip}, seed = {seed}"
    )
    return DataSplits(*splits, shape=(1, size, size), name="patches", about=about)


@explained()
def photographs() -> list[Tensor]:
    """The grey-scaled photographs, each [427, 640] float64, from 0 to 255."""
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

    images = cast("list[Any]", load_sample_images().images)
    return [torch.from_numpy(np.asarray(image, dtype=np.float64) @ np.array(LUMA)) for image in images]


def split_regions(images: list[Tensor]) -> dict[str, list[Tensor]]:
    """Cuts images [H, W] into the tiles of ``LAYOUT``: split -> tiles, which share no pixel."""
    regions: dict[str, list[Tensor]] = {split: [] for split in SPLITS}
    for image in images:
        for band, letters in zip(image.tensor_split(len(LAYOUT), dim=0), LAYOUT, strict=True):
            for tile, letter in zip(band.tensor_split(len(letters), dim=1), letters, strict=True):
                regions[_LETTERS[letter]].append(tile)
    return regions


def normalise(regions: Regions, f0: float, contrast: Contrast) -> dict[str, list[Tensor]]:
    """Whitens each region, evens out local contrast unless "none", brings training regions to variance 1."""
    processed = {split: [whiten(tile, f0) for tile in tiles] for split, tiles in regions.items()}
    if contrast != "none":
        processed = local_contrast(processed)
    scale = torch.cat([tile.flatten() for tile in processed["train"]]).std()
    return {split: [(tile / scale).float() for tile in tiles] for split, tiles in processed.items()}


def whiten(image: Tensor, f0: float = 0.8) -> Tensor:
    """Flattens the 1/f amplitude spectrum of a natural image: R(f) = f exp(-(f / f0)^4), zero phase.

    Olshausen and Field, "Sparse coding with an overcomplete basis set", Vision Research 37, 1997: a ramp
    undoes 1/f, a low-pass stops what noise and the corners of the spectrum add. They take f0 = 200 cycles per
    picture of 512 pixels (0.78 of Nyquist), and 0.4 N (0.8 of Nyquist) in their published program.

    Args:
        image: [H, W], float, continued by its mirror image on all sides (so this is a product of DCTs).
        f0: cut-off, as a fraction of the Nyquist frequency.

    Returns:
        [H, W] of mean 0.

    Raises:
        ValueError: unless f0 > 0.
    """
    if not f0 > 0:
        raise ValueError(f"f0: expected a positive fraction of the Nyquist frequency, found {f0}")
    height, width = image.shape
    mirrored = torch.cat([image, image.flip(0)], dim=0)
    mirrored = torch.cat([mirrored, mirrored.flip(1)], dim=1)
    rows = torch.fft.fftfreq(2 * height, dtype=image.dtype)  # cycles per pixel; Nyquist is 0.5
    columns = torch.fft.rfftfreq(2 * width, dtype=image.dtype)
    f = torch.hypot(rows.unsqueeze(1), columns)
    response = f * torch.exp(-((f / (0.5 * f0)) ** 4))
    whitened: Tensor = torch.fft.irfft2(torch.fft.rfft2(mirrored) * response, s=mirrored.shape)
    return whitened[:height, :width]


def local_contrast(regions: Regions) -> dict[str, list[Tensor]]:
    """Subtractive, then divisive normalisation by a Gaussian neighbourhood.

    Jarrett, Kavukcuoglu, Ranzato and LeCun, "What is the best multi-stage architecture for object
    recognition?", ICCV 2009: v = x - G*x, y = v / max(c, sqrt(G*v^2)), where c is the mean of the root, here
    over the training regions.
    """
    centred = {split: [tile - _blur(tile) for tile in tiles] for split, tiles in regions.items()}
    spread = {split: [_blur(tile.square()).sqrt() for tile in tiles] for split, tiles in centred.items()}
    floor = torch.cat([tile.flatten() for tile in spread["train"]]).mean()
    return {s: [v / r.clamp(min=floor) for v, r in zip(centred[s], spread[s], strict=True)] for s in regions}


def _blur(image: Tensor) -> Tensor:
    """Convolution of [H, W] with the Gaussian window, edges reflected."""
    axis = torch.linspace(-1, 1, KERNEL_SIZE, dtype=image.dtype)
    window = torch.exp(-axis.square() / KERNEL_SIGMA)
    window = window / window.sum()
    padded = F.pad(image[None, None], (KERNEL_SIZE // 2,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))[0, 0]


def patch_corners(tiles: list[Tensor], size: int, step: int, min_contrast: float) -> Tensor:
    """Where patches with enough contrast lie.

    Args:
        tiles: [H, W] each.
        size: side of a patch.
        step: distance of neighbouring patches; `size` for adjacent ones, which share no pixel.
        min_contrast: smallest standard deviation of a patch.

    Returns:
        [P, 3] int64: tile, row and column of the top left pixel.
    """
    found = []
    for index, tile in enumerate(tiles):
        deviation = tile.unfold(0, size, step).unfold(1, size, step).std(dim=(2, 3), correction=0)
        found.append(F.pad((deviation >= min_contrast).nonzero() * step, (1, 0), value=index))
    return torch.cat(found)


def choose(corners: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A random subset of the corners, in random order, without replacement."""
    if not 1 <= n <= len(corners):
        raise ValueError(f"n_train: expected 1 to {len(corners)}, the number of patches there are, found {n}")
    return corners[torch.randperm(len(corners), generator=generator)[:n]]


def cut(tiles: list[Tensor], corners: Tensor, size: int) -> Tensor:
    """The patches at these corners, [P, size, size]."""
    patches = tiles[0].new_empty(len(corners), size, size)
    for index, tile in enumerate(tiles):
        here = corners[:, 0] == index
        windows = tile.unfold(0, size, 1).unfold(1, size, 1)
        patches[here] = windows[corners[here, 1], corners[here, 2]]
    return patches


def unit_contrast(patches: Tensor) -> Tensor:
    """Each patch [N, M] with mean 0 and standard deviation 1; a constant patch becomes 0."""
    centred = patches - patches.mean(dim=1, keepdim=True)
    return centred / centred.std(dim=1, keepdim=True, correction=0).clamp(min=torch.finfo(patches.dtype).tiny)
