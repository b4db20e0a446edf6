"""What a model is, checked when written down: `ModelConfig`, and a configuration for each family of models.

The defaults train whitened patches and images in [0, 1] in a run of minutes (docs/design/training.md,
"Defaults"); `ipvae.released_recipe` gives the authors' settings, for runs of hours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from typing_extensions import Self

from ..fields import ConfigError, as_python, choice, from_dict, integer, is_int, is_number, number

Kl = Literal["exact", "released"]
Activation = Literal["identity", "relu"]
ESTIMATORS = ("sigmoid", "linear", "cubic", "quintic", "cosine", "fini2", "fini3", "gumbel", "hard")
# Sizes of a model: the product of two, in bytes, does not overflow.
_MODEL_SIZE_MAX = 2**28


@dataclass(frozen=True)
class ModelConfig:
    """What iterative models with a linear decoder share; you make that of a family, such as `IPVAEConfig`.

    Attributes:
        n_inputs: M, pixels of one input.
        n_latents: K, neurons.
        input_shape: shape of one input, product M; None stands for ``(n_inputs,)``.
        t_train: T, inference steps unrolled in training.
        n_inner: updates within one step (1 in the paper).
        beta_inner: weight of the leak, used only where ``n_inner > 1``.
        clamp_u: final soft clamp of each number of the state; None: the default of the family.
        clamp_du: final soft clamp of one update; None: the default of the family.
        kl: "exact", or "released": exp(u - u_prior) times that, to which the published betas belong.
        fit_prior: whether the initial state, the prior of the first step, is learned.
        init_scale: standard deviation of the initial dictionary.
        init_log_bias: initial log bias.
        seed: of the initial weights.
    """

    n_inputs: int
    n_latents: int = 512
    input_shape: tuple[int, ...] | None = None
    t_train: int = 16
    n_inner: int = 1
    beta_inner: float = 1.0
    clamp_u: float | tuple[float, ...] | None = None
    clamp_du: float | tuple[float, ...] | None = None
    kl: Kl = "exact"
    fit_prior: bool = True
    init_scale: float = 1e-4
    init_log_bias: float = -3.0
    seed: int = 0

    cell: ClassVar[str]
    """Name of the family in the registry, in files and of ``ipvae train --cell``; no two have the same."""
    clamps: ClassVar[Mapping[str, tuple[float, ...]]]
    """Defaults of ``clamp_u`` and ``clamp_du``, for each number of the state."""

    def __post_init__(self) -> None:
        if type(self) is ModelConfig:
            raise ConfigError("ModelConfig: expected the configuration of a family, such as IPVAEConfig")
        as_python(self)
        for name in ("n_inputs", "n_latents", "t_train"):
            integer(self, name, low=1, high=_MODEL_SIZE_MAX)
        integer(self, "n_inner", low=1, high=256)
        integer(self, "seed", low=-(2**63), high=2**63 - 1)
        for name in ("beta_inner", "init_scale"):
            number(self, name, low=0.0)
        number(self, "init_log_bias")
        choice(self, "kl", ("exact", "released"))
        if not isinstance(self.fit_prior, bool):
            raise ConfigError(f"fit_prior: expected true or false, found {self.fit_prior!r}")
        self._check_input_shape()
        self._check_clamps()

    def _check_input_shape(self) -> None:
        shape = (self.n_inputs,) if self.input_shape is None else self.input_shape
        if not isinstance(shape, (tuple, list)) or not all(is_int(n) and n >= 1 for n in shape):
            raise ConfigError(f"input_shape: expected positive integers, found {self.input_shape!r}")
        if math.prod(shape) != self.n_inputs:
            raise ConfigError(f"input_shape: expected a product of {self.n_inputs}, found {tuple(shape)}")
        if len(shape) == 2 and shape[0] == 1:
            raise ConfigError(
                f"input_shape: expected ({self.n_inputs},), found {tuple(shape)}, which reads like a batch"
            )
        object.__setattr__(self, "input_shape", tuple(shape))

    def _check_clamps(self) -> None:
        for name, default in self.clamps.items():
            value = getattr(self, name)
            given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            clamps = default if value is None else given
            if len(clamps) != len(default) or not all(is_number(c) and c > 0 for c in clamps):
                what = "a positive number" if len(default) == 1 else "two positive numbers (mean, log sigma)"
                raise ConfigError(f"{name}: expected {what}, found {value!r}")
            clamps = tuple(float(c) for c in clamps)
            object.__setattr__(self, name, clamps[0] if len(clamps) == 1 else clamps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return cast("tuple[int, ...]", self.input_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON and `from_dict`, with the cell."""
        return {"cell": self.cell, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: for another cell, a key that is unknown or missing, or a value that cannot work.
        """
        if isinstance(values, dict) and "cell" in values:
            values = dict(values)
            if (cell := values.pop("cell")) != cls.cell:
                raise ConfigError(f"cell: expected {cls.cell!r} for {cls.__name__}, found {cell!r}")
        return from_dict(cls, values)


@dataclass(frozen=True)
class IPVAEConfig(ModelConfig):
    """An iterative Poisson VAE (iP-VAE): spiking.

    It has the fields of `ModelConfig`, and:

    Attributes:
        clamp_u: default 6 (403 spikes a step at most); the released code has 10.
        clamp_du: default 10.
        estimator: gradient of counts in training; "fini2" trains on whole spikes and has no temperature,
            "sigmoid" is what the authors trained with.
        n_arrivals: arrivals kept by the estimator: None (all), a number, or "released" (their quantile rule).
        init_log_rate: bounds of the uniform initial log rates: about a spike a step. The released code starts
            nearly silent, (-6, -4), and needs hours to recover.
    """

    estimator: str = "fini2"
    n_arrivals: int | Literal["released"] | None = None
    init_log_rate: tuple[float, float] = (-0.5, 0.5)

    cell = "poisson"
    clamps = {"clamp_u": (6.0,), "clamp_du": (10.0,)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "estimator", ESTIMATORS)
        if self.n_arrivals is not None and self.n_arrivals != "released":
            integer(self, "n_arrivals", low=1)
        bounds = self.init_log_rate
        if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(is_number, bounds))):
            raise ConfigError(f"init_log_rate: expected two numbers (low, high), found {bounds!r}")
        low, high = float(bounds[0]), float(bounds[1])
        if not -8.0 <= low <= high <= 6.0:
            raise ConfigError(f"init_log_rate: expected -8 <= low <= high <= 6, found ({low}, {high})")
        object.__setattr__(self, "init_log_rate", (low, high))


@dataclass(frozen=True)
class IGVAEConfig(ModelConfig):
    """Its Gaussian relative (iG-VAE, or iG-relu-VAE); states start at 0.

    It has the fields of `ModelConfig`, and:

    Attributes:
        clamp_u: of mean and log sigma, default (7, 2).
        clamp_du: default (7, 3).
        activation: "identity", or "relu", with a learned gain per neuron, as released.
    """

    activation: Activation = "identity"

    cell = "gaussian"
    clamps = {"clamp_u": (7.0, 2.0), "clamp_du": (7.0, 3.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "activation", ("identity", "relu"))
