"""Counts and relaxed counts from log rates."""

from .op import poisson_rsample, poisson_sample

__all__ = ["poisson_rsample", "poisson_sample"]
