"""The families of models: the one place that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..interop import released
from .config import ModelConfig
from .gaussian import IGVAE
from .poisson import IPVAE

FAMILIES: dict[str, type[IPVAE] | type[IGVAE]] = {
    family.config_class.cell: family for family in (IPVAE, IGVAE)
}
"""By the cell that a configuration names."""


def build_model(config: ModelConfig) -> IPVAE | IGVAE:
    """The model that a configuration describes, with freshly drawn weights."""
    return FAMILIES[config.cell](config)


def read_config(values: Mapping[str, Any], file: str | PathLike[str]) -> ModelConfig:
    """The configuration that a file holds, of whichever family.

    Raises:
        CheckpointError: it is of no family, or damaged.
    """
    family = FAMILIES.get(str(values.get("cell")))
    if family is None:
        expected = ", ".join(FAMILIES)
        raise checkpoint.CheckpointError(
            f"{file}: damaged configuration (cell: expected one of {expected}, found {values.get('cell')!r})"
        )
    return checkpoint.config_of(family.config_class, values, file)


def load_model(path: str | PathLike[str], *, device: str | torch.device = "cpu") -> IPVAE | IGVAE:
    """A model from whatever holds one; what it is, the content says.

    Args:
        path: what `IPVAE.from_pretrained` takes, of any family; or weights of the authors' code with their
            settings, a file or a folder, see `ipvae.interop.released.load`.
        device: where to put the model.

    Raises:
        CheckpointError: for files that are missing, damaged, or hold no such model.
    """
    path = Path(path)
    file = checkpoint.locate(path) or released.locate(path)
    if file is None:
        raise checkpoint.CheckpointError(
            f"{path}: no model there; expected {', '.join(checkpoint.PLACES)}, or a .pt file of the authors' "
            "code with its settings"
        )
    values, state = checkpoint.read_model(file)
    if values is None:
        config, state, _ = released.read(state, str(file), file)
    else:
        config = read_config(values, file)
    return FAMILIES[config.cell].with_weights(config, state, str(file)).to(device)
