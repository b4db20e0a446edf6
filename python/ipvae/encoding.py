"""`encode`: the codes of whatever holds inputs, batch by batch, dense or sparse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sized
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ipvae_kernels import checks, memory

from .data import load_dataset, load_whole
from .data.splits import SPLITS
from .extras import explained
from .inputs import Source, batches, whole
from .models.base import VAE
from .models.registry import load_model

with explained():
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

LAYOUTS = ("dense", "scipy", "torch")


def encode(
    model: VAE | str | PathLike[str],
    data: Source | str | PathLike[str],
    steps: int | None = None,
    *,
    layout: Literal["dense", "scipy", "torch"] = "dense",
    counts: bool = False,
    last: int = 1,
    split: str = "all",
    batch_size: int = 1000,
    seed: int = 0,
    sample_offset: int = 0,
    backend: str = "auto",
    check: bool = True,
    progress: bool = False,
) -> Tensor | csr_array:
    """Codes of many inputs: `VAE.encode` of one batch after the other.

    Noise is indexed by the seed and by the place of an input among all of them, so that codes do not depend
    on ``batch_size`` nor on the batches of a DataLoader (with the compiled CPU kernels to the bit), and parts
    encoded elsewhere with their ``sample_offset`` are the rows of one call.

    Args:
        model: a model, or what `load_model` opens.
        data: inputs [N, ...], flattened or not: a NumPy array or memory map (floating point; or uint8, which
            is divided by 255), a tensor, a Dataset or DataLoader of x or (x, label), or the name or path of a
            data set, see `ipvae.data.load_dataset`. One batch of it is in memory at a time.
        steps: of inference; None: as many as `VAE.encode` takes by default.
        layout: "dense": a tensor; "scipy": a `scipy.sparse.csr_array`; "torch": a sparse CSR tensor.
            The last two hold ``counts``, at 8 bytes (16 in torch's) for each that is not 0: a million samples
            of 512 neurons, one in ten active, take .4 GiB and not 2. Any layout takes twice its size while
            batches are joined.
        counts: spike counts (Gaussian: activated samples) instead of rates.
        last: average over so many steps, at most ``steps``.
        split: of a data set given by name: "all", "train", "validation" or "test".
        batch_size: samples inferred at a time.
        seed: of the noise.
        sample_offset: global index of the first input.
        backend: of `ipvae_kernels`.
        check: raise where an input or the result is not finite.
        progress: draw a progress bar.

    Returns:
        [N, K] on the CPU, in the dtype of the model, in the order of the data.

    Raises:
        TypeError, ValueError: an argument is not as described.
        CheckpointError: there is no model at the path.
        MemoryError: dense codes do not fit; said before anything is computed where N is known.

    Example:
        >>> codes = encode("run", "digits", split="test")
        >>> sparse = encode(model, np.load("images.npy", mmap_mode="r"), counts=True, layout="scipy")
    """
    checks.choice("layout", layout, LAYOUTS)
    counts = checks.flag("counts", counts)
    if layout != "dense" and not counts:
        raise ValueError(f"layout: expected 'dense' without counts=True, as no rate is 0, found {layout!r}")
    batch_size = checks.integer("batch_size", batch_size, 1, 2**32)
    seed, sample_offset = whole("seed", seed), whole("sample_offset", sample_offset)
    checks.choice("split", split, ("all", *SPLITS))
    net = _model(model)
    source = _source(data, split)
    n = _length(source)
    if layout == "dense" and n is not None:
        _check_memory(n, net)
    how: dict[str, Any] = {
        "last": last, "counts": counts, "seed": seed, "backend": backend, "check": check,
        **({} if steps is None else {"steps": steps}),
    }  # fmt: skip
    pieces: list[Any] = [_laid_out(_like(net).new_zeros(0, net.config.n_latents), layout)]
    with tqdm(total=n, unit="sample", disable=not progress) as bar:
        for x in _rows(net, source, batch_size):
            codes = net.encode(x, sample_offset=sample_offset, **how)
            pieces.append(_laid_out(codes, layout))
            sample_offset += len(x)
            bar.update(len(x))
    return torch.cat(pieces) if layout == "dense" else _stacked(pieces, layout)


def _check_memory(n: int, net: VAE) -> None:
    """Refuses dense codes that do not fit, once in batches and once in one."""
    shape = (n, net.config.n_latents)
    needed = 2 * math.prod(shape) * _like(net).element_size()
    memory.check(
        f"data: codes {list(shape)}", needed, torch.device("cpu"), "counts=True, layout='scipy' takes less"
    )


def _model(model: VAE | str | PathLike[str]) -> VAE:
    if isinstance(model, (str, PathLike)):
        return load_model(model).eval()
    if not isinstance(model, VAE):
        raise TypeError(f"model: expected a model or the path of one, found {type(model).__name__}")
    return model


def _like(net: VAE) -> Tensor:
    """Whose dtype and device inputs take."""
    return next(net.parameters()).detach()


def _source(data: Source | str | PathLike[str], split: str) -> Source:
    """The inputs themselves."""
    if not isinstance(data, (str, PathLike)):
        if split != "all":
            raise ValueError(f"split: expected data to be the name of a set, found {type(data).__name__}")
        return data
    name = fspath(data)
    if split == "all":
        return load_whole(name).train
    found: Tensor = getattr(load_dataset(name), split)
    return found


def _length(source: Source) -> int | None:
    """The number of inputs, where the source says so."""
    items = source.dataset if isinstance(source, DataLoader) else source
    if isinstance(items, (Tensor, np.ndarray)):
        return items.shape[0] if items.ndim else None
    return len(items) if isinstance(items, Sized) else None


def _rows(net: VAE, source: Source, size: int) -> Iterator[Tensor]:
    """Batches as the model takes them, [B, M]; images may lack the sides of length 1 that its have."""
    shape = net.config.shape
    for x in batches("data", source, size, _like(net)):
        if [side for side in x.shape[1:] if side > 1] == [side for side in shape if side > 1]:
            x = x.reshape(len(x), *shape)
        x = net.flatten(x.to(_like(net).device))
        if x.ndim != 2:
            raise ValueError(f"data: expected inputs [N, {x.shape[-1]}], found batches {list(x.shape)}")
        yield x


def _laid_out(codes: Tensor, layout: str) -> Tensor | csr_array:
    """Codes of a batch on the CPU; sparse ones as SciPy has them."""
    if layout == "dense":
        return codes.cpu()
    from scipy.sparse import csr_array

    return csr_array(codes.cpu().numpy())


def _stacked(pieces: list[csr_array], layout: str) -> Tensor | csr_array:
    """One matrix of all rows."""
    from scipy.sparse import vstack

    found = vstack(pieces, format="csr")
    if layout == "scipy":
        return found
    places = [torch.from_numpy(part.astype(np.int64)) for part in (found.indptr, found.indices)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            places[0], places[1], torch.from_numpy(found.data), size=found.shape, check_invariants=False
        )
