"""Fast ops of the iterative Poisson VAE ("Brain-like variational inference", arXiv 2410.19315)."""

from ._backends import BackendError, backends, use_backend
from .graphs import warmup
from .params import GaussianParams, PoissonParams, State, StepParams
from .poisson import poisson_rsample, poisson_sample
from .rollout import ElboResult, InferResult, Interrupted, elbo, infer
from .selftest import Check, self_test
from .update import log_rate_update

__all__ = [
    "BackendError",
    "Check",
    "ElboResult",
    "GaussianParams",
    "InferResult",
    "Interrupted",
    "PoissonParams",
    "State",
    "StepParams",
    "backends",
    "elbo",
    "infer",
    "log_rate_update",
    "poisson_rsample",
    "poisson_sample",
    "self_test",
    "use_backend",
    "warmup",
]
