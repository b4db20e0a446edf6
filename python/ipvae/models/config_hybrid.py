"""Configurations of the hybrids between amortised and iterative inference; see `ipvae.models.hybrid`."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..fields import integer, number
from .config import AmortisedConfig, CountsConfig, Description, FixedPriorConfig, NormalsConfig, Variant

_MOST_UNITS = 2**28


@dataclass(frozen=True)
class SemiAmortisedConfig(AmortisedConfig):
    """What semi-amortised models share; you make that of a family, such as `SAPVAEConfig`.

    It has the fields of `AmortisedConfig`, and, with iterations and momentum of the original
    ("Semi-amortized variational autoencoders", arXiv 1802.02550) as defaults:

    Attributes:
        t_train: T, iterations after the encoder in training.
        step_size: of an iteration, at the start: it is learned, as in the iterative models. The original
            keeps it at 1, for plain gradients; a natural gradient of that size overshoots (docs/models.md).
        momentum: of the iterations, 0 to 1.
        beta_inner: weight of the KL in what the iterations descend.
    """

    t_train: int = field(default=20, kw_only=True)
    step_size: float = field(default=0.1, kw_only=True)
    momentum: float = field(default=0.5, kw_only=True)
    beta_inner: float = field(default=1.0, kw_only=True)

    described = Description(
        "hybrid-vae",
        'a semi-amortised VAE (after ["Semi-amortized variational autoencoders"]'
        "(https://arxiv.org/abs/1802.02550))",
        "An encoder's first guess is refined by steps of gradient descent on the free energy.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self, "t_train", low=1, high=_MOST_UNITS)
        number(self, "step_size", low=0.0, open_low=True)
        number(self, "momentum", low=0.0, high=1.0)
        number(self, "beta_inner", low=0.0)


@dataclass(frozen=True)
class IterativelyAmortisedConfig(FixedPriorConfig):
    """What iteratively amortised models share; you make that of a family, such as `IAPVAEConfig`.

    It has the fields of `FixedPriorConfig`, and, with the numbers of the original ("Iterative amortized
    inference", arXiv 1807.09356) as defaults:

    Attributes:
        t_train: T, iterations in training.
        updater_width: units of each of the two hidden layers of the network that updates.
    """

    t_train: int = field(default=5, kw_only=True)
    updater_width: int = field(default=512, kw_only=True)

    described = Description(
        "hybrid-vae",
        'an iteratively amortised VAE (after ["Iterative amortized inference"]'
        "(https://arxiv.org/abs/1807.09356))",
        "A network turns gradients of the free energy into updates of the codes.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("t_train", "updater_width"):
            integer(self, name, low=1, high=_MOST_UNITS)


@dataclass(frozen=True)
class SAPVAEConfig(CountsConfig, SemiAmortisedConfig):
    """A semi-amortised Poisson VAE.

    It has the fields of `SemiAmortisedConfig` and of `CountsConfig`.
    """

    cell = "sa-p-vae"
    variants = {  # noqa: RUF012
        "sa-p-vae": Variant("an encoder's guess, refined by T gradient steps, spikes")
    }


@dataclass(frozen=True)
class SAGVAEConfig(NormalsConfig, SemiAmortisedConfig):
    """The semi-amortised VAE, with normal latents, or rectified ones.

    It has the fields of `SemiAmortisedConfig` and of `NormalsConfig`.
    """

    cell = "sa-g-vae"
    variants = {  # noqa: RUF012
        "sa-g-vae": Variant("the same, normal latents: the SA-VAE")
    }


@dataclass(frozen=True)
class IAPVAEConfig(CountsConfig, IterativelyAmortisedConfig):
    """An iteratively amortised Poisson VAE.

    It has the fields of `IterativelyAmortisedConfig` and of `CountsConfig`.
    """

    cell = "ia-p-vae"
    variants = {  # noqa: RUF012
        "ia-p-vae": Variant("a learned network turns gradients into updates, spikes")
    }


@dataclass(frozen=True)
class IAGVAEConfig(NormalsConfig, IterativelyAmortisedConfig):
    """The iteratively amortised VAE, with normal latents, or rectified ones.

    It has the fields of `IterativelyAmortisedConfig` and of `NormalsConfig`.
    """

    cell = "ia-g-vae"
    variants = {  # noqa: RUF012
        "ia-g-vae": Variant("the same, normal latents: the IA-VAE")
    }
