"""What a model is, checked when written down: `ModelConfig`, and a configuration for each family of models.

The defaults train whitened patches and images in [0, 1] in a run of minutes (docs/design/training.md,
"Defaults"); `ipvae.released_recipe` gives the authors' settings, for runs of hours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, cast

from typing_extensions import Self

from ..fields import ConfigError, as_python, choice, from_dict, integer, is_int, is_number, number

Kl = Literal["exact", "released"]
Activation = Literal["identity", "relu"]
ESTIMATORS = ("sigmoid", "linear", "cubic", "quintic", "cosine", "fini2", "fini3", "gumbel", "hard")
DRIVES = ("paper", "sampled", "expected")
# Later versions added these; a file or a run with what they are by default is that of the versions before.
ADDED = {"single_draw": False, "drive": "paper", "decay": 0.0}
# Likewise, but of where training starts alone: weights say the rest.
ADDED_STARTS = {"init_log_lr": 0.0}
# Sizes of a model: the product of two, in bytes, does not overflow.
_MODEL_SIZE_MAX = 2**28
OWN = "module"
"""Names a decoder or encoder that is the user's own `nn.Module`."""


class NetworkSpec(NamedTuple):
    """Defaults of a kind of decoder.

    Attributes:
        n_latents: neurons; the numbers of the released configuration (``main/config.py`` of the authors'
            code, which has them although it has no such decoders).
        width: hidden units of an MLP, channels of the last hidden layer of a convolutional one; 0: none.
    """

    n_latents: int
    width: int


DECODERS = {
    "linear": NetworkSpec(512, 0),
    "mlp": NetworkSpec(128, 256),
    "conv": NetworkSpec(64, 16),
    "deconv": NetworkSpec(32, 16),
    OWN: NetworkSpec(128, 0),
}
"""What ``decoder`` may be; see `ipvae.models.decoders`."""
ENCODERS = {"linear": 0, "mlp": 256, "conv": 16, OWN: 0}
"""What ``encoder`` may be, and its default width; see `ipvae.models.encoders`."""
OF_IMAGES = ("conv", "deconv")


class Variant(NamedTuple):
    """A model that the command line knows by a name of its own.

    Attributes:
        about: a line that helps to choose it.
        fields: of the configuration, that make the variant.
    """

    about: str
    fields: Mapping[str, Any] = {}


class Description(NamedTuple):
    """What a model card says of a family.

    Attributes:
        tag: of the Hub.
        kind: what it is, and where from; after "a model of ipvae, ".
        how: how it infers, a sentence.
    """

    tag: str
    kind: str
    how: str


