"""A family of models is a file and a line of the registry: commands, files and recipes then know it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IGVAE, IPVAE, CheckpointError, IGVAEConfig, ModelConfig, TrainConfig, cli, load_model, train
from ipvae.fields import ConfigError
from ipvae.inputs import Inputs
from ipvae.models import registry
from ipvae.models.iterative import IterativeVAE
from ipvae.models.layer import Layer
from torch import Tensor
from typer.testing import CliRunner

import ipvae_kernels
from ipvae_kernels import PoissonParams


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    start: float = -1.0

    cell = "toy"
    clamps = {"clamp_u": (5.0,), "clamp_du": (4.0,)}  # noqa: RUF012


class Toy(IterativeVAE):
    """Counts, without arrivals or temperature."""

    config: ToyConfig
    config_class = ToyConfig
    n_states = 1
    spiking = True
    clamp_init = 2.0

    def _layer(self) -> Layer:
        return Layer(self.config, 1, has_gain=False, has_arrivals=False)

    def _reset_prior(self, generator: torch.Generator) -> None:
        self.layer.u_init[0].fill_(self.config.start)

    @property
    def params(self) -> PoissonParams:
        layer = self.layer
        return PoissonParams(
            self.dictionary, self.log_sigma, layer.log_bias[0], layer.log_lr[0][0], layer.u_init[0][0]
        )

    def _draw_options(self, estimator: str | None, temperature: float | None) -> dict[str, Any]:
        return {"estimator": "fini2"}

    def rates(self, log_rate: Inputs) -> Tensor:
        return self._taken("log_rate", log_rate).exp()

    def _sample_prior(self, n: int, seed: Tensor, sample_offset: int) -> Tensor:
        log_rate = self.params.log_rate_init.expand(n, -1)
        return ipvae_kernels.poisson_sample(log_rate, seed=seed, sample_offset=sample_offset)


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of the registry."""
    monkeypatch.setattr(registry, "FAMILIES", registry.by_name([IPVAE, IGVAE, Toy]))


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.mark.usefixtures("_toy", "coarse_figures")
def test_every_command_serves_a_new_family(tmp_path: Path) -> None:
    out = tmp_path / "run"
    digits = ("--data", "digits")
    small = ("--latents", 16, "--t-train", 4, "--max-steps", 4, "--batch-size", 8, "--eval-steps", 6)
    trained = call("train", *digits, *small, "--cell", "toy", "--out", out)
    assert trained.exit_code == 0, trained.output
    assert "toy model, 16 neurons" in trained.output
    model = load_model(out)
    assert isinstance(model, Toy)
    assert (model.config.start, model.config.clamp_u, model.config.n_inputs) == (-1.0, 5.0, 64)
    assert load_model(out / "checkpoints" / "last.ckpt").config == model.config
    for command in (("eval", "--limit", 5), ("infer", "--limit", 5, "--out", tmp_path / "spikes.npz")):
        found = call(command[0], out, *digits, "--steps", 4, *command[1:])
        assert found.exit_code == 0, found.output
    assert np.load(tmp_path / "spikes.npz")["counts"].shape == (4, 5, 16)
    drawn = call("plot", out, *digits, "--steps", 4, "--limit", 20, "--out", tmp_path / "figures")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "figures" / "raster.png").is_file()
    assert model.generate(3, seed=1).shape == (3, 1, 8, 8)
    shown = " ".join(call("train", "--help").output.replace("│", " ").split())
    assert "ip-vae (iterative, spikes" in shown
    assert "rectified, sparse but no spikes), toy" in shown


@pytest.mark.usefixtures("_toy")
def test_what_a_family_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    for options, words in (
        (("--cell", "toy", "--estimator", "cubic"), "estimator: ToyConfig has none, found 'cubic'"),
        (("--cell", "gaussian", "--estimator", "cubic"), "estimator: IGVAEConfig has none, found 'cubic'"),
        (("--cell", "toy", "--activation", "relu"), "activation: expected 'identity' for a toy model"),
        (("--cell", "other"), "model: expected one of ip-vae, ig-vae, ig-relu-vae, toy, found 'other'"),
        (("--cell", "toy", "--recipe", "released", "--data", "patches"), "no released recipe for cell='toy'"),
    ):
        refused = call("train", "--data", "digits", *options, "--max-steps", 1, "--out", tmp_path / "run")
        assert refused.exit_code == 2
        assert words in refused.stderr
    Toy(ToyConfig(n_inputs=4, n_latents=3)).save_pretrained(tmp_path / "toy")
    with pytest.raises(CheckpointError, match="expected IPVAE, found a toy model"):
        IPVAE.from_pretrained(tmp_path / "toy")


def test_a_file_of_a_family_that_is_not_there_is_refused(tmp_path: Path) -> None:
    Toy(ToyConfig(n_inputs=4, n_latents=3)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cell: expected one of poisson, gaussian, p-.*, found 'toy'"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match=r"cell: expected one of poisson, gaussian, p-.*, found 'toy'"):
        registry.build_model(ToyConfig(n_inputs=4))


def test_two_families_of_one_name_are_refused() -> None:
    class Double(Toy):
        pass

    with pytest.raises(ValueError, match=r"Double\.cell: expected a name of its own, found Toy's"):
        registry.by_name([IPVAE, Toy, Double])


def test_options_of_relaxed_counts_change_nothing_for_a_gaussian_model(tmp_path: Path) -> None:
    x, states = torch.randn(20, 6), []
    for name, temperatures in (("a", (1.0, 0.01, 0.5)), ("b", (3.0, 0.2, 1.0))):
        start, stop, portion = temperatures
        config = TrainConfig(
            max_steps=4, batch_size=5, temperature_start=start, temperature_stop=stop,
            temperature_portion=portion,
        )  # fmt: skip
        model = IGVAE(IGVAEConfig(n_inputs=6, n_latents=4, t_train=3))
        run = train(model, x, config, tmp_path / name, progress=False, accelerator="cpu")
        assert model.temperature == 1.0
        assert "n_arrivals" not in run.history
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["layer.phi.weight"], IGVAE(model.config).layer.phi.weight)
