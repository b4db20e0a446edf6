"""Relaxed counts of exponential arrival times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import lazy_property

from .. import checks
from ..poisson.arrivals import N_EXP_TAIL, arrivals_quantile, tail_probability
from ..poisson.estimators import ESTIMATORS
from ..poisson.noise import RATE_FLOOR
from ..poisson.op import ARRIVALS_KEPT_MAX, poisson_rsample
from ..update.eager import soft_clamp
from .base import PoissonLaw, Shape, sample_shape_of

INDICATORS = tuple(name for name, estimator in ESTIMATORS.items() if estimator.half_width is not None)


class EATPoisson(PoissonLaw):
    """Counts of the exponential arrival times that fall before time 1, softly: relaxed Poisson counts.

    A relaxed count is z = sum_i f((1 - t_i) / temp) over arrival times t_i of a Poisson process. Draws are
    those of :func:`ipvae_kernels.poisson_rsample`: arrivals that are surely counted are drawn as one number,
    and ``n_exp`` costs nothing.

    `mean`, `variance`, `log_prob` and `kl_divergence` are of the Poisson law of that rate, from which
    `sample` draws. The mean of relaxed counts is the same as long as temp <= 1 and f is not "sigmoid", but
    for what ``n_exp`` cuts; their variance is smaller.

    Args:
        log_rate: u, [...], float32 or float64; its last dimension indexes neurons.
        temp: temperature, >= 0, a number or a tensor of shape []; at 0 samples are hard, without a gradient.
        indicator_approx: f: "sigmoid", "linear", "cubic", "quintic" or "cosine".
        n_exp: keep the first n arrivals; "infer": their ``n_exp_p`` quantile at the largest rate, found when
            it is first needed; None keeps all.
        n_exp_p: probability, at the largest rate, of more arrivals than are kept.
        clamp: soft upper clamp c - softplus(c - u) of the log rate; None: none.
        rate: the rates themselves, >= 0, in place of ``log_rate``.
        generator: draws the seed of each draw; None: torch's default generator does.
        validate_args: look for arguments and samples that are out of their range; None: torch's default.

    Attributes:
        log_rate: u, clamped.
        rate: exp(u) + 1.1920929e-07, or as given.
        temp: as given.
        n_exp: how many arrivals are kept, or None.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> q = EATPoisson(log_rate, temp=0.1)
        >>> z = q.rsample()
        >>> nats = torch.distributions.kl_divergence(q, EATPoisson(log_rate_prior))
    """

    def __init__(
        self,
        log_rate: Tensor | None = None,
        temp: float | Tensor = 0.0,
        indicator_approx: str = "cubic",
        n_exp: int | Tensor | str | None = "infer",
        n_exp_p: float = N_EXP_TAIL,
        *,
        clamp: float | None = None,
        rate: Tensor | None = None,
        generator: torch.Generator | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(log_rate, rate, temp, generator, validate_args)
        self.indicator_approx = checks.choice("indicator_approx", indicator_approx, INDICATORS)
        if clamp is not None:
            if rate is not None:
                raise ValueError(f"clamp: expected None beside rate, found {clamp}; it is of log rates")
            self.log_rate = soft_clamp(self.log_rate, checks.number("clamp", clamp))
        self.clamp = clamp
        self.n_exp_p = tail_probability("n_exp_p", n_exp_p)
        if isinstance(n_exp, str):
            checks.choice("n_exp", n_exp, ("infer",))
        else:
            self.n_exp = None if n_exp is None else checks.integer("n_exp", n_exp, 1, ARRIVALS_KEPT_MAX)

    @lazy_property
    def n_exp(self) -> int | None:
        """The number of arrivals kept, of the largest rate."""
        n = arrivals_quantile(max(self.largest_rate(), RATE_FLOOR), self.n_exp_p)
        return checks.integer("n_exp", n, 1, ARRIVALS_KEPT_MAX)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        """Whole numbers at temperature 0, else all that are not negative."""
        return constraints.nonnegative if self.temperature > 0.0 else constraints.nonnegative_integer

    def rsample(self, sample_shape: Shape = None) -> Tensor:
        """Relaxed counts, ``[*sample_shape, *batch_shape]``, differentiable in the rate."""
        sample_shape = sample_shape_of(sample_shape)
        if self.temperature == 0.0:
            return self.sample(sample_shape)
        return poisson_rsample(
            self.wide(sample_shape), estimator=self.indicator_approx, temperature=self.temperature,
            n_arrivals=self.n_exp, seed=self.seed(), check=self.checked,
        )  # fmt: skip

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the Poisson probability of counts [...]; of relaxed ones with n! as a Gamma function."""
        if self._validate_args:
            self._validate_sample(value)
        return value * torch.log(self.rate) - self.rate - torch.lgamma(value + 1.0)
