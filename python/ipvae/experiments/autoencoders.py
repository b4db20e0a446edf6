"""Autoencoders of SAELens to compare with: trained by its trainer, as long as ours."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..extras import explained

BATCH, LEARNING_RATE = 1024, 1e-3
PROBED = 40  # batches whose time tells how many there is time for
KINDS = {"BatchTopK autoencoder": "BatchTopKTraining", "top-k autoencoder": "TopKTraining"}


def autoencoder(
    name: str, active: int, features: Any, generator: Any, *, latents: int, inputs: int, seed: int,
    seconds: float,
) -> tuple[Any, float]:  # fmt: skip
    """An autoencoder, ready to encode, and the seconds that its training took.

    Args:
        name: one of `KINDS`.
        active: k, latents of an input.
        features: from a generator's samples to inputs, as SAELens has it.
        generator: called with a number of samples.
        latents: of the autoencoder.
        inputs: likewise.
        seed: of weights and samples.
        seconds: that it gets, about.

    Raises:
        MissingExtra: SAELens is not installed.
    """
    with explained():
        import sae_lens  # type: ignore[import-not-found]
        from sae_lens import synthetic

    kind = KINDS[name]

    def trained(batches: int) -> tuple[Any, float]:
        torch.manual_seed(seed)
        config = getattr(sae_lens, f"{kind}SAEConfig")(d_in=inputs, d_sae=latents, k=active)
        sae = getattr(sae_lens, f"{kind}SAE")(config)
        started = time.perf_counter()
        synthetic.train_toy_sae(
            sae, features, generator, training_samples=BATCH * batches, batch_size=BATCH, lr=LEARNING_RATE
        )
        return sae, time.perf_counter() - started

    with torch.random.fork_rng([]):
        trained(5)
        each = trained(PROBED)[1] / PROBED
        sae, took = trained(max(PROBED, int(seconds / each)))
    return sae.eval(), took


def explained_variance(x: Tensor, shown: Tensor) -> float:
    """Share of the variance of inputs [N, M] that reconstructions explain, over all inputs and numbers."""
    error, variation = (x - shown).square().sum(), (x - x.mean(0)).square().sum()
    return float(1.0 - error / variation)
