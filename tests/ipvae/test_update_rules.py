"""Options of the update that nobody has published, drive, decay and single draw, in the life of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ipvae import IGVAE, IPVAE, IGVAEConfig, IPVAEConfig, TrainConfig, cli, evaluate, load_model, train
from ipvae.data import load_dataset
from ipvae.fields import ConfigError
from torch import Tensor
from typer.testing import CliRunner

import ipvae_kernels

RULES: dict[str, dict[str, Any]] = {
    "expected": {"drive": "expected"},
    "sampled": {"drive": "sampled"},
    "decay": {"decay": 0.1},
    "single-draw": {"single_draw": True},
}


def small(**options: Any) -> IPVAE:
    return IPVAE(IPVAEConfig(n_inputs=12, n_latents=7, t_train=4, init_scale=0.3, **options))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_model_runs_by_its_rule(rule: dict[str, Any], x: Tensor) -> None:
    """Trained, inferred and, in eval mode, prepared: as the ops do when told, not as the published rule."""
    model = small(**rule)
    how = {"seed": 3, **rule, **model.clamps}
    loss = ipvae_kernels.elbo(x, model.params, 4, estimator="fini2", **how).loss
    assert torch.equal(model(x, seed=3).loss, loss)
    assert not torch.equal(small()(x, seed=3).loss, loss)
    expected = ipvae_kernels.infer(x, model.params, 6, **how).state.log_rate
    for mode in (True, False):
        assert torch.equal(model.train(mode).infer(x, 6, seed=3).state.log_rate, expected)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_digits_train_and_what_was_saved_infers_alike(rule: dict[str, Any], tmp_path: Path) -> None:
    """R2 after 300 updates from 0 or below to .6 and more; the published rule has .71 (seed 0)."""
    data = load_dataset("digits")
    config = IPVAEConfig(n_inputs=64, input_shape=(1, 8, 8), n_latents=64, t_train=8, **rule)
    model = IPVAE(config)
    start = evaluate(model, data.test, 8, marks=()).r2[-1]
    result = train(model, data, TrainConfig(max_steps=300, batch_size=100), tmp_path / "run", progress=False)
    found = evaluate(result.model, data.test, 32, marks=())
    assert start < 0.05
    assert found.r2[-1] > 0.6
    again = load_model(tmp_path / "run")
    assert again.config == config
    one, other = (m.infer(data.test[:5], 6, seed=1).state.log_rate for m in (result.model.eval(), again))
    assert torch.equal(one, other)


def test_files_without_these_options_are_those_of_earlier_versions() -> None:
    assert not {"drive", "decay", "single_draw"} & set(small().config.to_dict())
    for rule in RULES.values():
        values = small(**rule).config.to_dict()
        assert rule.items() <= values.items()
        assert IPVAEConfig.from_dict(values) == small(**rule).config
    gaussian = IGVAEConfig(n_inputs=12, n_latents=7, single_draw=True)
    assert IGVAEConfig.from_dict(gaussian.to_dict()) == gaussian


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drive": "exact"}, "drive: expected one of"),
        ({"drive": "expected", "decoder": "mlp"}, "drive: expected 'paper' with a 'mlp' decoder"),
        ({"drive": "expected", "single_draw": True}, "single_draw: expected false with drive='expected'"),
        ({"decay": -1.0}, "decay: expected"),
        ({"single_draw": 1}, "single_draw: expected true or false, found 1"),
        ({"single_draw": True, "n_inner": 2}, "single_draw: expected n_inner = 1 with it, found 2"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)


def test_a_gaussian_model_draws_once_where_it_is_told_to(x: Tensor) -> None:
    models = [
        IGVAE(IGVAEConfig(n_inputs=12, n_latents=7, t_train=4, init_scale=0.3, single_draw=single))
        for single in (True, False)
    ]
    losses = [model(x, seed=3).loss for model in models]
    assert torch.equal(losses[0], models[1](x, seed=3, single_draw=True).loss)
    assert not torch.equal(*losses)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_authors_code_has_none_of_them(rule: dict[str, Any], tmp_path: Path) -> None:
    (name,) = rule
    with pytest.raises(ConfigError, match=f"{name}: expected .*, as in their code, found"):
        small(**rule).to_released(tmp_path / "theirs", dataset="MNIST")
    assert not (tmp_path / "theirs").exists()


def test_the_command_line_takes_them(tmp_path: Path) -> None:
    options = [
        "--data",
        "digits",
        "--latents",
        "16",
        "--t-train",
        "4",
        "--max-steps",
        "4",
        "--batch-size",
        "8",
    ]
    rules = ["--drive", "expected", "--decay", "0.1", "--clamp-u", "6"]
    result = CliRunner().invoke(
        cli.app, ["train", *options, *rules, "--eval-steps", "4", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    assert "drive expected" in result.output
    config = load_model(tmp_path / "run").config
    assert isinstance(config, IPVAEConfig)
    assert (config.drive, config.decay, config.clamp_u) == ("expected", 0.1, 6.0)
    refused = CliRunner().invoke(
        cli.app,
        ["train", *options[:4], "--model", "p-vae", "--drive", "expected", "--out", str(tmp_path / "p")],
    )
    assert refused.exit_code == 2
    assert "drive: PVAEConfig has none, found 'expected'" in refused.stderr
