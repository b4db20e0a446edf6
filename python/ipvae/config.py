"""What a model is (`ModelConfig`) and how it is trained (`TrainConfig`), checked when written down.

The defaults train whitened patches and images in [0, 1] in a run of minutes (docs/design/training.md,
"Defaults"); `released_recipe` gives the authors' settings, for runs of hours.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

Kind = Literal["poisson", "gaussian"]
Kl = Literal["exact", "released"]
Activation = Literal["identity", "relu"]

ESTIMATORS = ("sigmoid", "linear", "cubic", "quintic", "cosine", "fini2", "fini3", "gumbel", "hard")
# Of a Poisson model of the released code, which trains for hours; the defaults differ ("Defaults").
RELEASED_LOG_RATE, RELEASED_CLAMP_U = (-6.0, -4.0), 10.0
CLAMPS: dict[str, dict[str, tuple[float, ...]]] = {
    "poisson": {"clamp_u": (6.0,), "clamp_du": (10.0,)},
    "gaussian": {"clamp_u": (7.0, 2.0), "clamp_du": (7.0, 3.0)},
}

_T = TypeVar("_T")
_LARGEST = 3.4028234663852886e38  # of float32, in which parameters and buffers are kept
_SIZE_MAX = 2**31 - 1
# Sizes of a model: the product of two, in bytes, does not overflow.
_MODEL_SIZE_MAX = 2**28


class ConfigError(ValueError):
    """A configuration field has a value that cannot work; the message names the field."""


@dataclass(frozen=True)
class ModelConfig:
    """An iterative VAE with a linear decoder.

    Attributes:
        n_inputs: M, pixels of one input.
        n_latents: K, neurons.
        kind: "poisson" (iP-VAE, spiking) or "gaussian" (iG-VAE; with ``activation="relu"`` the iG-relu-VAE).
        input_shape: shape of one input, product M; None stands for ``(n_inputs,)``.
        t_train: T, inference steps unrolled in training.
        n_inner: updates within one step (1 in the paper).
        beta_inner: weight of the leak, used only where ``n_inner > 1``.
        clamp_u: final soft clamp of the state; None: 6 (Poisson: 403 spikes a step at most; the released code
            has 10) or (7, 2) (Gaussian: mean, log sigma).
        clamp_du: final soft clamp of one update; None: 10 or (7, 3).
        kl: "exact", or "released": exp(u - u_prior) times that, to which the published betas belong.
        estimator: gradient of counts in training; "fini2" trains on whole spikes and has no temperature,
            "sigmoid" is what the authors trained with.
        n_arrivals: arrivals kept by the estimator: None (all), a number, or "released" (their quantile rule).
        activation: of a Gaussian model, "identity" or "relu" (with a learned gain per neuron, as released).
        fit_prior: whether the initial state, the prior of the first step, is learned.
        init_scale: standard deviation of the initial dictionary.
        init_log_bias: initial log bias.
        init_log_rate: bounds of the uniform initial log rates (Poisson; a Gaussian state starts at 0): about
            a spike a step. The released code starts nearly silent, (-6, -4), and needs hours to recover.
        seed: of the initial weights.
    """

    n_inputs: int
    n_latents: int = 512
    kind: Kind = "poisson"
    input_shape: tuple[int, ...] | None = None
    t_train: int = 16
    n_inner: int = 1
    beta_inner: float = 1.0
    clamp_u: float | tuple[float, ...] | None = None
    clamp_du: float | tuple[float, ...] | None = None
    kl: Kl = "exact"
    estimator: str = "fini2"
    n_arrivals: int | Literal["released"] | None = None
    activation: Activation = "identity"
    fit_prior: bool = True
    init_scale: float = 1e-4
    init_log_bias: float = -3.0
    init_log_rate: tuple[float, float] = (-0.5, 0.5)
    seed: int = 0

    def __post_init__(self) -> None:
        _as_python(self)
        _choice(self, "kind", ("poisson", "gaussian"))
        for name in ("n_inputs", "n_latents", "t_train"):
            _integer(self, name, low=1, high=_MODEL_SIZE_MAX)
        _integer(self, "n_inner", low=1, high=256)
        _integer(self, "seed", low=-(2**63), high=2**63 - 1)
        for name in ("beta_inner", "init_scale"):
            _number(self, name, low=0.0)
        _number(self, "init_log_bias")
        _choice(self, "kl", ("exact", "released"))
        _choice(self, "estimator", ESTIMATORS)
        _choice(self, "activation", ("identity", "relu"))
        if not isinstance(self.fit_prior, bool):
            raise ConfigError(f"fit_prior: expected true or false, found {self.fit_prior!r}")
        if self.kind == "poisson" and self.activation != "identity":
            raise ConfigError(
                f"activation: expected 'identity' for a poisson model, found {self.activation!r}"
            )
        if self.n_arrivals is not None and self.n_arrivals != "released":
            _integer(self, "n_arrivals", low=1)
        self._check_input_shape()
        self._check_clamps()
        self._check_init_log_rate()

    def _check_input_shape(self) -> None:
        shape = (self.n_inputs,) if self.input_shape is None else self.input_shape
        if not isinstance(shape, (tuple, list)) or not all(_is_int(n) and n >= 1 for n in shape):
            raise ConfigError(f"input_shape: expected positive integers, found {self.input_shape!r}")
        if math.prod(shape) != self.n_inputs:
            raise ConfigError(f"input_shape: expected a product of {self.n_inputs}, found {tuple(shape)}")
        if len(shape) == 2 and shape[0] == 1:
            raise ConfigError(
                f"input_shape: expected ({self.n_inputs},), found {tuple(shape)}, which reads like a batch"
            )
        object.__setattr__(self, "input_shape", tuple(shape))

    def _check_clamps(self) -> None:
        for name, default in CLAMPS[self.kind].items():
            value = getattr(self, name)
            given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            clamps = default if value is None else given
            if len(clamps) != len(default) or not all(_is_number(c) and c > 0 for c in clamps):
                what = "a positive number" if len(default) == 1 else "two positive numbers (mean, log sigma)"
                raise ConfigError(f"{name}: expected {what}, found {value!r}")
            clamps = tuple(float(c) for c in clamps)
            object.__setattr__(self, name, clamps[0] if len(clamps) == 1 else clamps)

    def _check_init_log_rate(self) -> None:
        bounds = self.init_log_rate
        if not (isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(_is_number, bounds))):
            raise ConfigError(f"init_log_rate: expected two numbers (low, high), found {bounds!r}")
        low, high = float(bounds[0]), float(bounds[1])
        if not -8.0 <= low <= high <= 6.0:
            raise ConfigError(f"init_log_rate: expected -8 <= low <= high <= 6, found ({low}, {high})")
        object.__setattr__(self, "init_log_rate", (low, high))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return cast("tuple[int, ...]", self.input_shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON and `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: for a key that is unknown or missing, or a value that cannot work.
        """
        return _from_dict(cls, values)


