"""What a command computes with, and on: the machine, the data and the model, checked before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .options import Split, matmul_precisions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..data import DataSplits
    from ..models.base import VAE


def machine(
    threads: int | None, backend: str = "auto", device: str = "cpu", matmul_precision: str = "float32"
) -> torch.device:
    """Sets the number of threads; refuses what cannot serve before any work is done."""
    import torch

    import ipvae_kernels
    from ipvae_kernels import checks

    with ipvae_kernels.use_backend(backend):
        pass
    checks.choice("--matmul-precision", matmul_precision, matmul_precisions())
    if threads is not None:
        torch.set_num_threads(threads)
    return _device(device)


def _device(name: str) -> torch.device:
    """The device an option names.

    Raises:
        ValueError: for another name, or a GPU that PyTorch does not find.
    """
    import torch

    kind, _, number = name.partition(":")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (name != "cuda" and not number.isdecimal()):
        raise ValueError(f"--device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= found:
        here = f"{found} CUDA GPU{'' if found == 1 else 's'}" if found else "no CUDA GPU"
        raise ValueError(f"--device: expected a device that is there, found {name!r}; PyTorch finds {here}")
    return torch.device(name)


def is_own(data: str) -> bool:
    """Whether `data` is a path of the user's, not the name of a set with a test set of its own."""
    from ..data import DATASETS

    return os.fspath(data) not in DATASETS


def load_data(data: str, data_dir: Path | None, split: Split | None = None) -> DataSplits:
    """A data set by name or path; with ``--split all``, whole."""
    from ..data import load_dataset, load_whole

    load = load_whole if split is Split.ALL else load_dataset
    return load(data, data_dir=data_dir)


def model_for(path: Path, splits: DataSplits, data: str) -> VAE:
    """A model's folder, a run's, or a checkpoint of the authors' code, checked against the data's size."""
    from ..models.registry import load_model

    net = load_model(path)
    if net.config.n_inputs != splits.train.shape[1]:
        sizes = ["x".join(map(str, shape)) for shape in (net.config.shape, splits.shape)]
        raise ValueError(
            f"{path} takes inputs of {net.config.n_inputs} numbers ({sizes[0]}), the data {data} have "
            f"{splits.train.shape[1]} ({sizes[1]}); which --data was it trained on?"
        )
    return net


def part_of(splits: DataSplits, split: Split, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """The first inputs of a split and their labels; `load_whole` leaves all of them in the training split."""
    name = "train" if split is Split.ALL else split.value
    x: Tensor = getattr(splits, name)
    if len(x) == 0:
        raise ValueError(f"--split: {splits.name} has no {name} samples")
    labels = splits.labels.get(name)
    return x[:limit], None if labels is None else labels[:limit]


def chosen(splits: DataSplits, split: Split, x: Tensor, data: str) -> str:
    """Which samples, in words; says what was left out."""
    whole = len(splits.train if split is Split.ALL else getattr(splits, split.value))
    share = f"{len(x):,}" if len(x) == whole else f"the first {len(x):,} of {whole:,}"
    if split is Split.ALL:
        return f"{share} samples of {data}"
    total = sum(len(part) for part in (splits.train, splits.validation, splits.test))
    held = f" ({whole:,} of its {total:,}; --split all takes them all)" if is_own(data) else ""
    return f"{share} {split.value} samples of {data}{held}"


def readout_data(splits: DataSplits, split: str, data: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Training samples and labels for a readout."""
    if split not in splits.labels or "train" not in splits.labels or len(splits.train) == 0:
        raise ValueError(f"--readout: {data} has no labels for the {split} and the training samples")
    return splits.train[:limit], splits.labels["train"][:limit]
