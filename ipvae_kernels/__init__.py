"""Fast ops of the iterative Poisson VAE ("Brain-like variational inference", arXiv 2410.19315)."""

from importlib import metadata
from typing import Any

from .backend.choice import BackendError, BackendWarning, backends, use_backend
from .graphs import warmup
from .params import GaussianParams, PoissonParams, State, StepParams
from .poisson import arrivals_quantile, poisson_kl, poisson_rsample, poisson_sample
from .rollout import (
    Decoded,
    Decoder,
    ElboResult,
    Estimate,
    InferResult,
    Interrupted,
    LinearDecoder,
    Prepared,
    StepResult,
    elbo,
    estimate,
    infer,
    prepare,
    step,
)
from .selftest import Check, self_test
from .update import log_rate_update

__all__ = [
    "BackendError",
    "BackendWarning",
    "Check",
    "Decoded",
    "Decoder",
    "ElboResult",
    "Estimate",
    "GaussianParams",
    "InferResult",
    "Interrupted",
    "LinearDecoder",
    "PoissonParams",
    "Prepared",
    "State",
    "StepParams",
    "StepResult",
    "arrivals_quantile",
    "backends",
    "elbo",
    "estimate",
    "infer",
    "log_rate_update",
    "poisson_kl",
    "poisson_rsample",
    "poisson_sample",
    "prepare",
    "self_test",
    "step",
    "use_backend",
    "warmup",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # read when asked for: a look at the installed metadata takes a millisecond
        return metadata.version("ipvae-kernels")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