@dataclass(frozen=True)
class TrainConfig:
    """How to train: Adamax, warm-up, cosine, annealed KL, clamps and temperature, as in the released code.

    Portions are shares of all optimizer steps. One of `epochs` and `max_steps` sets their number.

    Attributes:
        lr: peak learning rate.
        epochs: passes over the training set; None where `max_steps` is given.
        max_steps: optimizer steps; None where `epochs` is given.
        batch_size: inputs per optimizer step, over all devices.
        steps: inference steps per optimizer step; None stands for the model's `t_train`.
        truncate: cut the gradient after every so many inference steps; None: never.
        beta_outer: weight of the KL after annealing; larger is sparser, and too large for the length of a run
            it silences every neuron. The paper's belong to ``kl="released"``.
        beta_min: weight of the KL before.
        grad_clip: largest norm of the gradient (three times that in the warm-up, as released); None: any.
        weight_decay: of Adamax.
        betas: of Adamax.
        lr_min: where the cosine ends.
        warmup_portion: linear warm-up of the learning rate.
        anneal_portion: linear rise of beta from `beta_min` and of the clamps from tight to final.
        const_portion: before which both rest at their first value.
        temperature_start: of the relaxed counts.
        temperature_stop: of the relaxed counts.
        temperature_portion: share of the steps over which the temperature falls linearly.
        seed: of the noise and of the order of the data.
    """

    lr: float = 0.002
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 200
    steps: int | None = None
    truncate: int | None = None
    beta_outer: float = 2.0
    beta_min: float = 1e-4
    grad_clip: float | None = 300.0
    weight_decay: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    lr_min: float = 1e-5
    warmup_portion: float = 0.005
    anneal_portion: float = 0.1
    const_portion: float = 0.001
    temperature_start: float = 1.0
    temperature_stop: float = 0.01
    temperature_portion: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _as_python(self)
        if (self.epochs is None) == (self.max_steps is None):
            found = f"{self.epochs!r} and {self.max_steps!r}"
            raise ConfigError(f"epochs: expected either epochs or max_steps, found {found}")
        for name in ("epochs", "max_steps", "steps", "truncate"):
            if getattr(self, name) is not None:
                _integer(self, name, low=1)
        _integer(self, "batch_size", low=1)
        _integer(self, "seed", low=-(2**63), high=2**63 - 1)
        for name in ("lr", "temperature_start", "temperature_stop"):
            _number(self, name, low=0.0, open_low=True)
        for name in ("beta_outer", "beta_min", "weight_decay", "lr_min"):
            _number(self, name, low=0.0)
        for name in ("warmup_portion", "anneal_portion", "const_portion", "temperature_portion"):
            _number(self, name, low=0.0, high=1.0)
        if self.grad_clip is not None:
            _number(self, "grad_clip", low=0.0, open_low=True)
        if self.lr_min > self.lr:
            raise ConfigError(f"lr_min: expected at most lr={self.lr}, found {self.lr_min}")
        if self.const_portion + self.anneal_portion > 1.0:
            limit = 1.0 - self.const_portion
            raise ConfigError(f"anneal_portion: expected at most {limit:g}, found {self.anneal_portion}")
        betas = tuple(self.betas) if isinstance(self.betas, (tuple, list)) else ()
        if len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
            raise ConfigError(f"betas: expected two numbers in [0, 1), found {self.betas!r}")
        object.__setattr__(self, "betas", (float(betas[0]), float(betas[1])))

    def total_steps(self, n_samples: int) -> int:
        """Optimizer steps for a training set of `n_samples`; the incomplete batch of an epoch is left out."""
        if self.max_steps is not None:
            return self.max_steps
        return cast(int, self.epochs) * max(n_samples // self.batch_size, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that survive JSON and `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: for a key that is unknown or missing, or a value that cannot work.
        """
        return _from_dict(cls, values)


# (kind, activation) -> (T, beta) of the released runs, which share everything else of their data set.
_PATCHES = {
    ("poisson", "identity"): (16, 24.0),
    ("gaussian", "identity"): (16, 8.0),
    ("gaussian", "relu"): (16, 8.0),
}
_MNIST = {
    ("poisson", "identity"): (128, 128.0),
    ("gaussian", "identity"): (64, 64.0),
    ("gaussian", "relu"): (32, 32.0),
}


def released_recipe(
    name: Literal["patches", "mnist"], kind: Kind = "poisson", activation: Activation = "identity"
) -> tuple[ModelConfig, TrainConfig]:
    """The recipes behind the published figures.

    Args:
        name: "patches" (whitened 16x16 natural patches, 300 epochs) or "mnist" ([0, 1] pixels, 400 epochs).
        kind: of the model.
        activation: of a Gaussian model.

    Returns:
        Configurations as released: sigmoid estimator, their KL, their cut of the arrivals. Change single
            fields
        with `dataclasses.replace`; with ``kl="exact"`` a beta means something else than in the paper.

    Raises:
        ConfigError: for a name or a model that has no released recipe.
    """
    recipes = {"patches": _PATCHES, "mnist": _MNIST}
    if name not in recipes:
        raise ConfigError(f"name: expected one of {sorted(recipes)}, found {name!r}")
    if (kind, activation) not in recipes[name]:
        raise ConfigError(f"kind: no released recipe for kind={kind!r}, activation={activation!r}")
    t_train, beta = recipes[name][kind, activation]
    shape = (1, 16, 16) if name == "patches" else (1, 28, 28)
    model = ModelConfig(
        n_inputs=math.prod(shape), input_shape=shape, kind=kind, activation=activation, t_train=t_train,
        kl="released", estimator="sigmoid", n_arrivals="released" if kind == "poisson" else None,
        init_log_rate=RELEASED_LOG_RATE, clamp_u=RELEASED_CLAMP_U if kind == "poisson" else None,
    )  # fmt: skip
    if name == "patches":
        return model, TrainConfig(lr=0.005, epochs=300, batch_size=200, beta_outer=beta, grad_clip=300.0)
    return model, TrainConfig(lr=0.002, epochs=400, batch_size=100, beta_outer=beta, grad_clip=3000.0)


def _from_dict(cls: type[_T], values: dict[str, Any]) -> _T:
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected a mapping of fields, found {type(values).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        known = ", ".join(fields)
        raise ConfigError(f"{cls.__name__}: unknown field(s) {', '.join(map(str, unknown))}; known: {known}")
    required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{cls.__name__}: missing field(s) {', '.join(missing)}")
    return cls(**values)


def _as_python(config: object) -> None:
    """Turns numbers, flags and arrays of NumPy and torch in the fields into what Python has for them."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = _plain(getattr(config, field.name))
        if isinstance(value, (tuple, list)):
            value = tuple(map(_plain, value))
        object.__setattr__(config, field.name, value)


def _plain(value: Any) -> Any:
    # By what they have, not by type: a configuration needs neither NumPy nor the second that torch takes.
    return value.tolist() if hasattr(value, "tolist") and not getattr(value, "is_meta", False) else value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # By comparison: math.isfinite raises for integers beyond any float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")


def _integer(config: object, name: str, low: int, high: int = _SIZE_MAX) -> None:
    value = getattr(config, name)
    if not _is_int(value) or not low <= value <= high:
        raise ConfigError(f"{name}: expected an integer from {low} to {high}, found {value!r}")


def _number(
    config: object, name: str, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> None:
    """Checks a finite number within [low, high] (above `low` where `open_low`) and stores it as a float."""
    value = getattr(config, name)
    if not _is_number(value) or not low <= value <= high or (open_low and value == low):
        bounds = f" above {low:g}" if open_low else f" from {low:g} to {high:g}" if low > -math.inf else ""
        raise ConfigError(f"{name}: expected a finite number{bounds}, found {value!r}")
    object.__setattr__(config, name, float(value))
