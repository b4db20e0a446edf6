"""Activations with known features, by the generator of SAELens: sparse, correlated, in trees, superposed.

The settings are those of SynthSAEBench-16k (Chanin and Garriga-Alonso 2026, arXiv 2602.14687), and the same
with fewer features for minutes on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import DataSplits
from ..extras import explained

BATCH = 4096


class Size(NamedTuple):
    """Of a world.

    Attributes:
        features: K, the true ones.
        inputs: M.
        roots: trees of features.
        depth: of the trees.
        rarest: probability of the rarest feature.
        orthogonalised: whether the features are pushed apart, as the benchmark's; minutes for 16,384.
        n_train: inputs.
        n_test: likewise.
    """

    features: int
    inputs: int
    roots: int
    depth: int
    rarest: float
    orthogonalised: bool
    n_train: int
    n_test: int


SIZES = {
    "features-256": Size(256, 64, 8, 2, 5e-3, True, 65_536, 8192),
    "features-1024": Size(1024, 128, 32, 2, 1e-3, True, 131_072, 8192),
    "features-16384": Size(16_384, 768, 128, 3, 5e-4, False, 65_536, 512),
}


@dataclass(frozen=True, eq=False)
class World:
    """Inputs, and what they are made of.

    Attributes:
        splits: inputs, less the mean of the training's.
        mean: that mean, [M].
        features: true features of length 1, rows, [K, M].
        activations: of the test inputs, [N, K], >= 0.
        model: the generator, a SyntheticModel of SAELens.
    """

    splits: DataSplits
    mean: Tensor
    features: Tensor
    activations: Tensor
    model: Any


@cache
def world(name: str) -> World:
    """A world of `SIZES`, the same in every process.

    Raises:
        MissingExtra: SAELens is not installed.
    """
    size = SIZES[name]
    model = _model(size)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        activations = _drawn(model, size.n_test)
        test = model.feature_dict(activations)
        train = torch.cat([model.feature_dict(part) for part in _batches(model, size.n_train)])
    mean = train.mean(0)
    train, test = train - mean, test - mean
    splits = DataSplits(
        train, test[:0], test, shape=(1, 1, size.inputs), name=name,
        about=f"{len(train):,} inputs of {size.inputs} numbers made of {size.features:,} features by SAELens",
    )  # fmt: skip
    features = model.feature_dict.feature_vectors.detach()
    return World(splits, mean, features / features.norm(dim=1, keepdim=True), activations, model)


def _batches(model: Any, n: int) -> Iterator[Tensor]:
    for first in range(0, n, BATCH):
        yield model.activation_generator.sample(min(BATCH, n - first))


def _drawn(model: Any, n: int) -> Tensor:
    return torch.cat([*_batches(model, n)])


def _model(size: Size) -> Any:
    with explained():
        from sae_lens import synthetic  # type: ignore[import-not-found]

    config = synthetic.SyntheticModelConfig(
        num_features=size.features, hidden_dim=size.inputs,
        firing_probability=synthetic.ZipfianFiringProbabilityConfig(
            exponent=0.5, max_prob=0.4, min_prob=size.rarest
        ),
        hierarchy=synthetic.HierarchyConfig(
            total_root_nodes=size.roots, branching_factor=4, max_depth=size.depth,
            mutually_exclusive_portion=1.0, mutually_exclusive_min_depth=0, compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        orthogonalization=(
            synthetic.OrthogonalizationConfig(num_steps=100, lr=3e-4) if size.orthogonalised else None
        ),
        correlation=synthetic.LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=synthetic.LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=synthetic.FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=0.5, seed=42,
    )  # fmt: skip
    return synthetic.SyntheticModel(config)
