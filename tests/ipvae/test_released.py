"""Checkpoints of the authors' code, key for key; the dictionaries here are written out by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IGVAE, IPVAE, CheckpointError, ConfigError, IPVAEConfig, load_model
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


POISSON = {"t_train": T, "n_iters_inner": 1, "clamp_u": 10.0, "clamp_du": 10.0}
GAUSSIAN = {"t_train": 7, "n_iters_inner": 2, "clamp_u": [7.0, 2.0], "clamp_du": [7.0, 3.0]}


def test_parameters_arrive_where_they_belong() -> None:
    state = poisson()
    params = IPVAE.from_released(state, settings=POISSON).params
    assert torch.equal(params.dictionary, state["layer.phi.weight"])
    assert torch.equal(params.log_bias, state["layer.log_bias"][0])
    assert torch.equal(params.log_rate_init, state["layer.u_init.0"][0])
    assert params.log_lr.shape == ()
    assert float(params.log_lr.detach()) == -0.5
    torch.testing.assert_close(params.log_sigma, 3.45 * torch.tanh(state["layer.dec_log_sigma"][0] / 3.45))


@pytest.mark.parametrize("relu", [False, True])
def test_gaussian_parameters_arrive_where_they_belong(relu: bool) -> None:
    state = gaussian(relu)
    model = IGVAE.from_released(state, settings=GAUSSIAN)
    params = model.params
    gain = state["layer.activation.log_gain"].exp() if relu else 1.0
    torch.testing.assert_close(params.dictionary, state["layer.phi.weight"] * gain)
    assert params.activation == ("relu" if relu else "identity")
    assert params.log_lr.tolist() == [-0.5, 0.25]
    assert torch.equal(params.state_init, torch.cat([state["layer.u_init.0"], state["layer.u_init.1"]]))
    assert model.config.clamp_u == (7.0, 2.0)


def test_the_configuration_is_the_released_one() -> None:
    model = IPVAE.from_released(poisson(), settings=POISSON)
    config = model.config
    assert (config.kl, config.estimator, config.n_arrivals) == ("released", "sigmoid", "released")
    assert (config.n_inputs, config.n_latents, config.t_train) == (M, K, T)
    assert model.temperature == pytest.approx(0.01)
    assert model.n_arrivals == 9


def test_our_state_dict_is_theirs() -> None:
    state = poisson()
    returned = IPVAE.from_released(state, settings=POISSON).state_dict()
    assert set(returned) == set(state)
    assert all(torch.equal(returned[name], state[name]) for name in state)


def test_files_and_folders_are_read_without_running_code(tmp_path: Path) -> None:
    state = poisson() | {"layer.beta_inner": torch.tensor(0.5)}
    torch.save(checkpoint(state), tmp_path / "IPVAE+Trainer-0300_(2025_05_13,16:11).pt")
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
    config = IPVAEConfig(n_inputs=M, n_latents=K, t_train=T, kl="exact")
    assert IPVAE.from_released(checkpoint(poisson()), config=config).config is config


def test_every_misfit_is_listed() -> None:
    state = poisson()
    del state["layer.log_bias"]
    state["layer.extra"] = torch.zeros(1)
    state["layer.u_init.0"] = torch.zeros(1, K + 1)
    state["layer.log_lr.0"] = torch.tensor([float("inf")])
    with pytest.raises(CheckpointError) as caught:
        IPVAE.from_released(state, settings=POISSON)
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
        IGVAE.from_released(poisson(), settings=POISSON)


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
        IPVAE.from_released(tmp_path / "model.pt", settings=POISSON)


def trainers_folder(root: Path, state: dict[str, Tensor], settings: dict[str, Any], kind: str) -> Path:
    """What the authors' trainer leaves: settings of the model, and below it a folder of numbered weights."""
    run = root / "run_(2025_05_13,12:46)"
    run.mkdir(parents=True)
    (root / f"Config{kind}VAE.json").write_text(json.dumps(settings))
    (run / "ConfigTrain.json").write_text(json.dumps({"lr": 0.005, "temp_stop": 0.01}))
    for number in (50, 300, 100):
        numbered = state | {"layer.log_bias": torch.full((1, K), float(number))}
        torch.save(checkpoint(numbered), run / f"I{kind[0]}VAE+Trainer-{number:04d}_(2025_05_13,16:11).pt")
    return run


