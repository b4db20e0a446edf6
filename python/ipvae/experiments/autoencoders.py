"""An autoencoder of SAELens to compare with: trained by its trainer, as long as ours."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..extras import explained

BATCH, LEARNING_RATE = 1024, 1e-3
ENDLESS = 10**12  # samples


class _TimeIsUp(Exception):
    """Ends a training whose trainer counts samples alone."""


class _Clock:
    """A generator of samples that stops after some seconds, counted from its first."""

    def __init__(self, generator: Any, seconds: float) -> None:
        self.generator, self.seconds = generator, seconds
        self.started: float | None = None

    @property
    def taken(self) -> float:
        """Seconds since the first samples."""
        return 0.0 if self.started is None else time.perf_counter() - self.started

    def __call__(self, n: int) -> Tensor:
        self.started = time.perf_counter() if self.started is None else self.started
        if self.taken > self.seconds:
            raise _TimeIsUp
        samples: Tensor = self.generator(n)
        return samples


def batch_top_k(
    active: int, features: Any, generator: Any, *, latents: int, inputs: int, seed: int, seconds: float
) -> tuple[Any, float]:
    """A BatchTopK autoencoder, ready to encode, and the seconds that its training took.

    Its learning rate is constant, so that the end can come at any step.

    Args:
        active: k, latents of an input.
        features: from a generator's samples to inputs, as SAELens has it.
        generator: called with a number of samples.
        latents: of the autoencoder.
        inputs: likewise.
        seed: of weights and samples.
        seconds: that it gets.

    Raises:
        MissingExtra: SAELens is not installed.
    """
    with explained():
        import sae_lens  # type: ignore[import-not-found]
        from sae_lens import synthetic

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        config = sae_lens.BatchTopKTrainingSAEConfig(d_in=inputs, d_sae=latents, k=float(active))
        sae, clock = sae_lens.BatchTopKTrainingSAE(config), _Clock(generator, seconds)
        with suppress(_TimeIsUp):
            synthetic.train_toy_sae(
                sae, features, clock, training_samples=ENDLESS, batch_size=BATCH, lr=LEARNING_RATE
            )
    return sae.eval(), clock.taken


def explained_variance(x: Tensor, shown: Tensor) -> float:
    """Share of the variance of inputs [N, M] that reconstructions explain, over all inputs and numbers."""
    error, variation = (x - shown).square().sum(), (x - x.mean(0)).square().sum()
    return float(1.0 - error / variation)
