"""Configuration of the locally competitive algorithm; see `ipvae.models.lca`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..fields import ConfigError, choice, integer, number
from .config import Description, VAEConfig, Variant

_MOST_STEPS = 2**28


@dataclass(frozen=True)
class LCAConfig(VAEConfig):
    """The locally competitive algorithm (LCA), sparse coding by a network without spikes.

    It has the fields of `VAEConfig`, with a linear decoder, and:

    Attributes:
        penalty: lambda, the threshold of the potentials and the weight of the penalty; > 0. Features have
            length 1, so it is in units of the inputs.
        threshold: "soft" (an L1 penalty), or "hard" (the number of active neurons).
        tau: time constant of the potentials, in steps; at least 1. Too small for a coherent dictionary, and
            the potentials oscillate.
        t_train: steps of inference in a training update.
        seed: of the initial dictionary.
    """

    penalty: float = field(default=0.25, kw_only=True)
    threshold: Literal["soft", "hard"] = field(default="soft", kw_only=True)
    tau: float = field(default=20.0, kw_only=True)
    t_train: int = field(default=100, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    described = Description(
        "sparse-coding",
        "a network of sparse coding (the locally competitive algorithm of Rozell et al. 2008)",
        "Codes are analog and sparse, by local competition; nothing is random, and there is no likelihood.",
    )
    cell = "lca"
    variants = {  # noqa: RUF012
        "lca": Variant("sparse coding: analog, deterministic, an L1 penalty"),
        "lca-hard": Variant("the same with a hard threshold", {"threshold": "hard"}),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder != "linear":
            raise ConfigError(f"decoder: expected 'linear' for an LCA, found {self.decoder!r}")
        choice(self, "threshold", ("soft", "hard"))
        number(self, "penalty", low=0.0, open_low=True)
        number(self, "tau", low=1.0)
        integer(self, "t_train", low=1, high=_MOST_STEPS)
        integer(self, "seed", low=-(2**63), high=2**63 - 1)
