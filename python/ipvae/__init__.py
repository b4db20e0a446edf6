"""The iterative Poisson VAE: models, training, evaluation, data and plots, on the kernels of `ipvae_kernels`.

Names are imported when first used: PyTorch takes a second, Lightning several, and ``ipvae --help`` neither.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import CheckpointError
    from .config import ConfigError, ModelConfig, TrainConfig, released_recipe
    from .evaluation import Evaluation, Readout, evaluate
    from .model import IGVAE, IPVAE, IterativeVAE, build_model, load_model
    from .training import Training, TrainingError, TrainResult, read_history, train

__all__ = [
    "IGVAE",
    "IPVAE",
    "CheckpointError",
    "ConfigError",
    "Evaluation",
    "IterativeVAE",
    "ModelConfig",
    "Readout",
    "TrainConfig",
    "TrainResult",
    "Training",
    "TrainingError",
    "build_model",
    "evaluate",
    "load_model",
    "read_history",
    "released_recipe",
    "train",
]

_HOMES = {
    "checkpoint": ("CheckpointError",),
    "config": ("ConfigError", "ModelConfig", "TrainConfig", "released_recipe"),
    "evaluation": ("Evaluation", "Readout", "evaluate"),
    "model": ("IGVAE", "IPVAE", "IterativeVAE", "build_model", "load_model"),
    "training": ("TrainResult", "Training", "TrainingError", "read_history", "train"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name == "__version__":
        return metadata.version("ipvae-kernels")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