def test_settings_are_found_one_folder_up_and_the_last_weights_count(tmp_path: Path) -> None:
    settings = {**POISSON, "n_iters_inner": 3, "clamp_u": 9.0, "clamp_du": 5.0, "n_latents": [K]}
    run = trainers_folder(tmp_path / "poisson", poisson(), settings, "Pois")
    for source in (run, tmp_path / "poisson", max(run.glob("*.pt"))):
        model = IPVAE.from_released(source)
        config = model.config
        assert (config.n_inner, config.clamp_u, config.clamp_du, config.t_train) == (3, 9.0, 5.0, T)
        assert model.layer.log_bias.unique().tolist() == [300.0]
        assert load_model(source).config == config
    assert IPVAE.from_released(min(run.glob("*.pt"))).layer.log_bias.unique().tolist() == [50.0]
    later = trainers_folder(tmp_path / "more", poisson(), settings, "Pois")
    (tmp_path / "more" / "another_(2025_04_30,23:59)").mkdir()
    for file in run.glob("*.pt"):
        file.rename(tmp_path / "more" / "another_(2025_04_30,23:59)" / file.name)
    (later / "IPVAE+Trainer-0300_(2025_05_13,16:11).pt").unlink()
    assert load_model(tmp_path / "more").layer.log_bias.unique().tolist() == [100.0]


def test_a_gaussian_model_takes_its_steps_from_the_settings(tmp_path: Path) -> None:
    run = trainers_folder(tmp_path, gaussian(relu=False), {**GAUSSIAN, "n_iters_outer": 2}, "Gaus")
    model = IGVAE.from_released(run)
    assert (model.config.t_train, model.config.n_inner, model.config.clamp_du) == (14, 2, (7.0, 3.0))
    assert model.temperature == 1.0
    assert float(model.state_dict()["layer.temp"]) == 1.0


