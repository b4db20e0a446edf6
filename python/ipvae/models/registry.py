"""The families of models: the one place that lists them."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike

import torch

from .. import checkpoint
from ..fields import ConfigError
from ..interop import hub, released
from .config import ModelConfig
from .gaussian import IGVAE
from .iterative import IterativeVAE
from .poisson import IPVAE


def by_name(families: Iterable[type[IterativeVAE]]) -> dict[str, type[IterativeVAE]]:
    """Families by the name that their configuration class has, `ModelConfig.cell`.

    Raises:
        ValueError: two have the same, so that a file of one would be read as the other.
    """
    found: dict[str, type[IterativeVAE]] = {}
    for family in families:
        other = found.setdefault(family.config_class.cell, family)
        if other is not family:
            raise ValueError(f"{family.__name__}.cell: expected a name of its own, found {other.__name__}'s")
    return found


FAMILIES = by_name([IPVAE, IGVAE])
"""By the name in files and of ``ipvae train --cell``."""


def family_of(cell: object) -> type[IterativeVAE]:
    """The family of a name.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(cell, str) or cell not in FAMILIES:
        raise ConfigError(f"cell: expected one of {', '.join(FAMILIES)}, found {cell!r}")
    return FAMILIES[cell]


def build_model(config: ModelConfig) -> IterativeVAE:
    """The model that a configuration describes, with freshly drawn weights."""
    return family_of(config.cell)(config)


def load_model(path: str | PathLike[str], *, device: str | torch.device = "cpu") -> IterativeVAE:
    """A model from whatever holds one; what it is, the content says.

    Args:
        path: what `IPVAE.from_pretrained` takes, of any family, "user/name" of the Hugging Face Hub too;
            or weights of the authors' code with their settings, a file or a folder, see
            `ipvae.interop.released`.
        device: where to put the model.

    Raises:
        CheckpointError: for files that are missing, damaged, or hold no such model.
    """
    path = hub.fetched(path)
    file = checkpoint.locate(path) or released.locate(path)
    if file is None:
        raise checkpoint.CheckpointError(
            f"{path}: no model there; expected {', '.join(checkpoint.PLACES)}, or a .pt file of the authors' "
            "code with its settings"
        )
    values, state = checkpoint.read_model(file)
    source = str(file)
    if values is None:
        weights = released.weights(state, source, file)
        state, (values, source) = weights.state, released.configuration(weights)
    try:
        family = family_of(values.get("cell"))
    except ConfigError as error:
        raise checkpoint.CheckpointError(f"{source}: no model fits it ({error})") from error
    return family.with_weights(family.config_from(values, source), state, str(file)).to(device)
