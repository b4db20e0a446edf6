"""The families of models: the one place that lists them."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch
from torch import nn

from .. import checkpoint
from ..fields import ConfigError
from ..interop import hub, released
from .amortised import GVAE, PVAE
from .base import VAE
from .config import VAEConfig, Variant
from .gaussian import IGVAE
from .hierarchical import HIPVAE
from .hybrid import IAGVAE, IAPVAE, SAGVAE, SAPVAE
from .lca import LCA
from .poisson import IPVAE


def by_name(families: Iterable[type[VAE]]) -> dict[str, type[VAE]]:
    """Families by the name that their configuration class has, `VAEConfig.cell`.

    Raises:
        ValueError: two have the same, so that a file of one would be read as the other.
    """
    found: dict[str, type[VAE]] = {}
    for family in families:
        other = found.setdefault(family.config_class.cell, family)
        if other is not family:
            raise ValueError(f"{family.__name__}.cell: expected a name of its own, found {other.__name__}'s")
    return found


FAMILIES = by_name([IPVAE, IGVAE, PVAE, GVAE, SAPVAE, SAGVAE, IAPVAE, IAGVAE, LCA, HIPVAE])
"""By the name in files."""


def models() -> dict[str, tuple[type[VAE], Variant]]:
    """What ``ipvae train --model`` takes: each variant of each family."""
    return {
        name: (family, variant)
        for cell, family in FAMILIES.items()
        for name, variant in (family.config_class.variants or {cell: Variant("")}).items()
    }


def model_named(name: str) -> tuple[str, dict[str, Any]]:
    """The family of a name of `models`, or of `FAMILIES`, and the fields that make the variant.

    Raises:
        ConfigError: there is none.
    """
    known = models()
    if name in known:
        family, variant = known[name]
        return family.config_class.cell, dict(variant.fields)
    if name not in FAMILIES:
        raise ConfigError(f"model: expected one of {', '.join(known)}, found {name!r}")
    return name, {}


def family_of(cell: object) -> type[VAE]:
    """The family of a name.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(cell, str) or cell not in FAMILIES:
        raise ConfigError(f"cell: expected one of {', '.join(FAMILIES)}, found {cell!r}")
    return FAMILIES[cell]


def build_model(config: VAEConfig, **modules: nn.Module) -> VAE:
    """The model that a configuration describes, with freshly drawn weights.

    Args:
        config: of a family.
        modules: ``decoder=`` (and ``encoder=``), where the configuration says "module".
    """
    return family_of(config.cell)(config, **modules)


def load_model(path: str | PathLike[str], *, device: str | torch.device = "cpu", **modules: nn.Module) -> VAE:
    """A model from whatever holds one; what it is, the content says.

    Args:
        path: what `IPVAE.from_pretrained` takes, of any family, "user/name" of the Hugging Face Hub too;
            or weights of the authors' code with their settings, a file or a folder, see
            `ipvae.interop.released`.
        device: where to put the model.
        modules: as in `build_model`; they receive the weights.

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
    config = family.config_from(values, source)
    return family.with_weights(config, state, str(file), **modules).to(device)
