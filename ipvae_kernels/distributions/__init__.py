"""Poisson laws with relaxed samples, as `torch.distributions` has them.

Constructors and attributes are those of the code of "A hitchhiker's guide to Poisson gradient estimation"
(PoissonGradientEstimation) and of the Poisson VAE (PoissonVAE, arXiv 2405.14473), which change one import:

    from ipvae_kernels.distributions import Poisson
"""

from .arrival_times import EATPoisson
from .gumbel import GumbelSoftmaxPoisson

__all__ = ["EATPoisson", "GumbelSoftmaxPoisson", "Poisson"]

Poisson = EATPoisson
