"""Where MNIST, Fashion-MNIST and EMNIST are looked for, and the download of MNIST."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ipvae.data.idx import PREFIXES, find_idx, idx_folder, read_bytes
from ipvae.data.splits import DataSplits
from ipvae.extras import explained

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# stem -> md5 of the file as it is downloaded (gzipped), and of its contents
MD5 = {
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}

EMNIST = {"train": "emnist-letters-train", "test": "emnist-letters-test"}

_HELP = (
    "Give a folder that holds train-*-ubyte[.gz] and t10k-*-ubyte[.gz] with --data-dir (data_dir=), "
    "or use a data set that needs no download: patches, digits."
)


class DownloadError(RuntimeError):
    """No mirror served a file with the right checksum; the message says what each did."""


def mnist(
    data_dir: str | Path | None = None, *, seed: int = 0, validation: float = 0.1, download: bool = True
) -> DataSplits:
    """MNIST (LeCun, Cortes and Burges; CC BY-SA 3.0): 60,000 + 10,000 digits, 28x28, in [0, 1].

    Args:
        data_dir: where the IDX files are, or lie in ``mnist/`` or ``MNIST/raw/`` (torchvision's layout);
            what is missing is downloaded there (to ``mnist/``). None: the user's cache.
        seed: of the validation split.
        validation: share of the 60,000 that becomes the validation set. The published models train on all, 0.
        download: whether to download files that are not there.

    Raises:
        FileNotFoundError: where files are not there and may not be downloaded.
        DownloadError: where they cannot be.
        ValueError: where the files found are not MNIST.
    """
    root = _cache() if data_dir is None else Path(data_dir)
    folder = _locate(root, ("mnist", "MNIST/raw", ".")) or root / "mnist"
    found = {stem: find_idx(folder, stem) for stem in MD5}
    for stem, path in found.items():
        if path is not None and _md5(path) != MD5[stem][1]:
            raise ValueError(
                f"{path}: not MNIST (another checksum); to use it as it is, give its folder as data set"
            )
    missing = [stem for stem, path in found.items() if path is None]
    if missing and not download:
        raise FileNotFoundError(f"{folder}: no {', '.join(missing)}, and download is off. {_HELP}")
    for stem in missing:
        _download(stem, folder)
    return idx_folder(folder, seed=seed, validation=validation, name="mnist")


def fashion_mnist(
    data_dir: str | Path | None = None, *, seed: int = 0, validation: float = 0.1
) -> DataSplits:
    """Fashion-MNIST (Zalando Research; MIT) from its IDX files, not checked against the official ones.

    Args:
        data_dir: where the IDX files are, or lie in ``fashion-mnist/`` or ``FashionMNIST/raw/``; ``t10k``
            alone will do.
        seed: of the validation split.
        validation: share of the training files that becomes the validation set.

    Raises:
        FileNotFoundError: where there are none.
        ValueError: where they are MNIST's, or damaged.
    """
    root = _cache() if data_dir is None else Path(data_dir)
    folder = _locate(root, ("fashion-mnist", "FashionMNIST/raw", "."))
    if folder is None:
        raise FileNotFoundError(
            f"no Fashion-MNIST files in {root}, its fashion-mnist/ or FashionMNIST/raw/. {_HELP}"
        )
    labels = find_idx(folder, "t10k-labels-idx1-ubyte")
    if labels is not None and _md5(labels) == MD5["t10k-labels-idx1-ubyte"][1]:
        raise ValueError(f"{folder}: expected Fashion-MNIST, found MNIST")
    return idx_folder(folder, seed=seed, validation=validation, name="fashion-mnist")


def emnist_letters(
    data_dir: str | Path | None = None, *, seed: int = 0, validation: float = 0.1
) -> DataSplits:
    """The letters of EMNIST (Cohen et al. 2017; NIST), 28x28, in [0, 1], upright; classes 1 to 26.

    Args:
        data_dir: where the IDX files are, ``emnist-letters-train-...`` and ``emnist-letters-test-...``, or
            lie in ``gzip/`` (NIST's archive) or ``EMNIST/raw/`` (torchvision's layout).
        seed: of the validation split.
        validation: share of the training files that becomes the validation set.

    Raises:
        FileNotFoundError: where there are none.
        ValueError: where they are damaged.
    """
    root = _cache() if data_dir is None else Path(data_dir)
    folder = _locate(root, ("emnist-letters", "gzip", "EMNIST/raw", "."), EMNIST)
    if folder is None:
        raise FileNotFoundError(
            f"no letters of EMNIST in {root}, its gzip/ or EMNIST/raw/: expected "
            "emnist-letters-test-images-idx3-ubyte[.gz] and its like, as in the archive of NIST"
        )
    splits = idx_folder(folder, seed=seed, validation=validation, name="emnist-letters", prefixes=EMNIST)

    def upright(x: Tensor) -> Tensor:  # NIST's files hold columns first
        return x.reshape(-1, *splits.shape).transpose(-1, -2).flatten(1)

    return splits.changed(upright, splits.shape, splits.name)


@explained()
def _download(stem: str, folder: Path) -> None:
    """Downloads a file of MNIST, gzipped: to a temporary file, which is checked, then renamed.

    Raises:
        DownloadError: saying what happened at each mirror.
    """
    import pooch  # type: ignore[import-untyped]

    failures = []
    for mirror in MIRRORS:
        try:
            pooch.retrieve(f"{mirror}{stem}.gz", f"md5:{MD5[stem][0]}", fname=f"{stem}.gz", path=folder)
            return
        except (OSError, ValueError) as error:  # of the network and the disk; a wrong checksum
            failures.append(f"  {mirror}: {error}")
    raise DownloadError("\n".join([f"could not download {stem}.gz to {folder}:", *failures, _HELP]))


@explained()
def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("ipvae"))


def _locate(root: Path, places: Sequence[str], prefixes: Mapping[str, str] = PREFIXES) -> Path | None:
    """The first folder under ``root`` that holds IDX images."""
    stems = [f"{prefix}-images-idx3-ubyte" for prefix in prefixes.values()]
    folders = [root / place for place in places]
    return next((folder for folder in folders if any(find_idx(folder, stem) for stem in stems)), None)


def _md5(path: Path) -> str:
    """Checksum of what is in a file, unpacked; of its beginning where it is larger than MNIST's largest."""
    return hashlib.md5(read_bytes(path, 2**26), usedforsecurity=False).hexdigest()
