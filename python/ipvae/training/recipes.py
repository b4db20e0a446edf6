"""Recipes that train in minutes on a laptop's CPU; `released_recipe` has the paper's.

They are the defaults of `IPVAEConfig` and `TrainConfig` with what a data set adds. The KL is the exact one,
so a beta here is not a beta of the paper. Runs of this length are stable with the released clamp of 10.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, cast

from ..fields import ConfigError
from ..interop.released import INIT_LOG_RATE
from ..models.config import Activation, IPVAEConfig, ModelConfig, VAEConfig
from ..models.config_hierarchical import HIPVAEConfig
from ..models.config_hybrid import IterativelyAmortisedConfig, SemiAmortisedConfig
from ..models.config_lca import LCAConfig
from ..models.registry import family_of
from .config import TrainConfig

if TYPE_CHECKING:
    from ..data import DataSplits


DEMO_MODEL = IPVAEConfig(n_inputs=256, input_shape=(1, 16, 16), n_latents=512, clamp_u=10.0)
# Small batches: features become localised edges with the number of updates, not of patches seen. At this many
# updates whitened patches bear a larger beta than the default, which is for a tenth of them.
DEMO_TRAIN = TrainConfig(lr=0.005, max_steps=3000, batch_size=64, beta_outer=12.0)
AMORTISED_UPDATES = 4
# Images of so many pixels at most are trained like the digits, of 8x8.
SMALL = 64
# Of an LCA: some 80 % of the neurons are silent at these, as of an iP-VAE (docs/models.md).
PENALTY = {"patches": 0.6, "digits": 0.25, "images": 0.3}
SHORT = {
    "patches": (DEMO_MODEL, DEMO_TRAIN),
    "digits": (
        IPVAEConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=128, clamp_u=10.0),
        TrainConfig(max_steps=1500, batch_size=100),
    ),
    "images": (
        IPVAEConfig(n_inputs=784, input_shape=(1, 28, 28), n_latents=512, clamp_u=10.0),
        TrainConfig(max_steps=1200, batch_size=100, grad_clip=3000.0),
    ),
}


def short_recipe(
    splits: DataSplits, cell: str = "poisson", activation: Activation = "identity", **fields: Any
) -> tuple[VAEConfig, TrainConfig]:
    """Our recipe for a data set, chosen by its numbers, wherever they come from.

    The models are of the sizes below, and of their family's defaults; Poisson ones have the released clamp.
    Numbers of both signs were centred or whitened, as the patches are; others are images in [0, 1], small
    ones like the digits or large ones like those of MNIST.

    Args:
        splits: the data; the model takes over the shape of an input.
        cell: of the model, a name of `ipvae.models.registry.FAMILIES`.
        activation: of a Gaussian model.
        fields: more of the configuration, such as ``decoder="mlp"``. With a decoder that is not linear the
            model has as many neurons as such a decoder has by default.

    Raises:
        ConfigError: for another cell, an activation of a Poisson model, or a field that the family has not.
    """
    shape = splits.shape
    signed = len(splits.train) > 0 and float(splits.train.min()) < 0.0
    name = "patches" if signed else "digits" if math.prod(shape) <= SMALL else "images"
    model, train = SHORT[name]
    config_class = family_of(cell).config_class
    sizes = {"n_inputs": math.prod(shape), "input_shape": shape}
    neurons = None if fields.get("decoder", "linear") != "linear" else model.n_latents
    if issubclass(config_class, LCAConfig):
        fields = {"penalty": PENALTY[name], **fields}
    fields = {"n_latents": neurons, **sizes, **_own(config_class, activation), **fields}
    for name, value in fields.items():
        if name not in {field.name for field in dataclasses.fields(config_class)}:
            raise ConfigError(f"{name}: {config_class.__name__} has none, found {value!r}")
    if isinstance(model, config_class):
        return dataclasses.replace(model, **fields), train
    return config_class(**fields), _train_of(config_class, train)


def _train_of(config_class: type[VAEConfig], train: TrainConfig) -> TrainConfig:
    """The recipe of iterative models, as it serves a family.

    An amortised model, whose update costs a tenth, has more updates. It and the hybrids have a larger rate
    (digits, linear P-VAE, 1,500 updates: R2 .60 with the rate of the iterative models, .66 with this one), a
    KL of weight 1, and semi-amortised ones the original's weight to start from.
    """
    if issubclass(config_class, (ModelConfig, LCAConfig, HIPVAEConfig)):
        return train
    if issubclass(config_class, SemiAmortisedConfig):
        return dataclasses.replace(train, lr=0.005, beta_min=0.1, beta_outer=1.0)
    if issubclass(config_class, IterativelyAmortisedConfig):
        return dataclasses.replace(train, lr=0.005, beta_outer=1.0)
    more = AMORTISED_UPDATES * cast(int, train.max_steps)
    return dataclasses.replace(train, lr=0.005, beta_outer=1.0, max_steps=more)


def _own(config_class: type[VAEConfig], activation: str) -> dict[str, Any]:
    """What a recipe is told about the model, as the fields that its family has."""
    if any(field.name == "activation" for field in dataclasses.fields(config_class)):
        return {"activation": activation}
    if activation != "identity":
        raise ConfigError(
            f"activation: expected 'identity' for a {config_class.cell} model, found {activation!r}"
        )
    return {}


def paper_recipe(
    data: str, shape: tuple[int, ...], cell: str = "poisson", activation: Activation = "identity"
) -> tuple[ModelConfig, TrainConfig]:
    """The recipe behind the published figures that fits a data set.

    Args:
        data: name of the set.
        shape: of one input; 28x28 images get the recipe of MNIST.
        cell: of the model, a name of `ipvae.models.registry.FAMILIES`.
        activation: of a Gaussian model.

    Raises:
        ConfigError: for data that are neither patches of 16x16 nor images of 28x28.
    """
    if data == "patches":
        return released_recipe("patches", cell, activation)
    if shape == (1, 28, 28):
        return released_recipe("mnist", cell, activation)
    size = "x".join(map(str, shape))
    raise ConfigError(f"recipe: no released one for {data} ({size}), only for patches and 28x28 images")


# (cell, activation) -> (T, beta) of the released runs, which share everything else of their data set.
_PATCHES = {
    ("poisson", "identity"): (16, 24.0),
    ("gaussian", "identity"): (16, 8.0),
    ("gaussian", "relu"): (16, 8.0),
}
_MNIST = {
    ("poisson", "identity"): (128, 128.0),
    ("gaussian", "identity"): (64, 64.0),
    ("gaussian", "relu"): (32, 32.0),
}
# What the released models of a family have besides (docs/design/training.md, "Defaults").
_RELEASED: dict[str, dict[str, Any]] = {
    "poisson": {
        "estimator": "sigmoid", "n_arrivals": "released", "init_log_rate": INIT_LOG_RATE, "clamp_u": 10.0
    },
    "gaussian": {},
}  # fmt: skip


def released_recipe(
    name: Literal["patches", "mnist"], cell: str = "poisson", activation: Activation = "identity"
) -> tuple[ModelConfig, TrainConfig]:
    """The recipes behind the published figures.

    Args:
        name: "patches" (whitened 16x16 natural patches, 300 epochs) or "mnist" ([0, 1] pixels, 400 epochs).
        cell: of the model, a name of `ipvae.models.registry.FAMILIES`.
        activation: of a Gaussian model.

    Returns:
        Configurations as released: sigmoid estimator, their KL, their cut of the arrivals. Change single
        fields with `dataclasses.replace`; with ``kl="exact"`` a beta means something else than in the paper.

    Raises:
        ConfigError: for a name or a model that has no released recipe.
    """
    recipes = {"patches": _PATCHES, "mnist": _MNIST}
    if name not in recipes:
        raise ConfigError(f"name: expected one of {sorted(recipes)}, found {name!r}")
    if (cell, activation) not in recipes[name]:
        raise ConfigError(f"cell: no released recipe for cell={cell!r}, activation={activation!r}")
    t_train, beta = recipes[name][cell, activation]
    shape = (1, 16, 16) if name == "patches" else (1, 28, 28)
    shared: dict[str, Any] = {
        "n_inputs": math.prod(shape), "input_shape": shape, "t_train": t_train, "kl": "released"
    }  # fmt: skip
    config_class = cast("type[ModelConfig]", family_of(cell).config_class)
    model = config_class(**shared, **_RELEASED[cell], **_own(config_class, activation))
    if name == "patches":
        return model, TrainConfig(lr=0.005, epochs=300, batch_size=200, beta_outer=beta, grad_clip=300.0)
    return model, TrainConfig(lr=0.002, epochs=400, batch_size=100, beta_outer=beta, grad_clip=3000.0)
