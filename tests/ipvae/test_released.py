"""Checkpoints of the authors' code, key for key; the dictionaries here are written out by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IGVAE, IPVAE, CheckpointError, IterativeVAE, ModelConfig
from torch import Tensor

M, K, T = 16, 6, 4


def poisson() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.dec_log_sigma": torch.randn(1, M, generator=generator),
        "layer.log_bias": torch.randn(1, K, generator=generator) - 3,
        "layer.temp": torch.tensor(0.01),
        "layer.beta_inner": torch.tensor(1.0),
        "layer.eps": torch.tensor(1.0),
        "layer.n_exp": torch.tensor([3, 5, 9, 7], dtype=torch.int32),
        "layer.phi.weight": torch.randn(M, K, generator=generator),
        "layer.log_lr.0": torch.tensor([-0.5]),
        "layer.u_init.0": torch.randn(1, K, generator=generator) - 4,
    }


def gaussian(relu: bool) -> dict[str, Tensor]:
    state = {name: tensor for name, tensor in poisson().items() if name != "layer.n_exp"}
    state |= {"layer.log_lr.1": torch.tensor([0.25]), "layer.u_init.1": torch.full((1, K), 0.5)}
    return state | ({"layer.activation.log_gain": torch.linspace(-1, 1, K)[None]} if relu else {})


def checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """The whole of a released file: training statistics are numpy scalars in dictionaries."""
    stats = {"loss": {0: 1.5, 1: np.float64(2.5)}, "grad": {3: np.float32(1.0)}, "n_exp": {0: np.int64(10)}}
    metadata = {"timestamp": "2025_05_13,16:11", "checkpoint": 300, "stats_trainer": stats, "stats_model": {}}
    return {
        "metadata": metadata,
        "model": state,
        "model_ema": None,
        "optim": {"state": {}},
        "scheduler": None,
    }


def test_parameters_arrive_where_they_belong() -> None:
    state = poisson()
    params = IPVAE.from_released(state).params
    assert torch.equal(params.dictionary, state["layer.phi.weight"])
    assert torch.equal(params.log_bias, state["layer.log_bias"][0])
    assert torch.equal(params.log_rate_init, state["layer.u_init.0"][0])
    assert params.log_lr.shape == ()
    assert float(params.log_lr.detach()) == -0.5
    torch.testing.assert_close(params.log_sigma, 3.45 * torch.tanh(state["layer.dec_log_sigma"][0] / 3.45))


@pytest.mark.parametrize("relu", [False, True])
def test_gaussian_parameters_arrive_where_they_belong(relu: bool) -> None:
    state = gaussian(relu)
    model = IGVAE.from_released(state)
    params = model.params
    gain = state["layer.activation.log_gain"].exp() if relu else 1.0
    torch.testing.assert_close(params.dictionary, state["layer.phi.weight"] * gain)
    assert params.activation == ("relu" if relu else "identity")
    assert params.log_lr.tolist() == [-0.5, 0.25]
    assert torch.equal(params.state_init, torch.cat([state["layer.u_init.0"], state["layer.u_init.1"]]))
    assert model.config.clamp_u == (7.0, 2.0)


def test_the_configuration_is_the_released_one() -> None:
    model = IterativeVAE.from_released(poisson())
    config = model.config
    assert (config.kl, config.estimator, config.n_arrivals) == ("released", "sigmoid", "released")
    assert (config.n_inputs, config.n_latents, config.t_train) == (M, K, T)
    assert model.temperature == pytest.approx(0.01)
    assert model.n_arrivals == 9


def test_our_state_dict_is_theirs() -> None:
    state = poisson()
    returned = IPVAE.from_released(state).state_dict()
    assert set(returned) == set(state)
    assert all(torch.equal(returned[name], state[name]) for name in state)


def test_files_and_folders_are_read_without_running_code(tmp_path: Path) -> None:
    torch.save(checkpoint(poisson()), tmp_path / "IPVAE+Trainer-0300_(2025_05_13,16:11).pt")
    settings = {
        "t_train": T,
        "n_iters_inner": 3,
        "beta_inner": 0.5,
        "clamp_u": 8.0,
        "clamp_du": 7.0,
        "seed": 0,
    }
    (tmp_path / "ConfigPoisVAE.json").write_text(json.dumps(settings))
    for source in (tmp_path, next(tmp_path.glob("*.pt"))):
        model = IPVAE.from_released(source)
        config = model.config
        assert (config.n_inner, config.beta_inner, config.clamp_u, config.clamp_du) == (3, 0.5, 8.0, 7.0)
        assert torch.equal(model.dictionary, poisson()["layer.phi.weight"])


def test_a_configuration_may_be_given() -> None:
    config = ModelConfig(n_inputs=M, n_latents=K, t_train=T, kl="exact")
    assert IPVAE.from_released(checkpoint(poisson()), config=config).config is config


def test_every_misfit_is_listed() -> None:
    state = poisson()
    del state["layer.log_bias"]
    state["layer.extra"] = torch.zeros(1)
    state["layer.u_init.0"] = torch.zeros(1, K + 1)
    state["layer.log_lr.0"] = torch.tensor([float("inf")])
    with pytest.raises(CheckpointError) as caught:
        IPVAE.from_released(state)
    message = str(caught.value)
    assert f"missing layer.log_bias [1, {K}]" in message
    assert "unknown layer.extra" in message
    assert f"layer.u_init.0: expected shape [1, {K}], found [1, {K + 1}]" in message
    assert "layer.log_lr.0: holds values that are not finite" in message


def test_what_is_not_a_released_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of the released code"):
        IPVAE.from_released({"weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="no such file"):
        IPVAE.from_released(tmp_path / "nothing.pt")
    with pytest.raises(CheckpointError, match=r"expected one \.pt file, found 0"):
        IPVAE.from_released(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(CheckpointError, match="damaged"):
        IPVAE.from_released(tmp_path)
    torch.save([1, 2], tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of the released code"):
        IPVAE.from_released(tmp_path)


def test_the_kind_must_be_that_of_the_class() -> None:
    with pytest.raises(CheckpointError, match="expected IGVAE, found a poisson model"):
        IGVAE.from_released(poisson())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer.temp", torch.tensor(-0.01)),
        ("layer.eps", torch.tensor(-0.1)),
        ("layer.eps", torch.tensor(1.1)),
        ("layer.n_exp", torch.zeros(0, dtype=torch.int32)),
        ("layer.n_exp", torch.tensor(10, dtype=torch.int32)),
    ],
)
def test_constants_out_of_range_are_refused(tmp_path: Path, key: str, value: Tensor) -> None:
    torch.save(checkpoint(poisson() | {key: value}), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=rf"(?s)model\.pt: .*{key}: expected"):
        IPVAE.from_released(tmp_path / "model.pt")
