"""Configuration of the hierarchical iterative Poisson VAE; see `ipvae.models.hierarchical`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..fields import ConfigError, integer, is_int, number
from .config import Description, VAEConfig, Variant, check_counts

_MOST = 2**28


@dataclass(frozen=True)
class HIPVAEConfig(VAEConfig):
    """A hierarchical iterative Poisson VAE.

    It has the fields of `VAEConfig`, ``n_latents`` and ``decoder`` being those of the lowest layer, and:

    Attributes:
        upper_latents: neurons of the layers above, from below to the top.
        t_train: T, steps unrolled in training.
        clamp_u: soft ceiling of the log rates.
        clamp_du: soft ceiling of their updates.
        estimator: as in `IPVAEConfig`.
        n_arrivals: arrivals kept by the estimator; None: all.
        init_log_rate: bounds of the uniform initial log rates.
        init_share: of a lower layer's prior that comes from above, at the start; in (0, 1), learned.
        init_scale: standard deviation of the initial dictionary; of another decoder, of its last layer.
        init_upper_scale: of the weights from one layer to the next below.
        init_log_bias: initial log bias.
        fit_prior: whether the initial log rates are learned.
        seed: of the initial weights.
    """

    upper_latents: tuple[int, ...] = field(default=(64,), kw_only=True)
    t_train: int = field(default=16, kw_only=True)
    clamp_u: float = field(default=6.0, kw_only=True)
    clamp_du: float = field(default=10.0, kw_only=True)
    estimator: str = field(default="fini2", kw_only=True)
    n_arrivals: int | None = field(default=None, kw_only=True)
    init_log_rate: tuple[float, float] = field(default=(-0.5, 0.5), kw_only=True)
    init_share: float = field(default=0.05, kw_only=True)
    init_scale: float = field(default=1e-4, kw_only=True)
    init_upper_scale: float = field(default=0.01, kw_only=True)
    init_log_bias: float = field(default=-3.0, kw_only=True)
    fit_prior: bool = field(default=True, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    described = Description(
        "iterative-vae",
        'a hierarchical iterative Poisson VAE (after ["Brain-like variational inference"]'
        "(https://arxiv.org/abs/2410.19315))",
        "Layers of spiking neurons predict those below; codes are those of the lowest, without an encoder.",
    )
    cell = "hip-vae"
    variants = {  # noqa: RUF012
        "hip-vae": Variant("iterative, spikes, two layers and more: the upper predicts the lower")
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        upper = self.upper_latents
        if not (
            isinstance(upper, (tuple, list)) and upper and all(is_int(n) and 1 <= n <= _MOST for n in upper)
        ):
            raise ConfigError(f"upper_latents: expected positive integers, one at least, found {upper!r}")
        object.__setattr__(self, "upper_latents", tuple(upper))
        check_counts(self)
        integer(self, "t_train", low=1, high=_MOST)
        integer(self, "seed", low=-(2**63), high=2**63 - 1)
        for name in ("clamp_u", "clamp_du"):
            number(self, name, low=0.0, open_low=True)
        for name in ("init_scale", "init_upper_scale"):
            number(self, name, low=0.0)
        number(self, "init_log_bias")
        number(self, "init_share", low=0.0, high=1.0, open_low=True)
        if self.init_share == 1.0:
            raise ConfigError("init_share: expected a number below 1, found 1.0")
        if not isinstance(self.fit_prior, bool):
            raise ConfigError(f"fit_prior: expected true or false, found {self.fit_prior!r}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Neurons of all layers, from below to the top."""
        return (self.n_latents, *self.upper_latents)
