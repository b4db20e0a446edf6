"""The families of models, by the cell that a configuration names: the one place that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from .config import ModelConfig
from .gaussian import IGVAE
from .poisson import IPVAE

FAMILIES: dict[str, type[IPVAE] | type[IGVAE]] = {family.cell: family for family in (IPVAE, IGVAE)}


def build_model(config: ModelConfig) -> IPVAE | IGVAE:
    """The model that a configuration describes, with freshly drawn weights."""
    return FAMILIES[config.cell](config)


def load_model(path: str | PathLike[str], *, device: str | torch.device = "cpu") -> IPVAE | IGVAE:
    """A model from whatever holds one; what it is, the content says.

    Args:
        path: what `IterativeVAE.from_pretrained` takes; or weights of the authors' code with their settings,
            a file or a folder, see `ipvae.interop.released.load`.
        device: where to put the model.

    Raises:
        CheckpointError: for files that are missing, damaged, or hold no such model.
    """
    from ..interop import released

    path = Path(path)
    file = checkpoint.locate(path) or released.locate(path)
    if file is None:
        raise checkpoint.CheckpointError(
            f"{path}: no model there; expected {', '.join(checkpoint.PLACES)}, or a .pt file of the authors' "
            "code with its settings"
        )
    config, state = checkpoint.read_model(file)
    if config is None:
        config, state, _ = released.read(state, str(file), file)
    return with_weights(config, state, str(file)).to(device)


def with_weights(config: ModelConfig, state: Mapping[str, Any], name: str) -> IPVAE | IGVAE:
    """A model of loaded weights; no memory is taken before they are known to fit the configuration."""
    with torch.device("meta"):
        model = build_model(config)
    checkpoint.load_state(model, state, name)
    return model