@pytest.mark.parametrize("relu", [None, True, False], ids=["poisson", "relu", "identity"])
def test_without_settings_nothing_is_loaded(tmp_path: Path, relu: bool | None) -> None:
    state = poisson() if relu is None else gaussian(relu)
    name = "ConfigPoisVAE.json" if relu is None else "ConfigGausVAE.json"
    family = IPVAE if relu is None else IGVAE
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "model.pt"
    torch.save(checkpoint(state), path)
    other = {"ConfigGausVAE.json", "ConfigPoisVAE.json", "ConfigTrain.json"} - {name}
    for file in (*(path.parent / file for file in other), tmp_path / name):
        file.write_text(json.dumps(GAUSSIAN))
    for source in (path, path.parent, state, checkpoint(state)):
        with pytest.raises(CheckpointError, match=rf"no settings \({name}\).* settings= .* config="):
            family.from_released(source)
    settings = POISSON if relu is None else GAUSSIAN
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    expected = family.from_released(state, settings=settings)
    model = family.from_released(path, settings=tmp_path / "settings.json")
    assert model.config == expected.config
    assert torch.equal(model.dictionary, expected.dictionary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clamp_u": None}, "missing clamp_u"),
        ({"t_train": "16"}, "t_train: expected a positive integer, found '16'"),
        ({"clamp_u": [7.0, 2.0]}, "clamp_u: expected a positive number"),
        ({"dec_type": "conv"}, "dec_type: expected 'lin', .* found 'conv'"),
        ({"latent_act": "tanh"}, "latent_act: expected None, .* found 'tanh'"),
        ({"n_latents": [512]}, r"n_latents: expected \[6\], .* found \[512\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = {name: value for name, value in (POISSON | change).items() if value is not None}
    (tmp_path / "ConfigPoisVAE.json").write_text(json.dumps(values))
    torch.save(checkpoint(poisson()), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=rf"ConfigPoisVAE\.json: .*{message}"):
        IPVAE.from_released(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", "\x00", '{"t_train": ' + "9" * 5000 + "}"])
def test_damaged_settings_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "ConfigPoisVAE.json").write_text(text)
    torch.save(checkpoint(poisson()), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"ConfigPoisVAE\.json: "):
        IPVAE.from_released(tmp_path)


@pytest.mark.parametrize("length", [1, T + 3])
def test_a_cut_of_the_arrivals_of_any_length_loads(length: int, tmp_path: Path) -> None:
    n_exp = torch.arange(3, 3 + length, dtype=torch.int32)
    model = IPVAE.from_released(poisson() | {"layer.n_exp": n_exp}, settings=POISSON)
    assert (model.config.t_train, model.n_arrivals) == (T, 2 + length)
    assert torch.equal(model.layer.n_exp, n_exp)
    model.save_pretrained(tmp_path)
    assert torch.equal(IPVAE.from_pretrained(tmp_path).layer.n_exp, n_exp)


def test_buffers_hold_whatever_a_configuration_says() -> None:
    state = poisson() | {"layer.beta_inner": torch.tensor(0.25), "layer.eps": torch.tensor(0.5)}
    sizes = {"n_inputs": M, "n_latents": K, "t_train": T, "n_inner": 2, "clamp_u": 10.0}
    model = IPVAE.from_released(state, config=IPVAEConfig(**sizes))
    leaky = IPVAE.from_released(state, config=IPVAEConfig(**sizes, beta_inner=0.25))
    x = torch.randn(3, M, generator=torch.Generator().manual_seed(2))
    assert torch.equal(model(x, seed=1).loss, leaky(x, seed=1).loss)
    assert model.clamps == {"clamp_u": 6.0, "clamp_du": 6.0}


def test_what_is_written_for_their_code_is_read_back(tmp_path: Path) -> None:
    for model in (
        IPVAE(IPVAEConfig(n_inputs=784, n_latents=K, input_shape=(1, 28, 28))),
        IGVAE.from_released(gaussian(relu=True), settings=GAUSSIAN | {"latent_act": "relu"}),
    ):
        folder = tmp_path / model.cell
        dataset = None if model.cell == "poisson" else "BALLS16"
        file = model.to_released(folder, dataset=dataset, beta=3.0, trainer={"lr": 0.1})
        assert file.parent == folder
        (settings,) = folder.glob("Config*VAE.json")
        written = json.loads(settings.read_text())
        assert written["dataset"] == (dataset or "MNIST")
        assert written["beta_outer"] == 3.0
        assert json.loads((folder / "ConfigTrain.json").read_text())["lr"] == 0.1
        back = load_model(folder)
        for name, value in model.state_dict().items():
            assert torch.equal(back.state_dict()[name], value)
        file.rename(folder / "other.pt")
        with pytest.raises(FileExistsError, match="no other weights"):
            model.to_released(folder, dataset="MNIST")


def test_what_their_code_cannot_read_is_not_written(tmp_path: Path) -> None:
    model = IPVAE(IPVAEConfig(n_inputs=M, n_latents=K))
    with pytest.raises(ConfigError, match="dataset: expected one of their names, for inputs of"):
        model.to_released(tmp_path / "folder")
    with pytest.raises(ConfigError, match="trainer: expected settings of their ConfigTrain, found zebra"):
        model.to_released(tmp_path / "folder", dataset="MNIST", trainer={"zebra": 1})
    assert not (tmp_path / "folder").exists()


def test_an_average_of_the_weights() -> None:
    both = {**checkpoint(poisson()), "model_ema": {k: torch.zeros_like(v) for k, v in poisson().items()}}
    averaged = IPVAE.from_released(both, settings=POISSON, ema=True)
    assert float(averaged.dictionary.detach().abs().max()) == 0.0
    assert float(IPVAE.from_released(both, settings=POISSON).dictionary.detach().abs().max()) > 0.0
    for source in (checkpoint(poisson()), poisson()):
        with pytest.raises(CheckpointError, match="ema: it holds no average of the weights"):
            IPVAE.from_released(source, settings=POISSON, ema=True)
