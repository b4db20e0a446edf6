"""`ipvae.models.config`: values that cannot work are refused by name, the rest survives a round trip."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ipvae import (
    ConfigError,
    IGVAEConfig,
    IPVAEConfig,
    ModelConfig,
    TrainConfig,
    build_model,
    evaluate,
    released_recipe,
    train,
)
from ipvae.data import load_dataset
from ipvae.models import config
from ipvae.models.registry import FAMILIES

from ipvae_kernels.cells import CELLS
from ipvae_kernels.poisson import estimators

BAD_MODEL: list[tuple[str, dict[str, Any]]] = [
    ("n_inputs", {"n_inputs": 0}),
    ("n_inputs", {"n_inputs": 4.0}),
    ("n_latents", {"n_latents": True}),
    ("t_train", {"t_train": 0}),
    ("n_inner", {"n_inner": 257}),
    ("seed", {"seed": 2**63}),
    ("beta_inner", {"beta_inner": -1.0}),
    ("init_scale", {"init_scale": float("nan")}),
    ("kl", {"kl": "approximate"}),
    ("estimator", {"estimator": "relu"}),
    ("activation", {"cell": "gaussian", "activation": "tanh"}),
    ("n_arrivals", {"n_arrivals": 0}),
    ("n_arrivals", {"n_arrivals": "all"}),
    ("input_shape", {"input_shape": (2, 3)}),
    ("input_shape", {"input_shape": (1, 4)}),
    ("clamp_u", {"clamp_u": 0.0}),
    ("clamp_u", {"clamp_u": (7.0, 2.0)}),
    ("clamp_du", {"cell": "gaussian", "clamp_du": 7.0}),
    ("init_log_rate", {"init_log_rate": (-4.0, -6.0)}),
    ("init_log_rate", {"init_log_rate": -4.0}),
    ("fit_prior", {"fit_prior": "yes"}),
]
BAD_TRAIN: list[tuple[str, dict[str, Any]]] = [
    ("epochs", {"max_steps": None}),
    ("epochs", {"epochs": 1}),
    ("max_steps", {"max_steps": 0}),
    ("batch_size", {"batch_size": 0}),
    ("steps", {"steps": -1}),
    ("truncate", {"truncate": 0}),
    ("lr", {"lr": 0.0}),
    ("lr", {"lr": "fast"}),
    ("lr_min", {"lr_min": 1.0}),
    ("beta_outer", {"beta_outer": -1.0}),
    ("grad_clip", {"grad_clip": 0.0}),
    ("betas", {"betas": (0.9, 1.0)}),
    ("betas", {"betas": 0.9}),
    ("warmup_portion", {"warmup_portion": 1.5}),
    ("anneal_portion", {"anneal_portion": 0.6, "const_portion": 0.6}),
    ("temperature_stop", {"temperature_stop": 0.0}),
    ("seed", {"seed": 0.5}),
]


@pytest.mark.parametrize(("field", "values"), BAD_MODEL)
def test_model_config_names_the_field_that_cannot_work(field: str, values: dict[str, Any]) -> None:
    values = dict(values)
    family = FAMILIES[values.pop("cell", "poisson")].config_class
    with pytest.raises(ConfigError, match=f"^{field}: expected"):
        family(**{"n_inputs": 4, **values})


@pytest.mark.parametrize(("field", "values"), BAD_TRAIN)
def test_train_config_names_the_field_that_cannot_work(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected"):
        TrainConfig(**{"max_steps": 10, **values})


@pytest.mark.parametrize(
    "config",
    [
        IPVAEConfig(n_inputs=784, input_shape=(1, 28, 28), n_arrivals="released", seed=-3),
        IGVAEConfig(n_inputs=6, activation="relu", clamp_u=(5, 1)),
        TrainConfig(epochs=3, grad_clip=None, betas=(0.8, 0.99)),
    ],
    ids=["poisson", "gaussian", "train"],
)
def test_configs_survive_json(config: ModelConfig | TrainConfig) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("cls", [IPVAEConfig, IGVAEConfig, TrainConfig])
def test_from_dict_is_strict(cls: type[ModelConfig] | type[TrainConfig]) -> None:
    with pytest.raises(ConfigError, match=r"unknown field\(s\) colour"):
        cls.from_dict({"n_inputs": 4, "max_steps": 1, "colour": "red"})
    with pytest.raises(ConfigError, match="expected a mapping"):
        cls.from_dict([1])  # type: ignore[arg-type]


def test_a_configuration_is_that_of_a_family() -> None:
    with pytest.raises(ConfigError, match="ModelConfig: expected the configuration of a family"):
        ModelConfig(n_inputs=4)
    with pytest.raises(ConfigError, match="cell: expected 'poisson' for IPVAEConfig, found 'gaussian'"):
        IPVAEConfig.from_dict(IGVAEConfig(n_inputs=4).to_dict())
    with pytest.raises(ConfigError, match=r"IGVAEConfig: unknown field\(s\) estimator"):
        IGVAEConfig.from_dict({"n_inputs": 4, "estimator": "cubic"})


def test_from_dict_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"missing field.*n_inputs"):
        IPVAEConfig.from_dict({})


def test_the_released_recipe_starts_and_clamps_as_the_authors_code() -> None:
    config, _ = released_recipe("patches")
    assert (config.clamp_u, config.clamp_du) == (10.0, 10.0)
    assert config.init_log_lr == 0.0
    assert (config.init_log_bias, config.init_scale, config.init_log_rate) == (-3.0, 1e-4, (-6.0, -4.0))
    gaussian, _ = released_recipe("patches", "gaussian")
    assert (gaussian.clamp_u, gaussian.clamp_du) == ((7.0, 2.0), (7.0, 3.0))


@pytest.mark.parametrize("name", ["patches", "digits"])
def test_defaults_train(name: Any, tmp_path: Path) -> None:
    data = load_dataset(name)
    model = build_model(IPVAEConfig(n_inputs=data.train.shape[1], n_latents=64))
    config = TrainConfig(max_steps=60, batch_size=64)
    train(model, data.train, config, tmp_path, logger=None, progress=False)
    found = evaluate(model, data.test[:100], 64, marks=())
    # .20 and .25 on patches, .44 and .43 on digits; a nearly silent start ends at .01.
    assert found.r2[15] > 0.15
    assert found.r2[-1] > 0.2
    assert 0.1 < found.zeros[-1] < 0.95


@pytest.mark.parametrize(
    ("name", "cell", "activation", "t_train", "beta", "lr", "batch", "clip", "epochs"),
    [
        ("patches", "poisson", "identity", 16, 24.0, 0.005, 200, 300.0, 300),
        ("patches", "gaussian", "relu", 16, 8.0, 0.005, 200, 300.0, 300),
        ("mnist", "poisson", "identity", 128, 128.0, 0.002, 100, 3000.0, 400),
        ("mnist", "gaussian", "identity", 64, 64.0, 0.002, 100, 3000.0, 400),
        ("mnist", "gaussian", "relu", 32, 32.0, 0.002, 100, 3000.0, 400),
    ],
)
def test_recipes_are_the_published_ones(
    name: Any,
    cell: Any,
    activation: Any,
    t_train: int,
    beta: float,
    lr: float,
    batch: int,
    clip: float,
    epochs: int,
) -> None:
    model, train = released_recipe(name, cell, activation)
    assert (model.cell, model.t_train, model.kl) == (cell, t_train, "released")
    assert getattr(model, "estimator", "sigmoid") == "sigmoid"
    assert getattr(model, "activation", "identity") == activation
    assert (train.beta_outer, train.lr, train.batch_size, train.grad_clip, train.epochs) == (
        beta, lr, batch, clip, epochs,
    )  # fmt: skip


def test_the_mnist_model_has_the_published_number_of_parameters() -> None:
    poisson = build_model(released_recipe("mnist")[0])
    assert sum(p.numel() for p in poisson.parameters()) == 403_217
    gaussian = build_model(released_recipe("mnist", "gaussian")[0])
    assert sum(p.numel() for p in gaussian.parameters()) == 403_730


def test_recipes_exist_for_what_was_released_only() -> None:
    with pytest.raises(ConfigError, match=r"^name: expected"):
        released_recipe("cifar")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^cell: no released recipe"):
        released_recipe("mnist", "poisson", "relu")


def test_total_steps_leave_the_incomplete_batch_out() -> None:
    config = TrainConfig(epochs=3, batch_size=8)
    assert config.total_steps(50) == 18
    assert config.total_steps(5) == 3
    assert dataclasses.replace(config, epochs=None, max_steps=7).total_steps(50) == 7


def test_estimators_and_clamps_are_those_of_the_kernels() -> None:
    # Written down twice, so that the command line can list them without importing PyTorch.
    assert sorted(config.ESTIMATORS) == sorted(estimators.ESTIMATORS)
    assert config.IGVAEConfig.clamps == {
        "clamp_u": CELLS["gaussian"].clamp_u,
        "clamp_du": CELLS["gaussian"].clamp_du,
    }
