"""Gumbel-softmax over the counts below a bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from .. import checks
from ..philox import KIND_ALONE, Stream
from ..poisson.arrivals import N_EXP_TAIL, arrivals_quantile
from ..poisson.noise import RATE_FLOOR, PhiloxNoise
from ..poisson.op import ARRIVALS_KEPT_MAX, rows_of
from ..poisson.relaxation import count_logits
from .base import PoissonLaw, Shape, sample_shape_of

UPPERBOUND_METHODS = ("fixed", "std_ratio", "quantile")


class GumbelSoftmaxPoisson(PoissonLaw):
    """Poisson counts below a bound as a relaxed choice among them, by Gumbel-softmax.

    As in the authors' code `rsample` and `log_prob` are of the weights of the counts 0 .. upperbound - 1, a
    point of the simplex, and so is ``event_shape``; `aggregate_samples` makes a count of it, while `sample`
    draws hard counts themselves, ``[*sample_shape, *batch_shape]``, without the bound; `mean` and `variance`
    are theirs. At temp = 0 `rsample` gives one weight of 1, so that shapes do not depend on the temperature;
    there the authors' code gives hard counts.

    Args:
        log_rate: u, [...], float32 or float64; its last dimension indexes neurons.
        temp: temperature, >= 0.
        upperbound_method: "fixed": ``upperbound_param`` counts; "std_ratio": so many times the standard
            deviation of the largest rate; "quantile": up to where that rate leaves a tail of
            ``upperbound_param``.
        upperbound_param: what the method takes, above 0.
        rate: the rates themselves, >= 0, in place of ``log_rate``.
        generator: draws the seed of each draw; None: torch's default generator does.
        validate_args: look for arguments and samples that are out of their range; None: torch's default.

    Attributes:
        log_rate: u.
        rate: exp(u) + 1.1920929e-07, or as given.
        temp: as given, and so are ``upperbound_method`` and ``upperbound_param``.
        upperbound: how many counts, at least 1.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """

    support = constraints.simplex

    def __init__(
        self,
        log_rate: Tensor | None = None,
        temp: float | Tensor = 1.0,
        upperbound_method: str = "quantile",
        upperbound_param: float = N_EXP_TAIL,
        *,
        rate: Tensor | None = None,
        generator: torch.Generator | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(log_rate, rate, temp, generator, validate_args)
        self.upperbound_method = checks.choice("upperbound_method", upperbound_method, UPPERBOUND_METHODS)
        self.upperbound_param = checks.number("upperbound_param", upperbound_param, 0.0, above=True)
        self.upperbound = self._upperbound()
        self._event_shape = torch.Size([self.upperbound])

    def _upperbound(self) -> int:
        if self.upperbound_method == "fixed":
            bound = int(self.upperbound_param)
        elif self.upperbound_method == "std_ratio":
            bound = int(self.largest_rate() ** 0.5 * self.upperbound_param)
        else:
            bound = arrivals_quantile(max(self.largest_rate(), RATE_FLOOR), self.upperbound_param)
        return checks.integer("upperbound", max(1, bound), 1, ARRIVALS_KEPT_MAX)

    @property
    def logit_pi(self) -> Tensor:
        """Log probabilities of the counts, up to a constant, ``[*batch_shape, upperbound]``."""
        return count_logits(self.log_rate, self.upperbound)

    def rsample(self, sample_shape: Shape = None, n_samples: int | None = None) -> Tensor:
        """Weights of the counts, ``[*sample_shape, *batch_shape, upperbound]``, differentiable in the rate.

        Noise and weights are those of :func:`ipvae_kernels.poisson_rsample` with estimator="gumbel".

        Args:
            sample_shape: how many, a shape or a number; None: one.
            n_samples: the same by the name that the authors' code has for it.
        """
        log_rate = self.wide(sample_shape_of(sample_shape, n_samples))
        if self.checked:
            checks.finite(log_rate=log_rate)
        gumbel = PhiloxNoise(self.seed()).gumbel(rows_of(log_rate), self.upperbound, Stream(KIND_ALONE))
        scores = count_logits(log_rate, self.upperbound) + gumbel.view(*log_rate.shape, self.upperbound)
        if self.temperature > 0.0:
            return torch.softmax(scores / self.temperature, dim=-1)
        chosen = torch.nn.functional.one_hot(scores.argmax(-1), self.upperbound)
        return chosen.to(log_rate.dtype)

    def aggregate_samples(self, gumbel_samples: Tensor) -> Tensor:
        """Counts of weights: [..., upperbound] to [...].

        Raises:
            ValueError: the last dimension is another.
        """
        if gumbel_samples.dim() == 0 or gumbel_samples.shape[-1] != self.upperbound:
            raise ValueError(
                f"gumbel_samples: expected shape [..., {self.upperbound}], found {list(gumbel_samples.shape)}"
            )
        counts = torch.arange(self.upperbound, dtype=gumbel_samples.dtype, device=gumbel_samples.device)
        return gumbel_samples @ counts

    def log_prob(self, value: Tensor, eps: float = 1e-8) -> Tensor:
        """Log density of weights [..., upperbound] on the simplex.

        Args:
            value: the weights.
            eps: weights and temperature below it count as that.
        """
        if self._validate_args:
            self._validate_sample(value)
        tau, n = max(self.temperature, eps), self.upperbound
        log_value = value.clamp(min=eps).log()
        # Maddison, Mnih and Teh 2017, eq. 10. Torch's RelaxedOneHotCategorical fails for an empty batch.
        scores = torch.log_softmax(self.logit_pi - tau * log_value, dim=-1)
        return (scores - log_value).sum(-1) + math.lgamma(n) + (n - 1) * math.log(tau)
