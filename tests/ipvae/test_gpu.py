"""The wrapper on a GPU: training, resuming, encoding, the command line; what is saved serves the CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipvae import IterativeVAE, TrainConfig, load_model, train
from ipvae.cli import app
from ipvae.evaluation.evaluate import evaluate
from ipvae.models.registry import FAMILIES
from ipvae.training.history import read_history
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typer.testing import CliRunner

import ipvae_kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
KINDS = {
    "poisson": {"cell": "poisson", "estimator": "cubic"},
    "gaussian": {"cell": "gaussian"},
    "relu": {"cell": "gaussian", "activation": "relu"},
}
RECIPE = TrainConfig(lr=0.02, max_steps=20, batch_size=8, seed=5)


def small(**options: Any) -> IterativeVAE:
    family = FAMILIES[options.pop("cell", "poisson")]
    return family(
        family.config_class(**{"n_inputs": 24, "n_latents": 40, "t_train": 5, "init_scale": 0.3, **options})
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(50, 24, generator=torch.Generator("cpu").manual_seed(1), device="cpu")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> IterativeVAE:
    return small(**KINDS[request.param])


@pytest.fixture
def cuda_by_default() -> Iterator[None]:
    torch.set_default_device("cuda")
    yield
    torch.set_default_device(None)


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def run(model: IterativeVAE, x: Tensor, folder: Path, **options: Any) -> dict[str, Tensor]:
    with ipvae_kernels.use_backend("auto"):
        result = train(
            model, x, RECIPE, folder, accelerator="gpu", progress=False, logger=None, log_every=5, **options
        )
    return {name: value.cpu() for name, value in result.model.state_dict().items()}


@pytest.mark.filterwarnings("ignore::ipvae.training.outcome.CollapseWarning")
@pytest.mark.parametrize("cell", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(cell: str, x: Tensor, tmp_path: Path) -> None:
    whole = run(small(**KINDS[cell]), x, tmp_path / "whole")
    run(small(**KINDS[cell]), x, tmp_path / "halves", callbacks=[StopAfter(9)])
    halves = run(small(**KINDS[cell]), x, tmp_path / "halves", resume=True)
    for name, value in whole.items():
        assert torch.equal(halves[name], value), name


@pytest.mark.filterwarnings("ignore::ipvae.training.outcome.CollapseWarning")
def test_a_run_on_the_gpu_is_close_to_the_run_on_the_cpu(x: Tensor, tmp_path: Path) -> None:
    """The same batches and the same noise; a draw within a rounding of its threshold may fall otherwise."""
    histories, recipe = [], dataclasses.replace(RECIPE, lr=1e-3)
    for accelerator in ("gpu", "cpu"):
        folder, model = tmp_path / accelerator, small(init_log_rate=(-6.0, -4.0), init_scale=0.1)
        train(model, x, recipe, folder, accelerator=accelerator, progress=False, log_every=1)
        histories.append(read_history(folder))
    for name in ("loss", "recon", "kl"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=2e-2)


def test_every_method_works_without_a_seed(model: IterativeVAE, x: Tensor) -> None:
    model = model.cuda()
    for inputs in (x.cuda(), x.numpy()):
        for result in (model.encode(inputs), model.reconstruct(inputs)):
            assert result.isfinite().all()
    assert model.generate(3).isfinite().all()
    assert model(x.cuda()).loss.isfinite()


def test_latents_do_not_depend_on_the_batch(model: IterativeVAE, x: Tensor) -> None:
    model = model.cuda()
    whole = model.encode(x.cuda(), seed=3)
    parts = [model.encode(x[i : i + 20].cuda(), seed=3, sample_offset=i) for i in range(0, 50, 20)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


def test_the_gpu_encodes_what_the_cpu_does(model: IterativeVAE, x: Tensor) -> None:
    ours, theirs = evaluate(model.cuda(), x.cuda(), 20, seed=2), evaluate(model.cpu(), x, 20, seed=2)
    for name in ("r2", "squared_error", "zeros"):
        torch.testing.assert_close(
            torch.as_tensor(getattr(ours, name)).cpu(), torch.as_tensor(getattr(theirs, name)),
            rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


@pytest.mark.usefixtures("cuda_by_default")
def test_a_default_device_changes_nothing(x: Tensor) -> None:
    model = small().cuda()
    expected = model.encode(x.cuda(), seed=3)
    torch.set_default_device(None)
    assert torch.equal(model.encode(x.cuda(), seed=3), expected)


def test_saved_models_move_between_devices(model: IterativeVAE, x: Tensor, tmp_path: Path) -> None:
    model.cuda().save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model", device="cuda")
    assert torch.equal(loaded.encode(x.cuda(), seed=1), model.encode(x.cuda(), seed=1))
    assert load_model(tmp_path / "model").encode(x, seed=1).isfinite().all()


@pytest.mark.filterwarnings("ignore::ipvae.training.outcome.CollapseWarning")
def test_the_command_line_trains_and_evaluates(x: Tensor, tmp_path: Path) -> None:
    data = tmp_path / "x.npy"
    np.save(data, x.numpy())
    for command in (
        f"train --data {data} --out {tmp_path}/run --latents 32 --max-steps 10 --device cuda",
        f"eval {tmp_path}/run --data {data} --steps 20 --device cuda",
    ):
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
