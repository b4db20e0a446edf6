"""Counts and relaxed counts from log rates, and what else is known of Poisson laws."""

from .arrivals import arrivals_quantile
from .divergence import poisson_kl
from .op import poisson_rsample, poisson_sample

__all__ = ["arrivals_quantile", "poisson_kl", "poisson_rsample", "poisson_sample"]
