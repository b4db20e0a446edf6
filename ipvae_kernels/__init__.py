"""Fast ops of the iterative Poisson VAE ("Brain-like variational inference", arXiv 2410.19315)."""

from importlib import metadata
from typing import Any

from ._backends import BackendError, BackendWarning, backends, use_backend
from .params import GaussianParams, PoissonParams, State, StepParams
from .poisson import poisson_rsample, poisson_sample
from .rollout import ElboResult, InferResult, elbo, infer
from .update import log_rate_update

__all__ = [
    "BackendError",
    "BackendWarning",
    "ElboResult",
    "GaussianParams",
    "InferResult",
    "PoissonParams",
    "State",
    "StepParams",
    "backends",
    "elbo",
    "infer",
    "log_rate_update",
    "poisson_rsample",
    "poisson_sample",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # read when asked for: a look at the installed metadata takes a millisecond
        return metadata.version("ipvae-kernels")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
