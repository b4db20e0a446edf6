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
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ipvae.data.splits import SPLITS, DataSplits, counts, seeded
from ipvae.extras import explained
from ipvae.inputs import dense
from ipvae_kernels import checks

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
    f0: float | None = 0.8,
    contrast: Contrast = "patch",
    min_contrast: float = 0.25,
    flip: bool = False,
) -> DataSplits:
    """Random overlapping patches for training, adjacent ones on a grid for validation and test.

    Args:
        seed: which training patches, and which of them are flipped. Held-out patches do not depend on it.
        size: side of a patch, pixels.
        n_train: number of training patches, drawn without replacement.
        f0: cut-off of the whitening filter, as a fraction of the Nyquist frequency; None: no whitening.
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
    sampling = Sampling(size, n_train, f0, contrast, min_contrast, flip)
    generator = sampling.generator(seed)
    about = f"scikit-learn's photographs china.jpg and flower.jpg; {sampling.about()}, seed = {int(seed)}"
    return as_splits(sampling.patches(photographs(), generator), sampling, "patches", about)


class Sampling(NamedTuple):
    """How patches are cut: the arguments of `natural_patches`, checked by `generator`."""

    size: int
    n_train: int
    f0: float | None
    contrast: Contrast
    min_contrast: float
    flip: bool

    def generator(self, seed: int) -> torch.Generator:
        """Of what is random.

        Raises:
            TypeError, ValueError: for an argument that cannot work.
        """
        for name in ("size", "n_train"):  # their bounds are those of the photographs
            checks.integer(name, getattr(self, name), -(2**63), 2**63 - 1)
        if self.f0 is not None:
            _fraction(self.f0)
        checks.number("min_contrast", self.min_contrast)
        checks.flag("flip", self.flip)
        if self.contrast not in get_args(Contrast):
            choices = ", ".join(get_args(Contrast))
            raise ValueError(f"contrast: expected one of {choices}, found {self.contrast!r}")
        return seeded(seed)

    def patches(
        self,
        images: list[Tensor],
        generator: torch.Generator,
        *,
        at_most: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """Patches of images [H, W] that are normalised together: split -> [P, size, size].

        Args:
            images: photographs.
            generator: of the training patches.
            at_most: choose so many of each split where there are as many; None: `n_train`, which there have
                to be, and all held-out ones.
        """
        size, regions = self.size, split_regions(images)
        smallest = min(min(tile.shape) for tiles in regions.values() for tile in tiles)
        least = 2 if self.contrast == "none" else KERNEL_SIZE // 2 + 1
        if not 2 <= size <= smallest or smallest < least:
            raise ValueError(
                f"size: expected 2 to {smallest} pixels, the side of the smallest region, found {size}"
            )
        regions = normalise(regions, self.f0, self.contrast)
        steps = {"train": 1, "validation": size, "test": size}
        corners = {
            split: patch_corners(regions[split], size, steps[split], self.min_contrast) for split in SPLITS
        }
        if at_most is None:
            corners["train"] = choose(corners["train"], self.n_train, generator)
        else:
            # Held-out patches do not depend on the seed.
            order = {"train": generator, "validation": seeded(0), "test": seeded(0)}
            corners = {split: pick(corners[split], at_most[split], order[split]) for split in SPLITS}
        patches = {split: cut(regions[split], corners[split], size) for split in SPLITS}
        if self.flip:
            draw = torch.rand(len(corners["train"]), generator=generator, dtype=torch.float32, device="cpu")
            patches["train"][draw < 0.5] = patches["train"][draw < 0.5].flip(2)
        return patches

    def about(self) -> str:
        """In words."""
        whitening = "not whitened" if self.f0 is None else f"1/f whitening (f0 = {self.f0:g} Nyquist)"
        return (
            f"{whitening}, contrast = {self.contrast}, "
            f"min_contrast = {self.min_contrast:g}, flip = {self.flip}"
        )


def as_splits(patches: Mapping[str, Tensor], sampling: Sampling, name: str, about: str) -> DataSplits:
    """Patches [P, size, size] as a data set whose training patches have variance 1.

    Raises:
        ValueError: without training patches.
    """
    if not len(patches["train"]):
        raise ValueError(
            f"min_contrast: no training patch has {sampling.min_contrast:g} of the mean contrast"
        )
    flat = {split: patch.flatten(1) for split, patch in patches.items()}
    if sampling.contrast == "patch":
        flat = {split: unit_contrast(patch) for split, patch in flat.items()}
    scale = flat["train"].std()
    splits = [flat[split].div_(scale) for split in SPLITS]
    size = sampling.size
    about = f"{counts(splits)} patches of {size}x{size} pixels from disjoint regions of {about}"
    return DataSplits(*splits, shape=(1, size, size), name=name, about=about)


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


def normalise(regions: Regions, f0: float | None, contrast: Contrast) -> dict[str, list[Tensor]]:
    """Whitens each region (f0 None: not), evens out contrast unless "none", sets training variance to 1."""
    processed = {split: list(tiles) for split, tiles in regions.items()}
    if f0 is not None:
        processed = {split: [whiten(tile, f0) for tile in tiles] for split, tiles in processed.items()}
    if contrast != "none":
        processed = local_contrast(processed)
    scale = torch.cat([tile.flatten() for tile in processed["train"]]).std()
    return {split: [(tile / scale).float() for tile in tiles] for split, tiles in processed.items()}


def whiten(image: Tensor | NDArray[Any], f0: float = 0.8) -> Tensor:
    """Flattens the 1/f amplitude spectrum of a natural image: R(f) = f exp(-(f / f0)^4), zero phase.

    Olshausen and Field, "Sparse coding with an overcomplete basis set", Vision Research 37, 1997: a ramp
    undoes 1/f, a low-pass stops what noise and the corners of the spectrum add. They take f0 = 200 cycles per
    picture of 512 pixels (0.78 of Nyquist), and 0.4 N (0.8 of Nyquist) in their published program.

    Args:
        image: grey levels [H, W] in any unit, tensor or array, continued by their mirror image on all sides
            (so this is a product of DCTs). What is not float32 becomes float64.
        f0: cut-off, as a fraction of the Nyquist frequency.

    Returns:
        [H, W] of mean 0.

    Raises:
        TypeError: for what is neither tensor nor array.
        ValueError: unless f0 > 0, or for another shape.
    """
    f0 = _fraction(f0)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float64))
    dense("image", image)
    if image.ndim != 2 or not image.numel():
        raise ValueError(f"image: expected grey levels [H, W], found {list(image.shape)}")
    if image.dtype not in (torch.float32, torch.float64):
        image = image.double()
    height, width = image.shape
    mirrored = torch.cat([image, image.flip(0)], dim=0)
    mirrored = torch.cat([mirrored, mirrored.flip(1)], dim=1)
    like = {"dtype": image.dtype, "device": image.device}
    rows = torch.fft.fftfreq(2 * height, **like)  # cycles per pixel; Nyquist is 0.5
    columns = torch.fft.rfftfreq(2 * width, **like)
    f = torch.hypot(rows.unsqueeze(1), columns)
    response = f * torch.exp(-((f / (0.5 * f0)) ** 4))
    whitened: Tensor = torch.fft.irfft2(torch.fft.rfft2(mirrored) * response, s=mirrored.shape)
    return whitened[:height, :width]


def _fraction(f0: float) -> float:
    f0 = checks.number("f0", f0)
    if not f0 > 1e-6:  # beyond which its fourth power leaves float32
        raise ValueError(f"f0: expected a positive fraction of the Nyquist frequency, found {f0}")
    return f0


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
    axis = torch.linspace(-1, 1, KERNEL_SIZE, dtype=image.dtype, device=image.device)
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
    return pick(corners, n, generator)


def pick(corners: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """The same, or all of them where there are fewer."""
    return corners[torch.randperm(len(corners), generator=generator, device="cpu")[:n]]


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
