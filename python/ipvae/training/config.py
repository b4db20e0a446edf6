"""How a model is trained (`TrainConfig`), checked when written down."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from ..fields import ConfigError, as_python, from_dict, integer, is_number, number


@dataclass(frozen=True)
class TrainConfig:
    """How to train: Adamax, warm-up, cosine, annealed KL, clamps and temperature, as in the released code.

    Every family is trained by it alike, and ignores what it does not have: a Gaussian model has no relaxed
    counts, so no temperature and no arrivals to cut.

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
        temperature_start: of the relaxed counts; of no effect where there are none (Gaussian models, and
            estimators of whole counts such as fini2), though the log has the column all the same.
        temperature_stop: likewise.
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
        as_python(self)
        if (self.epochs is None) == (self.max_steps is None):
            found = f"{self.epochs!r} and {self.max_steps!r}"
            raise ConfigError(f"epochs: expected either epochs or max_steps, found {found}")
        for name in ("epochs", "max_steps", "steps", "truncate"):
            if getattr(self, name) is not None:
                integer(self, name, low=1)
        integer(self, "batch_size", low=1)
        integer(self, "seed", low=-(2**63), high=2**63 - 1)
        for name in ("lr", "temperature_start", "temperature_stop"):
            number(self, name, low=0.0, open_low=True)
        for name in ("beta_outer", "beta_min", "weight_decay", "lr_min"):
            number(self, name, low=0.0)
        for name in ("warmup_portion", "anneal_portion", "const_portion", "temperature_portion"):
            number(self, name, low=0.0, high=1.0)
        if self.grad_clip is not None:
            number(self, "grad_clip", low=0.0, open_low=True)
        if self.lr_min > self.lr:
            raise ConfigError(f"lr_min: expected at most lr={self.lr}, found {self.lr_min}")
        if self.const_portion + self.anneal_portion > 1.0:
            limit = 1.0 - self.const_portion
            raise ConfigError(f"anneal_portion: expected at most {limit:g}, found {self.anneal_portion}")
        betas = tuple(self.betas) if isinstance(self.betas, (tuple, list)) else ()
        if len(betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in betas):
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
        return from_dict(cls, values)
