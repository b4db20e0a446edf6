"""Recipes that train in minutes on a laptop's CPU; `released_recipe` has the paper's.

They are the defaults of `ModelConfig` and `TrainConfig` with what a data set adds. The KL is the exact one,
so a beta here is not a beta of the paper. Runs of this length are stable with the released clamp of 10.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from .config import Activation, ConfigError, Kind, ModelConfig, TrainConfig, released_recipe

if TYPE_CHECKING:
    from .data import DataSplits

DEMO_MODEL = ModelConfig(n_inputs=256, input_shape=(1, 16, 16), n_latents=512, clamp_u=10.0)
# Small batches: features become localised edges with the number of updates, not of patches seen. At this many
# updates whitened patches bear a larger beta than the default, which is for a tenth of them.
DEMO_TRAIN = TrainConfig(lr=0.005, max_steps=3000, batch_size=64, beta_outer=12.0)

# Images of so many pixels at most are trained like the digits, of 8x8.
SMALL = 64

SHORT = {
    "patches": (DEMO_MODEL, DEMO_TRAIN),
    "digits": (
        ModelConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=128, clamp_u=10.0),
        TrainConfig(max_steps=1500, batch_size=100),
    ),
    "images": (
        ModelConfig(n_inputs=784, input_shape=(1, 28, 28), n_latents=512, clamp_u=10.0),
        TrainConfig(max_steps=1200, batch_size=100, grad_clip=3000.0),
    ),
}


def short_recipe(
    splits: DataSplits, kind: Kind = "poisson", activation: Activation = "identity"
) -> tuple[ModelConfig, TrainConfig]:
    """Our recipe for a data set, chosen by its numbers, wherever they come from.

    Numbers of both signs were centred or whitened, as the patches are; others are images in [0, 1], small
    ones like the digits or large ones like those of MNIST.

    Args:
        splits: the data; the model takes over the shape of an input.
        kind: of the model.
        activation: of a Gaussian model.
    """
    shape = splits.shape
    signed = len(splits.train) > 0 and float(splits.train.min()) < 0.0
    name = "patches" if signed else "digits" if math.prod(shape) <= SMALL else "images"
    model, train = SHORT[name]
    fitted = dataclasses.replace(
        model, n_inputs=math.prod(shape), input_shape=shape, kind=kind, activation=activation,
        clamp_u=model.clamp_u if kind == "poisson" else None, clamp_du=None,
    )  # fmt: skip
    return fitted, train


def paper_recipe(
    data: str, shape: tuple[int, ...], kind: Kind = "poisson", activation: Activation = "identity"
) -> tuple[ModelConfig, TrainConfig]:
    """The recipe behind the published figures that fits a data set.

    Args:
        data: name of the set.
        shape: of one input; 28x28 images get the recipe of MNIST.
        kind: of the model.
        activation: of a Gaussian model.

    Raises:
        ConfigError: for data that are neither patches of 16x16 nor images of 28x28.
    """
    if data == "patches":
        return released_recipe("patches", kind, activation)
    if shape == (1, 28, 28):
        return released_recipe("mnist", kind, activation)
    size = "x".join(map(str, shape))
    raise ConfigError(f"recipe: no released one for {data} ({size}), only for patches and 28x28 images")