@dataclass(frozen=True)
class VAEConfig:
    """What all families are told; you make that of a family, such as `IPVAEConfig`.

    Attributes:
        n_inputs: M, pixels of one input.
        n_latents: K, neurons; None: 512 with a linear decoder, 128 with an MLP, 64 with a convolutional one,
            32 with a transposed-convolutional one.
        input_shape: shape of one input, product M; None stands for ``(n_inputs,)``.
        decoder: "linear", "mlp", "conv", "deconv" (`ipvae.models.decoders` says what they are), or "module":
            the one that the model is given.
        decoder_width: hidden units of an MLP (default 256), channels of the last hidden layer of a
            convolutional one (16).
    """

    n_inputs: int
    n_latents: int = cast("int", None)
    input_shape: tuple[int, ...] | None = None
    decoder: str = field(default="linear", kw_only=True)
    decoder_width: int = field(default=cast("int", None), kw_only=True)

    cell: ClassVar[str]
    """Name of the family in the registry and in files; no two have the same."""
    described: ClassVar[Description] = Description("vae", "a VAE", "")
    variants: ClassVar[Mapping[str, Variant]] = {}
    """The family's models by the names of ``ipvae train --model``; empty: the family's own name."""

    def __post_init__(self) -> None:
        if not hasattr(type(self), "cell"):
            name = type(self).__name__
            raise ConfigError(f"{name}: expected the configuration of a family, such as IPVAEConfig")
        as_python(self)
        choice(self, "decoder", tuple(DECODERS))
        fill(self, "n_latents", DECODERS[self.decoder].n_latents)
        for name in ("n_inputs", "n_latents"):
            integer(self, name, low=1, high=_MODEL_SIZE_MAX)
        self._check_input_shape()
        check_network(self, "decoder", {kind: spec.width for kind, spec in DECODERS.items()})

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

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return cast("tuple[int, ...]", self.input_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON and `from_dict`, with the cell.

        Of a linear decoder they say nothing, nor of options that are off: files and runs are those of the
        versions that had no other.
        """
        values = dataclasses.asdict(self)
        added = ADDED | ADDED_STARTS
        values = {name: value for name, value in values.items() if name not in added or value != added[name]}
        if self.decoder == "linear":
            del values["decoder"], values["decoder_width"]
        return {"cell": self.cell, **values}

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


def fill(config: object, name: str, value: Any) -> None:
    """Sets a field that was left out."""
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)


def check_network(config: VAEConfig, name: str, widths: Mapping[str, int]) -> None:
    """Checks ``decoder`` or ``encoder``, and fills in its width.

    Raises:
        ConfigError: a width for what has none, or a convolution of inputs that are no images.
    """
    kind, width = getattr(config, name), f"{name}_width"
    if getattr(config, width) == 0:  # of a kind without, which `dataclasses.replace` made another of
        object.__setattr__(config, width, None)
    fill(config, width, widths[kind])
    if widths[kind]:
        integer(config, width, low=1, high=_MODEL_SIZE_MAX)
    elif getattr(config, width) != 0:
        found = getattr(config, width)
        raise ConfigError(f"{width}: expected None, a {kind!r} {name} has no width, found {found!r}")
    if kind in OF_IMAGES and len(config.shape) != 3:
        raise ConfigError(
            f"input_shape: expected (channels, height, width) for a {kind!r} {name}, found {config.shape}"
        )


def check_counts(config: object, words: tuple[str, ...] = ()) -> None:
    """Checks ``estimator``, ``n_arrivals`` (a number, None, or one of the words) and ``init_log_rate``."""
    choice(config, "estimator", ESTIMATORS)
    if (n_arrivals := getattr(config, "n_arrivals")) is not None and n_arrivals not in words:  # noqa: B009
        integer(config, "n_arrivals", low=1)
    bounds = getattr(config, "init_log_rate")  # noqa: B009
    if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(is_number, bounds))):
        raise ConfigError(f"init_log_rate: expected two numbers (low, high), found {bounds!r}")
    low, high = float(bounds[0]), float(bounds[1])
    if not -8.0 <= low <= high <= 6.0:
        raise ConfigError(f"init_log_rate: expected -8 <= low <= high <= 6, found ({low}, {high})")
    object.__setattr__(config, "init_log_rate", (low, high))


@dataclass(frozen=True)
class ModelConfig(VAEConfig):
    """What iterative models share; you make that of a family, such as `IPVAEConfig`.

    It has the fields of `VAEConfig`, and:

    Attributes:
        t_train: T, inference steps unrolled in training.
        n_inner: updates within one step (1 in the paper).
        beta_inner: weight of the leak, used only where ``n_inner > 1``.
        single_draw: the counts of one step's loss drive the next step's update: half the draws, and not the
            paper's rule.
        clamp_u: final soft clamp of each number of the state; None: the default of the family.
        clamp_du: final soft clamp of one update; None: the default of the family.
        kl: "exact", or "released": exp(u - u_prior) times that, to which the published betas belong.
        fit_prior: whether the initial state, the prior of the first step, is learned.
        init_scale: standard deviation of the initial dictionary; of another decoder, of its last layer.
        init_log_bias: initial log bias.
        init_log_lr: initial log step size, 0 in the paper; -3 for inputs of a length of 10 and more, where
            whole steps swing from the first on and none is learned from.
        seed: of the initial weights.
    """

    t_train: int = 16
    n_inner: int = 1
    beta_inner: float = 1.0
    single_draw: bool = field(default=False, kw_only=True)
    clamp_u: float | tuple[float, ...] | None = None
    clamp_du: float | tuple[float, ...] | None = None
    kl: Kl = "exact"
    fit_prior: bool = True
    init_scale: float = 1e-4
    init_log_bias: float = -3.0
    init_log_lr: float = field(default=0.0, kw_only=True)
    seed: int = 0

    described = Description(
        "iterative-vae",
        'an iterative VAE ([Vafaii, Galor and Yates, "Brain-like variational inference"]'
        "(https://arxiv.org/abs/2410.19315))",
        "Codes are inferred by gradient descent on the free energy, without an encoder.",
    )
    clamps: ClassVar[Mapping[str, tuple[float, ...]]]
    """Defaults of ``clamp_u`` and ``clamp_du``, for each number of the state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        integer(self, "t_train", low=1, high=_MODEL_SIZE_MAX)
        integer(self, "n_inner", low=1, high=256)
        integer(self, "seed", low=-(2**63), high=2**63 - 1)
        for name in ("beta_inner", "init_scale"):
            number(self, name, low=0.0)
        for name in ("init_log_bias", "init_log_lr"):
            number(self, name)
        choice(self, "kl", ("exact", "released"))
        for name in ("fit_prior", "single_draw"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: expected true or false, found {getattr(self, name)!r}")
        if self.single_draw and self.n_inner > 1:
            raise ConfigError(f"single_draw: expected n_inner = 1 with it, found {self.n_inner}")
        self._check_clamps()

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
        drive: what drives an update: "paper", the residual of counts; "expected", the exact natural gradient
            of the expected reconstruction, by rates; "sampled", the same by counts. The last two need the
            linear decoder; nobody has published them.
        decay: weight of a pull of every log rate towards 0: a leaky membrane; 0 in the paper.
    """

    estimator: str = "fini2"
    n_arrivals: int | Literal["released"] | None = None
    init_log_rate: tuple[float, float] = (-0.5, 0.5)
    drive: str = field(default="paper", kw_only=True)
    decay: float = field(default=0.0, kw_only=True)

    cell = "poisson"
    variants = {  # noqa: RUF012
        "ip-vae": Variant("iterative, spikes; the model of the paper, and the fastest here")
    }
    clamps = {"clamp_u": (6.0,), "clamp_du": (10.0,)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, ("released",))
        choice(self, "drive", DRIVES)
        number(self, "decay", low=0.0)
        if self.drive != "paper" and self.decoder != "linear":
            raise ConfigError(
                f"drive: expected 'paper' with a {self.decoder!r} decoder, found {self.drive!r}"
            )
        if self.drive == "expected" and self.single_draw:
            raise ConfigError("single_draw: expected false with drive='expected', whose updates draw nothing")


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
    variants = {  # noqa: RUF012
        "ig-vae": Variant("iterative, normal latents, never sparse"),
        "ig-relu-vae": Variant("the same, rectified, sparse but no spikes", {"activation": "relu"}),
    }
    clamps = {"clamp_u": (7.0, 2.0), "clamp_du": (7.0, 3.0)}  # noqa: RUF012

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "activation", ("identity", "relu"))


@dataclass(frozen=True)
class FixedPriorConfig(VAEConfig):
    """What models share whose prior is one for all steps; you make that of a family, such as `PVAEConfig`.

    It has the fields of `VAEConfig`, and:

    Attributes:
        fit_prior: whether the prior is learned.
        fit_sigma: whether the standard deviation of each pixel is learned.
        init_log_sigma: the logarithm of it at the start, below 3.45 in size. With -log(2) / 2 and not learned
            the reconstruction term is the squared error, but for a constant: the loss of the released P-VAE.
        init_scale: standard deviation of the initial dictionary and of the last layer of what infers, as
            released.
        seed: of the initial weights.
    """

    fit_prior: bool = field(default=True, kw_only=True)
    fit_sigma: bool = field(default=True, kw_only=True)
    init_log_sigma: float = field(default=-1.0, kw_only=True)
    init_scale: float = field(default=0.05, kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "init_log_sigma", low=-3.4, high=3.4)
        number(self, "init_scale", low=0.0)
        integer(self, "seed", low=-(2**63), high=2**63 - 1)
        for name in ("fit_prior", "fit_sigma"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}: expected true or false, found {getattr(self, name)!r}")


@dataclass(frozen=True)
class AmortisedConfig(FixedPriorConfig):
    """What models with an encoder share; you make that of a family, such as `PVAEConfig`.

    It has the fields of `FixedPriorConfig`, and:

    Attributes:
        encoder: "linear", "mlp", "conv" (`ipvae.models.encoders` says what they are), or "module": the one
            that the model is given.
        encoder_width: hidden units of an MLP (default 256), channels of the first layer of a convolutional
            one (16).
    """

    encoder: str = "linear"
    encoder_width: int = cast("int", None)

    described = Description(
        "amortised-vae",
        'an amortised VAE (["Poisson variational autoencoder"](https://arxiv.org/abs/2405.14473))',
        "An encoder infers codes in one step.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "encoder", tuple(ENCODERS))
        check_network(self, "encoder", ENCODERS)


@dataclass(frozen=True, kw_only=True)
class CountsConfig(FixedPriorConfig):
    """What models of counts have besides.

    Attributes:
        estimator: as in `IPVAEConfig`.
        n_arrivals: arrivals kept by the estimator; None: all.
        init_log_rate: bounds of the uniform initial log rates of the prior; the released code has (-6, -4).
        clamp_u: soft ceiling of the posterior's log rates, as released.
        clamp_du: soft ceiling of what is added to the prior's, as released.
    """

    estimator: str = "fini2"
    n_arrivals: int | None = None
    init_log_rate: tuple[float, float] = (-2.0, 0.0)
    clamp_u: float = 5.0
    clamp_du: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self)
        for name in ("clamp_u", "clamp_du"):
            number(self, name, low=0.0, open_low=True)


@dataclass(frozen=True, kw_only=True)
class NormalsConfig(FixedPriorConfig):
    """What models of normals have besides.

    Attributes:
        activation: of the latents, "identity" or "relu".
        clamp_log_sigma: soft bound of the log sigmas, as released.
    """

    activation: Activation = "identity"
    clamp_log_sigma: float = 5.3

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "activation", ("identity", "relu"))
        number(self, "clamp_log_sigma", low=0.0, open_low=True)


@dataclass(frozen=True)
class PVAEConfig(CountsConfig, AmortisedConfig):
    """An amortised Poisson VAE (P-VAE, "Poisson variational autoencoder", arXiv 2405.14473).

    It has the fields of `AmortisedConfig` and of `CountsConfig`.
    """

    cell = "p-vae"
    variants = {  # noqa: RUF012
        "p-vae": Variant("an encoder gives the rates in one step, spikes")
    }


@dataclass(frozen=True)
class GVAEConfig(NormalsConfig, AmortisedConfig):
    """Its Gaussian relative: the VAE (G-VAE), or rectified (G-relu-VAE).

    It has the fields of `AmortisedConfig` and of `NormalsConfig`.
    """

    cell = "g-vae"
    variants = {  # noqa: RUF012
        "g-vae": Variant("the ordinary VAE"),
        "g-relu-vae": Variant("the ordinary VAE, rectified", {"activation": "relu"}),
    }
