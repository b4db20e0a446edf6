"""The iterative Poisson VAE: models, training, evaluation, data and plots, on the kernels of `ipvae_kernels`.

Names are imported when first used: PyTorch takes a second, Lightning several, and ``ipvae --help`` neither.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import CheckpointError
    from .coder import SpikeCoder, fit
    from .encoding import encode
    from .evaluation.evaluate import Evaluation, evaluate
    from .evaluation.readout import Readout
    from .fields import ConfigError
    from .interop.accelerated.accelerate import AccelerationWarning, accelerate, deaccelerate
    from .models.amortised import GVAE, PVAE, AmortisedVAE
    from .models.base import VAE
    from .models.cell import IPVAECell
    from .models.config import (
        AmortisedConfig,
        GVAEConfig,
        IGVAEConfig,
        IPVAEConfig,
        ModelConfig,
        PVAEConfig,
        VAEConfig,
    )
    from .models.config_hierarchical import HIPVAEConfig
    from .models.config_hybrid import IAGVAEConfig, IAPVAEConfig, SAGVAEConfig, SAPVAEConfig
    from .models.config_lca import LCAConfig
    from .models.gaussian import IGVAE
    from .models.hierarchical import HIPVAE
    from .models.hybrid import IAGVAE, IAPVAE, SAGVAE, SAPVAE, HybridVAE
    from .models.iterative import IterativeVAE
    from .models.lca import LCA
    from .models.poisson import IPVAE
    from .models.registry import build_model, load_model
    from .stream import Stream, StreamEnded
    from .training.config import TrainConfig
    from .training.history import read_history
    from .training.module import Training
    from .training.outcome import TrainingError
    from .training.recipes import released_recipe
    from .training.run import TrainResult, train

__all__ = [
    "GVAE",
    "HIPVAE",
    "IAGVAE",
    "IAPVAE",
    "IGVAE",
    "IPVAE",
    "LCA",
    "PVAE",
    "SAGVAE",
    "SAPVAE",
    "VAE",
    "AccelerationWarning",
    "AmortisedConfig",
    "AmortisedVAE",
    "CheckpointError",
    "ConfigError",
    "Evaluation",
    "GVAEConfig",
    "HIPVAEConfig",
    "HybridVAE",
    "IAGVAEConfig",
    "IAPVAEConfig",
    "IGVAEConfig",
    "IPVAECell",
    "IPVAEConfig",
    "IterativeVAE",
    "LCAConfig",
    "ModelConfig",
    "PVAEConfig",
    "Readout",
    "SAGVAEConfig",
    "SAPVAEConfig",
    "SpikeCoder",
    "Stream",
    "StreamEnded",
    "TrainConfig",
    "TrainResult",
    "Training",
    "TrainingError",
    "VAEConfig",
    "accelerate",
    "build_model",
    "deaccelerate",
    "encode",
    "evaluate",
    "fit",
    "load_model",
    "read_history",
    "released_recipe",
    "train",
]

_HOMES = {
    "checkpoint": ("CheckpointError",),
    "coder": ("SpikeCoder", "fit"),
    "encoding": ("encode",),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "evaluation.readout": ("Readout",),
    "fields": ("ConfigError",),
    "interop.accelerated.accelerate": ("AccelerationWarning", "accelerate", "deaccelerate"),
    "models.cell": ("IPVAECell",),
    "models.amortised": ("GVAE", "PVAE", "AmortisedVAE"),
    "models.base": ("VAE",),
    "models.config": (
        "AmortisedConfig",
        "GVAEConfig",
        "IGVAEConfig",
        "IPVAEConfig",
        "ModelConfig",
        "PVAEConfig",
        "VAEConfig",
    ),
    "models.config_hybrid": ("IAGVAEConfig", "IAPVAEConfig", "SAGVAEConfig", "SAPVAEConfig"),
    "models.gaussian": ("IGVAE",),
    "models.hybrid": ("IAGVAE", "IAPVAE", "SAGVAE", "SAPVAE", "HybridVAE"),
    "models.config_hierarchical": ("HIPVAEConfig",),
    "models.config_lca": ("LCAConfig",),
    "models.hierarchical": ("HIPVAE",),
    "models.iterative": ("IterativeVAE",),
    "models.lca": ("LCA",),
    "models.poisson": ("IPVAE",),
    "models.registry": ("build_model", "load_model"),
    "stream": ("Stream", "StreamEnded"),
    "training.config": ("TrainConfig",),
    "training.history": ("read_history",),
    "training.module": ("Training",),
    "training.outcome": ("TrainingError",),
    "training.recipes": ("released_recipe",),
    "training.run": ("TrainResult", "train"),
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
