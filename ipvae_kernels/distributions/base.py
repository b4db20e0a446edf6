"""What the laws share: a rate in either form, hard counts, their moments and divergences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions import Poisson as TorchPoisson
from torch.distributions.kl import register_kl
from torch.distributions.utils import lazy_property
from typing_extensions import Self

from .. import checks
from ..poisson.divergence import kl
from ..poisson.noise import rate_of
from ..poisson.op import poisson_sample
from ..poisson.rates import log_rate_of, one_form

Shape = Sequence[int] | int | None


class PoissonLaw(Distribution):
    """What both classes share: the rate in either form, hard counts, mean and variance, the source of seeds.

    Attributes:
        log_rate: u, [...].
        rate: exp(u) + 1.1920929e-07, which is what is drawn from; or as given.
        generator: that of the seeds, or None.
    """

    arg_constraints = {"log_rate": constraints.real, "rate": constraints.nonnegative}  # noqa: RUF012
    has_rsample = True

    def __init__(
        self,
        log_rate: Tensor | None,
        rate: Tensor | None,
        temp: float | Tensor,
        generator: torch.Generator | None,
        validate_args: bool | None,
    ) -> None:
        form, given = one_form(log_rate, rate)
        setattr(self, form, given)
        checks.number("temp", temp, 0.0)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator: expected a torch.Generator or None, found {type(generator).__name__}"
            )
        self.temp, self.generator = temp, generator
        super().__init__(given.shape, validate_args=validate_args)

    @lazy_property
    def log_rate(self) -> Tensor:
        """u, of the rate given."""
        return log_rate_of(self.rate)

    @lazy_property
    def rate(self) -> Tensor:
        """Of the log rate given."""
        return rate_of(self.log_rate)

    @property
    def mean(self) -> Tensor:
        """That of the hard counts, the rate."""
        return self.rate

    @property
    def variance(self) -> Tensor:
        """That of the hard counts, the rate; relaxed ones have a smaller one."""
        return self.rate

    @torch.no_grad()
    def sample(self, sample_shape: Shape = None, n_samples: int | None = None) -> Tensor:
        """Hard counts, ``[*sample_shape, *batch_shape]``, of the dtype of the rates; no gradient.

        Args:
            sample_shape: how many, a shape or a number; None: one.
            n_samples: the same by the name that the authors' code has for it.
        """
        log_rate = self.wide(sample_shape_of(sample_shape, n_samples))
        return poisson_sample(log_rate, seed=self.seed(), check=self.checked)

    def wide(self, sample_shape: torch.Size) -> Tensor:
        """Log rates, ``[*sample_shape, *batch_shape]``."""
        if not sample_shape:
            return self.log_rate
        return self.log_rate.expand(sample_shape + self.batch_shape)

    def largest_rate(self) -> float:
        """The largest rate; 0 of none."""
        if not self.batch_shape.numel():
            return 0.0
        if "rate" in self.__dict__:
            return float(self.rate.detach().max())
        return float(rate_of(self.log_rate.detach().max()))  # without the exponentials of all the others

    def seed(self) -> Tensor:
        """A seed for one draw, int64 [], on the device of the rates."""
        return checks.seed(None, self.log_rate.device, self.generator)

    @property
    def temperature(self) -> float:
        """The number in ``temp``."""
        return checks.number("temp", self.temp, 0.0)

    @property
    def checked(self) -> bool:
        """Whether numbers are looked at."""
        return bool(self._validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        """The same law for each element of a larger batch."""
        new = self._get_checked_instance(type(self), _instance)  # type: ignore[no-untyped-call]
        own = dict(self.__dict__)
        for name in ("log_rate", "rate"):
            if name in own:
                own[name] = own[name].expand(batch_shape)
        new.__dict__.update(own)
        new._batch_shape = torch.Size(batch_shape)
        return cast(Self, new)


def sample_shape_of(sample_shape: Shape = None, n_samples: int | None = None) -> torch.Size:
    """A shape of torch's, or the number of samples of the authors' code."""
    if n_samples is not None:
        if sample_shape is not None:
            raise TypeError(f"n_samples: expected None beside sample_shape, found {n_samples!r}")
        return torch.Size([checks.integer("n_samples", n_samples, 0, 2**62)])
    if sample_shape is None:
        return torch.Size()
    if isinstance(sample_shape, Sequence):
        return torch.Size([checks.integer("sample_shape", n, 0, 2**62) for n in sample_shape])
    return torch.Size([checks.integer("sample_shape", sample_shape, 0, 2**62)])


def _kl(p: PoissonLaw | TorchPoisson, q: PoissonLaw | TorchPoisson) -> Tensor:
    return kl(log_rate_of(p.rate, 0.0), log_rate_of(q.rate, 0.0), "exact")


for pair in ((PoissonLaw, PoissonLaw), (PoissonLaw, TorchPoisson), (TorchPoisson, PoissonLaw)):
    register_kl(*pair)(_kl)  # type: ignore[no-untyped-call]
