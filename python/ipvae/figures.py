"""The figures of a model at work on a data set: what ``ipvae demo`` and ``ipvae plot`` draw."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from . import plots
from .checkpoint import atomic_file
from .evaluation.metrics import explained_variance
from .models.base import VAE

FIGURES = ("features.png", "convergence.png", "raster.png", "reconstructions.png", "training.png")
RASTER_STEPS = 200
# Inputs shown, and inputs and steps over which latents are averaged to rank the features.
SHOWN, RANKED_ON, RANKED_STEPS = 10, 500, 20


def draw(
    model: VAE,
    x: Tensor,
    r2: ArrayLike,
    zeros: ArrayLike,
    history: Mapping[str, ArrayLike],
    out: str | PathLike[str],
    *,
    about: str,
    seed: int = 0,
    backend: str = "auto",
) -> list[Path]:
    """Writes the figures of `FIGURES` that can be drawn.

    Args:
        model: of any family; what has no spikes gets no raster, what is no image no pictures, and what infers
            in one step neither raster nor convergence.
        x: inputs, [N, M].
        r2: [steps], of the evaluation of `x`.
        zeros: [steps], likewise, as fractions.
        history: of the training (`ipvae.read_history`); without rows there are no training curves.
        out: folder; created.
        about: what `x` is, for titles.
        seed: of the noise.
        backend: of `ipvae_kernels`.

    Returns:
        The files.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in _figures(model, x, r2, zeros, history, about, seed, backend).items():
        files.append(out / name)
        with atomic_file(files[-1]) as file:
            figure.savefig(file, format="png")
    return files


def _figures(
    model: VAE,
    x: Tensor,
    r2: ArrayLike,
    zeros: ArrayLike,
    history: Mapping[str, ArrayLike],
    about: str,
    seed: int,
    backend: str,
) -> dict[str, Figure]:
    steps, device = len(np.asarray(r2)), model.like.device
    title = about[:1].upper() + about[1:]
    x = x[:RANKED_ON].to(device)
    t_train = model.t_train
    figures = {}
    if model.iterative:
        figures["convergence.png"] = plots.convergence(r2, zeros, trained_steps=t_train, title=title)
    if plots.is_image(model.config.shape):
        figures |= _images(model, x, steps, title, seed, backend)
    if model.spiking and model.iterative:
        spikes = model.infer(
            x[:1], min(RASTER_STEPS, steps), record=("counts",), seed=seed, backend=backend
        ).records["counts"]
        figures["raster.png"] = plots.raster(spikes[:, 0].cpu(), title=f"Spikes for the first input; {about}")
    if np.size(history.get("step", ())):
        figures["training.png"] = plots.training_curves(history)
    return figures


def _images(model: VAE, x: Tensor, steps: int, title: str, seed: int, backend: str) -> dict[str, Figure]:
    """Features, and inputs beside their reconstructions."""
    shape, features = model.config.shape, model.features()
    latents = model.encode(x, steps, last=min(RANKED_STEPS, steps), counts=True, seed=seed, backend=backend)
    last = model.infer(
        x[:SHOWN], steps, record=("reconstruction",), record_every=steps, seed=seed, backend=backend
    ).records["reconstruction"][0]
    if model.decoder is None:
        use = explained_variance(x, latents, features)
    else:  # how far its spikes move the image from that of silence
        use = features.square().sum(0) * latents.square().mean(0)
    return {
        "features.png": plots.features(features.cpu(), shape, use=use.cpu()),
        "reconstructions.png": plots.reconstructions(
            x[:SHOWN].cpu(), last.cpu(), shape,
            title=f"{title}: reconstructed from the sample of step {steps:,}, and the rest",
        ),
    }  # fmt: skip
